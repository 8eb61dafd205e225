"""What the database refuses to a process of a release that knows no second factors, during a rolling deploy or after a roll back."""

from collections.abc import AsyncIterator

import pytest
from httpx2 import AsyncClient
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.core.db.database import WriteSession
from app.core.db.failures import is_lost_connection, is_transient, is_undone, sqlstate
from tests.conftest import LoggedIn
from tests.factors.phone import TOTP, Enrolled, begin, live_sessions

# The columns that the release before second factors writes at a login, and when a password is given again.
LOG_IN = text("""
    INSERT INTO sessions (id, user_id, nonce, pepper_id, scope, device_family, idle_expires_at, absolute_expires_at)
    VALUES (gen_random_uuid(), :user_id, '\\x00', 1, '', '', now() + interval '1 day', now() + interval '1 day')
    RETURNING acr, amr
""")
RENEW = text("UPDATE sessions SET auth_time = now(), last_seen_at = now() WHERE user_id = :user_id RETURNING id")


@pytest.fixture
async def guarded(session: WriteSession, owner: Enrolled) -> AsyncIterator[Enrolled]:
    """An account with a second factor, whose login sessions stay as they are."""
    before = await live_sessions(session, owner.user_id)
    yield owner
    assert await live_sessions(session, owner.user_id) == before


@pytest.mark.parametrize("statement", [LOG_IN, RENEW], ids=["log in", "renew"])
async def test_a_password_alone_is_refused_for_an_account_with_a_second_factor(
    session: WriteSession, guarded: Enrolled, statement: object
) -> None:
    with pytest.raises(DBAPIError, match="has a second factor") as raised:
        async with session.begin_nested():
            await session.execute(statement, {"user_id": guarded.user_id})  # type: ignore[call-overload]

    # The response is 503 with Retry-After, without another attempt, and the connection stays.
    assert sqlstate(raised.value) == "57000"
    assert is_transient(raised.value)
    assert not is_undone(raised.value)
    assert not is_lost_connection(raised.value)


async def test_a_password_alone_logs_in_an_account_without_a_second_factor(
    client: AsyncClient, session: WriteSession, user: LoggedIn
) -> None:
    # A secret that is not confirmed gates no login.
    await begin(client, user.headers)

    row = (await session.execute(LOG_IN, {"user_id": user.user_id})).one()
    renewed = (await session.execute(RENEW, {"user_id": user.user_id})).all()

    assert (row.acr, row.amr) == ("aal1", ["pwd"])
    assert len(renewed) == 2


async def test_a_password_alone_logs_in_again_after_the_factor_is_removed(
    client: AsyncClient, session: WriteSession, owner: Enrolled
) -> None:
    response = await client.delete(TOTP, headers=owner.pair.headers)
    assert response.status_code == 204

    row = (await session.execute(LOG_IN, {"user_id": owner.user_id})).one()

    assert (row.acr, row.amr) == ("aal1", ["pwd"])
