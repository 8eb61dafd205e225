"""What logins and sessions do with second factors, without the feature that has them."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from uuid import uuid4

import pytest
from fastapi import FastAPI
from httpx2 import AsyncClient
from pydantic import ValidationError
from sqlalchemy import literal, select, text

from app import features
from app.audit.service import Actor
from app.auth import second_factor
from app.auth import service as auth_service
from app.auth.access import tickets
from app.auth.errors import InvalidGrantError, WrongCodeError
from app.auth.second_factor import NoSecondFactor
from app.auth.sessions import service as sessions
from app.auth.settings import AuthSettings
from app.auth.toolkit import Toolkit
from app.core.db.database import Database, WriteSession
from app.core.security.hashing import PasswordHasher
from app.users.models import User
from tests.aftermath import events
from tests.auth.code_factor import CodeFactor
from tests.auth.login_sessions import ME, SESSIONS, Pair, refresh, row, start, ticket_of
from tests.conftest import make_settings
from tests.factories import make_user

ACTOR = Actor(address="192.0.2.1")


@pytest.fixture
async def kit(joined_app: FastAPI, database: Database) -> AsyncIterator[Toolkit]:  # noqa: ARG001  # The application uses it.
    """What the services of auth work with."""
    async with joined_app.router.lifespan_context(joined_app) as state:
        yield dict(state or {})["auth"]


@pytest.fixture
async def account(session: WriteSession, hasher: PasswordHasher) -> User:
    account = await make_user(session, hasher)
    await session.commit()
    return account


async def started(kit: Toolkit, account: User) -> Pair:
    """Start a session with two factors, as the second leg of a login does."""
    async with kit.database.begin() as unit:
        user = await sessions.lock_unchanged(unit, account.id, account.authz_version)
        return Pair(
            (
                await auth_service.complete_login(unit, kit, ACTOR, user, None, amr=("otp",), is_over_limit=False)
            ).model_dump()
        )


def brings(*names: str) -> object:
    """Return what finds the parts of these features, which all have a second factor."""
    modules = [(name, SimpleNamespace(SECOND_FACTOR=CodeFactor())) for name in names]
    return lambda _part: iter([("auth", second_factor), *modules])


def test_a_feature_above_auth_brings_the_second_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "parts", brings("factors"))

    assert isinstance(second_factor.installed(), CodeFactor)


def test_without_such_a_feature_there_is_no_second_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "parts", brings())

    assert isinstance(second_factor.installed(), NoSecondFactor)


def test_two_features_that_bring_a_second_factor_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "parts", brings("factors", "tokens"))

    with pytest.raises(ValueError, match=r"factors and tokens both have a second_factor\.py; keep one of them"):
        second_factor.installed()


async def test_without_such_a_feature_no_login_asks_and_no_code_is_right() -> None:
    none = NoSecondFactor()

    assert [limit.amount for limit, _ in none.limits(ACTOR, uuid4())] == [10]
    assert none.limits(ACTOR, uuid4()) != none.limits(ACTOR, uuid4())
    assert none.counters(uuid4()) == ()
    with pytest.raises(WrongCodeError):
        await none.check(code="123456", recovery_code=None)
    with pytest.raises(RuntimeError, match="no account has a second factor"):
        await none.ask()


async def test_without_such_a_feature_a_code_is_recorded(kit: Toolkit, session: WriteSession, account: User) -> None:
    await NoSecondFactor().record_failure(kit, ACTOR, account.id, "wrong")

    (event,) = await events(session, "auth.second_factor_failed")
    assert (event.subject_id, event.detail) == (account.id, {"reason": "wrong"})


def test_a_role_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValidationError, match="there is no role 'ghost'; the roles are user"):
        make_settings("postgresql://nobody@127.0.0.1/nothing", auth={"mfa_required_roles": "admin, ghost"})


def test_roles_are_separated_by_commas() -> None:
    settings = make_settings("postgresql://nobody@127.0.0.1/nothing", auth={"mfa_required_roles": "admin, user"})

    assert settings.of(AuthSettings).mfa_required_roles == ("admin", "user")


async def test_the_second_leg_of_a_login_starts_a_session_that_says_how(
    kit: Toolkit, session: WriteSession, account: User
) -> None:
    tokens = await started(kit, account)

    stored = await row(session, tokens.session_id)
    assert (stored.user_id, stored.acr, stored.amr) == (account.id, "aal2", ["pwd", "otp", "mfa"])


async def test_the_second_leg_can_lock_the_account_that_its_challenge_names(kit: Toolkit, account: User) -> None:
    challenge = select(literal(account.id).label("user_id"), literal(account.authz_version).label("version")).cte()

    async with kit.database.begin() as unit:
        user = await sessions.lock_unchanged(
            unit, select(challenge.c.user_id).scalar_subquery(), select(challenge.c.version).scalar_subquery()
        )

    assert (user.id, user.email_key, user.role) == (account.id, account.email_key, account.role)


@pytest.mark.parametrize("change", ["is_active = false", "authz_version = authz_version + 1"])
async def test_the_second_leg_is_refused_when_the_account_has_changed(
    kit: Toolkit, session: WriteSession, account: User, change: str
) -> None:
    statement = text(f"UPDATE users SET {change} WHERE id = :id")  # noqa: S608  # Our own words.
    await session.execute(statement, {"id": account.id})
    await session.commit()

    async with kit.database.sessions() as unit:
        with pytest.raises(InvalidGrantError):
            await sessions.lock_unchanged(unit, account.id, account.authz_version)


async def test_a_session_with_two_factors_keeps_its_assurance_at_a_refresh(
    kit: Toolkit, client: AsyncClient, account: User
) -> None:
    first = await started(kit, account)

    second = await refresh(client, first)

    for tokens in (first, second):
        assert (tokens.claims["acr"], tokens.claims["amr"]) == ("aal2", ["pwd", "otp", "mfa"])
    assert first.access != second.access


async def test_an_owner_sees_which_sessions_gave_a_second_factor(
    kit: Toolkit, client: AsyncClient, account: User
) -> None:
    strong = await started(kit, account)
    weak = await start(client, account.email)

    page = (await client.get(SESSIONS, headers=weak.headers)).json()
    export = (await client.get(f"{ME}/export", headers=weak.headers)).json()

    by_id = {one["id"]: one["acr"] for one in page["items"]}
    assert by_id == {str(strong.session_id): "aal2", str(weak.session_id): "aal1"}
    assert by_id == {one["id"]: one["acr"] for one in export["sessions"]}


async def test_a_ticket_carries_the_assurance_of_its_session(
    kit: Toolkit, client: AsyncClient, database: Database, account: User
) -> None:
    tokens = await started(kit, account)
    ticket = await ticket_of(client, tokens.headers)

    bearer = await tickets.redeem(database, ticket, (), AuthSettings())

    assert bearer.acr == "aal2"
