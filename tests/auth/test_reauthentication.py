"""Proving again who one is, by the strongest that the account has: a code of its second factor, or else the password."""

from collections.abc import AsyncIterator

import pytest
from httpx2 import AsyncClient
from sqlalchemy import text, update

from app.auth import second_factor
from app.core.db.database import Database, ReadSession, WriteSession
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from app.users.models import User
from tests.aftermath import assert_problem, events
from tests.auth.code_factor import CODE, ENROLLED, RECOVERY_CODE, CodeFactor
from tests.auth.login_sessions import Pair, pair, refresh, row, start
from tests.conftest import make_settings, running
from tests.factories import PASSWORD, make_user

REAUTHENTICATE = "/api/v1/auth/reauthenticate"
EARLIER = "auth_time = auth_time - interval '1 hour'"


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch, database: Database, database_url: str) -> AsyncIterator[AsyncClient]:
    """A client of the application with a feature that has second factors."""
    monkeypatch.setattr(second_factor, "installed", CodeFactor)
    async with running(create_app(make_settings(database_url), database)) as client:
        yield client


@pytest.fixture
async def owner(session: WriteSession, hasher: PasswordHasher) -> User:
    owner = await make_user(session, hasher)
    await session.commit()
    return owner


@pytest.fixture
async def tokens(client: AsyncClient, session: WriteSession, owner: User) -> Pair:
    """A session from an hour ago with one factor."""
    tokens = await start(client, owner.email)
    await session.execute(text(f"UPDATE sessions SET {EARLIER}"))  # noqa: S608  # Our own words.
    await session.commit()
    return tokens


async def enrol(session: WriteSession, owner: User) -> None:
    await session.execute(update(User).where(User.id == owner.id).values(full_name=ENROLLED))
    await session.commit()


async def hits(session: ReadSession) -> int:
    return int(await session.scalar(text("SELECT sum(hits)::int FROM rate_limits WHERE key LIKE 'guesses:%'")) or 0)


@pytest.mark.parametrize(
    ("body", "methods"),
    [({"code": CODE}, ["pwd", "otp", "mfa"]), ({"recovery_code": RECOVERY_CODE}, ["pwd", "rc", "mfa"])],
)
async def test_a_code_raises_the_session_and_keeps_it(
    client: AsyncClient, session: WriteSession, owner: User, tokens: Pair, body: dict[str, str], methods: list[str]
) -> None:
    await enrol(session, owner)

    raised = pair(await client.post(REAUTHENTICATE, json=body, headers=tokens.headers))

    assert raised.session_id == tokens.session_id
    assert (raised.claims["acr"], raised.claims["amr"]) == ("aal2", methods)
    assert raised.claims["auth_time"] >= tokens.claims["auth_time"]
    stored = await row(session, tokens.session_id)
    assert (stored.acr, stored.amr) == ("aal2", methods)
    assert (await refresh(client, raised)).claims["acr"] == "aal2"
    assert await hits(session) == 0


async def test_a_second_code_adds_no_method_twice(
    client: AsyncClient, session: WriteSession, owner: User, tokens: Pair
) -> None:
    await enrol(session, owner)
    first = pair(await client.post(REAUTHENTICATE, json={"code": CODE}, headers=tokens.headers))

    second = pair(await client.post(REAUTHENTICATE, json={"code": CODE}, headers=first.headers))

    assert second.claims["amr"] == ["pwd", "otp", "mfa"]


async def test_a_password_alone_renews_no_session_of_an_account_with_a_factor(
    client: AsyncClient, session: WriteSession, owner: User, tokens: Pair
) -> None:
    await enrol(session, owner)
    strong = pair(await client.post(REAUTHENTICATE, json={"code": CODE}, headers=tokens.headers))
    before = await row(session, tokens.session_id)

    for headers in (tokens.headers, strong.headers):
        response = await client.post(REAUTHENTICATE, json={"password": PASSWORD}, headers=headers)
        assert_problem(response, 403, "code_required")

    assert await row(session, tokens.session_id) == before


@pytest.mark.parametrize("body", [{"code": "000000"}, {"recovery_code": CODE}])
async def test_a_wrong_code_changes_nothing_and_is_counted_and_recorded(
    client: AsyncClient, session: WriteSession, owner: User, tokens: Pair, body: dict[str, str]
) -> None:
    await enrol(session, owner)
    before = await row(session, tokens.session_id)

    response = await client.post(REAUTHENTICATE, json=body, headers=tokens.headers)

    assert_problem(response, 403, "wrong_code")
    assert await row(session, tokens.session_id) == before
    assert await hits(session) == 1
    (event,) = await events(session, "auth.second_factor_failed")
    assert (event.subject_id, event.session_id) == (owner.id, tokens.session_id)
    assert not {*body.values()} & {str(value) for value in event}


async def test_wrong_codes_are_limited(client: AsyncClient, session: WriteSession, owner: User, tokens: Pair) -> None:
    await enrol(session, owner)
    for _ in range(10):
        wrong = await client.post(REAUTHENTICATE, json={"code": "000000"}, headers=tokens.headers)
        assert_problem(wrong, 403, "wrong_code")

    right = await client.post(REAUTHENTICATE, json={"code": CODE}, headers=tokens.headers)

    assert_problem(right, 429, "rate_limited")
    assert (await row(session, tokens.session_id)).acr == "aal1"


async def test_a_password_never_changes_the_assurance(client: AsyncClient, session: WriteSession, tokens: Pair) -> None:
    # The factor has been removed since.
    await session.execute(text("UPDATE sessions SET acr = 'aal2', amr = '{pwd,otp,mfa}'"))
    await session.commit()

    renewed = pair(await client.post(REAUTHENTICATE, json={"password": PASSWORD}, headers=tokens.headers))

    assert (renewed.claims["acr"], renewed.claims["amr"]) == ("aal2", ["pwd", "otp", "mfa"])


@pytest.mark.parametrize("body", [{}, {"password": PASSWORD, "code": CODE}, {"code": CODE, "recovery_code": CODE}])
async def test_exactly_one_proof_is_accepted(
    client: AsyncClient, session: WriteSession, owner: User, tokens: Pair, body: dict[str, str]
) -> None:
    await enrol(session, owner)

    response = await client.post(REAUTHENTICATE, json=body, headers=tokens.headers)

    assert_problem(response, 422, "validation_error", "#/")
    assert (await row(session, tokens.session_id)).acr == "aal1"


async def test_a_code_in_an_ended_session_is_refused(
    client: AsyncClient, session: WriteSession, owner: User, tokens: Pair
) -> None:
    await enrol(session, owner)
    await session.execute(text("UPDATE sessions SET revoked_at = now(), revoke_reason = 'user'"))
    await session.commit()

    response = await client.post(REAUTHENTICATE, json={"code": CODE}, headers=tokens.headers)

    assert_problem(response, 401, "invalid_token")
    assert (await row(session, tokens.session_id)).acr == "aal1"
