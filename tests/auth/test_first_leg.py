"""The first leg of a login: the password is right, and the account has a second factor."""

from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI
from httpx2 import AsyncClient
from sqlalchemy import text, update

from app.audit.service import Actor
from app.auth import second_factor
from app.auth.errors import InvalidGrantError
from app.auth.schemas import TokenPair
from app.auth.second_factor import SecondFactor
from app.auth.sessions import service as sessions
from app.auth.settings import AuthSettings
from app.auth.toolkit import Toolkit
from app.core.db.database import Database, ReadSession, WriteSession
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from app.users.models import User
from tests.aftermath import assert_problem, events
from tests.auth.code_factor import ENROLLED, CodeFactor
from tests.auth.test_router import assert_oauth_error, log_in, stored_hash
from tests.conftest import make_settings, running
from tests.factories import PASSWORD, make_user


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, database: Database, database_url: str) -> FastAPI:
    """The application with a feature that has second factors."""
    monkeypatch.setattr(second_factor, "installed", CodeFactor)
    return create_app(make_settings(database_url), database)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[AsyncClient]:
    async with running(app) as client:
        yield client


@pytest.fixture
async def owner(session: WriteSession, hasher: PasswordHasher) -> User:
    """An account with a second factor."""
    owner = await make_user(session, hasher, full_name=ENROLLED)
    await session.commit()
    return owner


async def sessions_of(session: ReadSession, user: User) -> int:
    return int(await session.scalar(text("SELECT count(*) FROM sessions WHERE user_id = :id"), {"id": user.id}) or 0)


async def test_a_right_password_gives_no_tokens_but_asks_for_the_factor(
    client: AsyncClient, session: WriteSession, owner: User
) -> None:
    response = await log_in(client, owner.email, scope="users:read")

    assert_problem(response, 403, "mfa_required")
    assert_oauth_error(response, 403, "mfa_required")
    document = response.json()
    assert {name: document[name] for name in ("mfa_token", "expires_in", "methods")} == {
        "mfa_token": "mt1.token",
        "expires_in": 300,
        "methods": ["totp", "recovery_code"],
    }
    assert not {"access_token", "refresh_token"} & document.keys()
    assert "set-cookie" not in response.headers
    assert await sessions_of(session, owner) == 0
    (event,) = await events(session, "auth.%")
    assert (event.event, event.subject_id) == ("auth.second_factor_asked", owner.id)
    assert event.detail == {"version": owner.authz_version, "scope": "users:read", "over_limit": False}


async def test_a_wrong_password_reveals_no_factor(
    client: AsyncClient, session: WriteSession, hasher: PasswordHasher, owner: User
) -> None:
    other = await make_user(session, hasher)
    await session.commit()

    with_factor, without = [await log_in(client, user.email, "wrong") for user in (owner, other)]

    assert_oauth_error(with_factor, 400, "invalid_grant")
    for response in (with_factor, without):
        assert response.json().keys() == without.json().keys()
    assert {**with_factor.json(), "request_id": ""} == {**without.json(), "request_id": ""}


async def test_a_right_password_alone_resets_no_limit(client: AsyncClient, session: WriteSession, owner: User) -> None:
    for _ in range(10):
        assert_oauth_error(await log_in(client, owner.email), 403, "mfa_required")

    refused = await log_in(client, owner.email)

    assert_problem(refused, 429, "rate_limited")
    hits = await session.scalars(text("SELECT hits FROM rate_limits WHERE key LIKE 'login-account-address:%'"))
    assert hits.all() == [10]


async def test_an_unverified_address_comes_before_the_factor(
    client: AsyncClient, session: WriteSession, owner: User
) -> None:
    await session.execute(update(User).where(User.id == owner.id).values(email_verified_at=None))
    await session.commit()

    assert_oauth_error(await log_in(client, owner.email), 403, "invalid_grant")


async def test_an_outdated_hash_is_replaced_before_the_factor_is_given(
    client: AsyncClient, session: WriteSession, owner: User
) -> None:
    outdated = PasswordHasher(
        make_settings("postgresql://nobody@127.0.0.1/nothing", auth={"bcrypt_cost": 5}).of(AuthSettings)
    )
    await session.execute(update(User).where(User.id == owner.id).values(hashed_password=await outdated.hash(PASSWORD)))
    await session.commit()
    outdated.close()
    before = await stored_hash(session, owner.email)

    assert_oauth_error(await log_in(client, owner.email), 403, "mfa_required")

    after = await stored_hash(session, owner.email)
    assert after != before
    assert_oauth_error(await log_in(client, owner.email), 403, "mfa_required")


async def test_no_session_starts_without_the_factor_that_was_set_up_meanwhile(
    app: FastAPI, session: WriteSession, owner: User
) -> None:
    async with app.router.lifespan_context(app) as state:
        kit: Toolkit = dict(state or {})["auth"]
        factor: SecondFactor[Toolkit] = kit.second_factor
        assert isinstance(factor, CodeFactor)

        async def start(unit: WriteSession) -> TokenPair:
            # The statement that read the login did not see the factor.
            user = await sessions.lock_unchanged(unit, owner.id, owner.authz_version)
            return await sessions.start(unit, kit, Actor(), user, None, acr="aal1", amr=("pwd",))

        with pytest.raises(InvalidGrantError):
            await kit.database.unit(start)

    assert await sessions_of(session, owner) == 0
