"""The events of a login session in the audit log: who did what, in which session and request, and from where."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from httpx2 import AsyncClient, Response

from app.core.db.database import WriteSession
from app.core.security.hashing import PasswordHasher
from tests.aftermath import events
from tests.auth.login_sessions import REVOKE, SESSIONS, Pair, send_refresh, shift, start
from tests.conftest import LoggedIn
from tests.factories import PASSWORD, make_user

type Act = Callable[[AsyncClient, Pair, Pair], Awaitable[Response]]
REAUTHENTICATE = "/api/v1/auth/reauthenticate"


async def log_out(client: AsyncClient, tokens: Pair, other: Pair) -> Response:  # noqa: ARG001  # One of several acts.
    return await client.post(REVOKE, data={"token": tokens.refresh})


async def end_another(client: AsyncClient, tokens: Pair, other: Pair) -> Response:
    return await client.delete(f"{SESSIONS}/{other.session_id}", headers=tokens.headers)


async def end_the_others(client: AsyncClient, tokens: Pair, other: Pair) -> Response:  # noqa: ARG001  # All operations are called alike.
    return await client.delete(SESSIONS, headers=tokens.headers)


async def reauthenticate(client: AsyncClient, tokens: Pair, other: Pair) -> Response:  # noqa: ARG001  # All operations are called alike.
    return await client.post(REAUTHENTICATE, json={"password": PASSWORD}, headers=tokens.headers)


@pytest.fixture
async def email(session: WriteSession, hasher: PasswordHasher) -> str:
    account = await make_user(session, hasher)
    await session.commit()
    return account.email


@pytest.mark.parametrize(
    ("act", "event", "detail"),
    [
        (log_out, "auth.logged_out", {}),
        (end_another, "auth.session_ended", {"ended": "other"}),
        (end_the_others, "auth.other_sessions_ended", {"count": 1}),
        (reauthenticate, "auth.reauthenticated", {}),
    ],
)
async def test_the_audit_log_has_what_an_owner_does_to_a_session(
    client: AsyncClient, session: WriteSession, email: str, act: Act, event: str, detail: dict[str, Any]
) -> None:
    tokens, other = await start(client, email), await start(client, email)

    response = await act(client, tokens, other)

    (written,) = await events(session, event)
    owner = UUID(tokens.claims["sub"])
    assert (written.actor_id, written.subject_id, written.session_id) == (owner, owner, tokens.session_id)
    assert (str(written.ip_prefix), written.request_id) == ("127.0.0.0/24", response.headers["x-request-id"])
    assert written.detail == {
        key: str(other.session_id) if value == "other" else value for key, value in detail.items()
    }


async def test_the_audit_log_has_that_an_administrator_ended_all_sessions(
    client: AsyncClient, session: WriteSession, email: str, admin: LoggedIn
) -> None:
    tokens = await start(client, email)
    subject = UUID(tokens.claims["sub"])

    response = await client.delete(f"/api/v1/users/{subject}/sessions", headers=admin.headers)

    (written,) = await events(session, "auth.all_sessions_ended")
    assert (str(written.actor_id), written.subject_id) == (admin.user_id, subject)
    assert written.request_id == response.headers["x-request-id"]
    assert written.detail == {"count": 1, "reason": "admin"}


async def test_the_audit_log_has_a_stolen_token_without_an_actor(
    client: AsyncClient, session: WriteSession, email: str
) -> None:
    tokens = await start(client, email)
    await send_refresh(client, tokens.refresh)
    await shift(session, tokens.session_id, "rotated_at = rotated_at - interval '1 hour'")

    response = await send_refresh(client, tokens.refresh)

    (written,) = await events(session, "auth.refresh_reuse_detected")
    # The client with the token may not be its owner.
    assert (written.actor_id, written.subject_id) == (None, UUID(tokens.claims["sub"]))
    assert written.session_id == tokens.session_id
    assert (str(written.ip_prefix), written.request_id) == ("127.0.0.0/24", response.headers["x-request-id"])
