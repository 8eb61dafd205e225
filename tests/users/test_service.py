"""Functions of the users service that commands and logins call."""

import asyncio
from uuid import uuid4

import pytest
from sqlalchemy import func, select

from app.audit.service import SYSTEM
from app.core.db.database import Database, WriteSession
from app.core.errors import InvalidInputError
from app.core.schemas.emails import InvalidEmailError, identity
from app.core.security.hashing import PasswordHasher
from app.users import service
from app.users.errors import EmailTakenError, UserNotFoundError
from app.users.models import User
from app.users.roles import Role
from tests.conftest import make_settings
from tests.factories import PASSWORD, make_user


async def stored(database: Database, email: str) -> User | None:
    """Read an account in a new session, as another transaction sees it."""
    async with database.sessions() as fresh:
        return await fresh.scalar(select(User).where(User.email_key == identity(email)))


async def count(database: Database) -> int | None:
    async with database.sessions() as fresh:
        return await fresh.scalar(select(func.count()).select_from(User))


async def test_a_created_administrator_can_log_in_at_once(database: Database, hasher: PasswordHasher) -> None:
    async with database.begin() as session:
        await service.create_admin(
            session, hasher, email="Ada@Example.com", password=PASSWORD, min_length=15, full_name="Ada Lovelace"
        )

    user = await stored(database, "ada@example.com")
    assert user is not None
    assert (user.email, user.email_key, user.full_name) == ("Ada@example.com", "ada@example.com", "Ada Lovelace")
    assert (user.role, user.is_active, user.authz_version, user.version) == ("admin", True, 1, 1)
    assert user.email_verified_at is not None
    assert (await hasher.verify(PASSWORD, user.hashed_password)).is_valid


@pytest.mark.parametrize("email", ["Ada@example.com", "ADA@EXAMPLE.COM"])
async def test_an_address_belongs_to_one_account(
    database: Database, session: WriteSession, hasher: PasswordHasher, email: str
) -> None:
    await make_user(session, email="ada@example.com")
    await session.commit()

    with pytest.raises(EmailTakenError):
        await service.create_admin(session, hasher, email=email, password=PASSWORD, min_length=15)

    assert await count(database) == 1


@pytest.mark.parametrize(
    ("password", "code"),
    [
        pytest.param("short", "password_too_short", id="too short"),
        pytest.param("x" * 257, "password_too_long", id="too long"),
        pytest.param("123123123123123", "password_too_common", id="repeated"),
        pytest.param("ada.lovelace@example.com", "password_contextual", id="the address"),
        pytest.param("Ada Lovelace 1815", "password_contextual", id="the name"),
    ],
)
async def test_an_administrator_needs_a_strong_password(
    database: Database, session: WriteSession, hasher: PasswordHasher, password: str, code: str
) -> None:
    with pytest.raises(InvalidInputError) as refused:
        await service.create_admin(
            session,
            hasher,
            email="ada.lovelace@example.com",
            password=password,
            min_length=15,
            full_name="Ada Lovelace",
        )

    assert [one.code for one in refused.value.errors] == [code]
    assert await count(database) == 0


async def test_no_account_is_created_for_an_invalid_address(
    database: Database, session: WriteSession, hasher: PasswordHasher
) -> None:
    with pytest.raises(InvalidEmailError):
        await service.create_admin(session, hasher, email="not an address", password=PASSWORD, min_length=15)

    assert await count(database) == 0


async def test_the_first_administrator_is_created_only_in_an_empty_database(
    database: Database, session: WriteSession, hasher: PasswordHasher
) -> None:
    first = await service.create_first_admin(session, hasher, email="first@example.com", password="p9 x")
    second = await service.create_first_admin(session, hasher, email="second@example.com", password="p9 x")
    await session.commit()

    assert first is not None
    assert second is None
    assert await stored(database, "first@example.com") is not None
    assert await stored(database, "second@example.com") is None


async def test_one_of_several_concurrent_creations_of_an_administrator_succeeds(
    clone_url: str, hasher: PasswordHasher
) -> None:
    database = Database(make_settings(clone_url).database)

    async def create(number: int) -> str:
        email = "ada@example.com".swapcase() if number % 2 else "ada@example.com"
        try:
            async with database.begin() as session:
                await service.create_admin(session, hasher, email=email, password=PASSWORD, min_length=15)
        except EmailTakenError:
            return "taken"
        return "created"

    outcomes = await asyncio.gather(*(create(number) for number in range(8)))
    rows = await count(database)
    await database.dispose()

    assert sorted(outcomes) == ["created", *["taken"] * 7]
    assert rows == 1


async def test_a_stronger_hash_replaces_the_verified_one(database: Database, session: WriteSession) -> None:
    user = await make_user(session, email="ada@example.com", hashed_password="old")
    await session.commit()

    await service.upgrade_hash(session, user.id, old="old", new="new")
    await session.commit()

    after = await stored(database, "ada@example.com")
    assert after is not None
    assert after.hashed_password == "new"


async def test_a_stronger_hash_does_not_overwrite_a_changed_password(database: Database, session: WriteSession) -> None:
    user = await make_user(session, email="ada@example.com", hashed_password="of another password")
    await session.commit()

    await service.upgrade_hash(session, user.id, old="old", new="new")
    await session.commit()

    after = await stored(database, "ada@example.com")
    assert after is not None
    assert after.hashed_password == "of another password"


async def test_an_invalid_address_has_no_credentials(session: WriteSession) -> None:
    assert await service.find_id(session, "not an address\0") is None


async def test_a_missing_account_is_none_or_an_error(session: WriteSession) -> None:
    unknown = uuid4()

    assert await service.find_account(session, unknown) is None
    with pytest.raises(UserNotFoundError):
        await service.get_account(session, unknown)


async def test_a_set_address_is_verified_unless_another_account_has_it(session: WriteSession) -> None:
    ada, eve = await make_user(session, email_verified_at=None), await make_user(session)

    moved = await service.set_email(session, ada.id, "Ada@example.org")
    refused = await service.set_email(session, ada.id, eve.email)

    await session.refresh(ada)
    assert (moved, refused) == (True, False)
    assert (ada.email, ada.email_key) == ("Ada@example.org", identity("ada@example.org"))
    assert ada.email_verified_at is not None


async def test_an_account_with_an_unverified_address_is_created_unless_another_account_has_it(
    session: WriteSession,
) -> None:
    user, again = [
        await service.create_unverified(
            session, SYSTEM, email=email, full_name="Ada", hashed_password="a hash"
        )  # No secret.
        for email in ("ada@example.com", "ADA@example.com")
    ]
    assert user is not None
    is_verified = user.email_verified_at is not None
    await service.verify_email(session, user.id)

    await session.refresh(user)
    assert (is_verified, again) == (False, None)
    assert (user.role, user.hashed_password) == (Role.USER.value, "a hash")
    assert user.email_verified_at is not None
