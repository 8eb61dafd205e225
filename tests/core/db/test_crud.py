import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError

from app.core.db import crud
from app.core.db.database import Database, WriteSession
from app.core.db.keyset import Order
from app.users.models import User
from tests.conftest import make_settings
from tests.factories import make_user

VALUES = {"email": "Ada@example.com", "email_key": "ada@example.com"}
RACERS = 20


@pytest.fixture
async def race_database(clone_url: str) -> AsyncIterator[Database]:
    """A database of its own with a connection for every racer."""
    database = Database(make_settings(clone_url, database={"pool_size": RACERS}).database)
    yield database
    await database.dispose()


async def count_users(database: Database) -> int:
    async with database.read_sessions() as session:
        return await session.scalar(select(func.count()).select_from(User)) or 0


async def test_inserting_gives_the_row_with_what_the_database_made(database: Database, session: WriteSession) -> None:
    user = await crud.insert_or_none(session, User, VALUES, unique=[User.email_key])
    await session.commit()

    assert user is not None
    assert (user.version, user.role, user.is_active) == (1, "user", True)
    assert user.created_at.utcoffset() == timedelta(0)
    async with database.sessions() as other:
        assert await other.get(User, user.id) is not None


async def test_inserting_a_taken_value_gives_none_and_leaves_the_transaction_usable(session: WriteSession) -> None:
    first = await crud.insert_or_none(session, User, VALUES, unique=[User.email_key])

    second = await crud.insert_or_none(session, User, {**VALUES, "email": "ADA@x.co"}, unique=[User.email_key])

    assert first is not None
    assert second is None
    assert await session.scalar(select(User.email)) == "Ada@example.com"


async def test_a_value_refused_by_another_constraint_is_no_conflict(session: WriteSession) -> None:
    with pytest.raises(IntegrityError, match="ck_users_role"):
        await crud.insert_or_none(session, User, {**VALUES, "role": "emperor"}, unique=[User.email_key])


async def test_a_conflict_of_another_unique_value_is_no_answer_either(session: WriteSession) -> None:
    user = await make_user(session)

    with pytest.raises(IntegrityError, match="pk_users"):
        await crud.insert_or_none(session, User, {**VALUES, "id": user.id}, unique=[User.email_key])


async def test_inserting_does_not_commit(database: Database) -> None:
    async with database.sessions() as session:
        await crud.insert_or_none(session, User, VALUES, unique=[User.email_key])

    assert await count_users(database) == 0


async def test_racing_inserts_of_one_value_give_one_row_and_no_failure(race_database: Database) -> None:
    start = asyncio.Barrier(RACERS)

    async def insert() -> User | None:
        async with race_database.begin() as session:
            await session.execute(select(1))
            await start.wait()
            user = await crud.insert_or_none(session, User, VALUES, unique=[User.email_key])
            # The transaction of whoever lost is not aborted either.
            assert await session.scalar(select(func.count()).select_from(User)) == 1
            return user

    winners = [user for user in await asyncio.gather(*(insert() for _ in range(RACERS))) if user is not None]

    assert len(winners) == 1
    assert await count_users(race_database) == 1


async def test_changing_raises_the_version_and_the_instant(database: Database, session: WriteSession) -> None:
    user = await make_user(session, full_name="Ada")
    await session.commit()
    before = user.updated_at

    changed = await crud.change(session, User, user.id, {"full_name": "Ada Lovelace"})
    await session.commit()

    assert changed is user
    assert (user.full_name, user.version) == ("Ada Lovelace", 2)
    assert user.updated_at >= before
    async with database.read_sessions() as other:
        row = await other.get(User, user.id)
        assert row is not None
        assert (row.full_name, row.version) == ("Ada Lovelace", 2)


async def test_changing_sets_the_instant_of_the_change(race_database: Database) -> None:
    async with race_database.begin() as session:
        user = await make_user(session)

    async with race_database.begin() as session:
        changed = await crud.change(session, User, user.id, {"full_name": "x"})

    assert changed is not None
    assert changed.created_at == user.created_at
    assert changed.updated_at > user.updated_at


async def test_changing_what_is_gone_gives_none(session: WriteSession) -> None:
    assert await crud.change(session, User, uuid4(), {"full_name": "x"}) is None


async def test_a_copy_loaded_earlier_shows_all_of_the_row_after_a_change(session: WriteSession) -> None:
    user = await make_user(session)
    await session.execute(text("UPDATE users SET role = 'admin', version = 7"))

    await crud.change(session, User, user.id, {"full_name": "x"})

    assert (user.role, user.version, user.full_name) == ("admin", 8, "x")


async def test_changing_one_row_leaves_the_others(session: WriteSession) -> None:
    user, other = await make_user(session), await make_user(session)

    await crud.change(session, User, user.id, {"full_name": "x"})
    await session.refresh(other)

    assert (other.full_name, other.version) == (None, 1)


async def test_racing_changes_to_any_version_are_all_counted(race_database: Database) -> None:
    async with race_database.begin() as session:
        user = await make_user(session)

    async def change() -> None:
        async with race_database.begin() as session:
            await crud.change(session, User, user.id, {"full_name": "x"})

    await asyncio.gather(*(change() for _ in range(RACERS)))

    async with race_database.read_sessions() as reader:
        assert await reader.scalar(select(User.version)) == 1 + RACERS


async def test_removing_deletes_the_row_and_only_that(database: Database, session: WriteSession) -> None:
    user, other = await make_user(session), await make_user(session)

    assert await crud.remove(session, User, user.id)
    await session.commit()

    async with database.read_sessions() as reader:
        assert list(await reader.scalars(select(User.id))) == [other.id]


async def test_removing_what_is_gone_says_so(session: WriteSession) -> None:
    assert not await crud.remove(session, User, uuid4())


async def test_a_page_is_followed_by_a_position_until_the_end(session: WriteSession) -> None:
    emails = [(await make_user(session, email=f"{letter}@x.co")).email for letter in "abcde"]
    order = Order((User.email_key,))

    first, middle = await crud.page(session, select(User), order, None, limit=3)
    second, end = await crud.page(session, select(User), order, middle, limit=3)

    assert [row[0].email for row in first] == emails[:3]
    assert [row[0].email for row in second] == emails[3:]
    assert end is None


async def test_a_page_that_ends_exactly_at_the_last_row_is_the_last(session: WriteSession) -> None:
    for letter in "abc":
        await make_user(session, email=f"{letter}@x.co")

    rows, following = await crud.page(session, select(User.email_key), Order((User.email_key,)), None, limit=3)

    assert len(rows) == 3
    assert following is None


async def test_an_empty_table_is_one_empty_page(session: WriteSession) -> None:
    assert await crud.page(session, select(User), Order((User.email_key,)), None, limit=3) == ([], None)
