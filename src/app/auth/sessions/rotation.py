"""Rotation of refresh tokens.

A refresh token works once. If it is presented again within the grace period, it gives the same successor. So a lost response or
a second browser tab does not log the user out, and a token never has two successors. If it is presented later, or is two
generations old, it has probably been stolen: the session ends.
"""

from app.audit import service as audit
from app.audit.service import Actor
from app.auth.errors import InvalidGrantError, RefreshRefusedError, TooManyReplaysError
from app.auth.schemas import TokenPair
from app.auth.sessions import crud, refresh_tokens, revoking_crud
from app.auth.sessions.crud import SessionState, StoredState
from app.auth.sessions.refresh_tokens import Presented
from app.auth.sessions.service import issue
from app.auth.settings import AuthSettings
from app.auth.toolkit import Toolkit
from app.core.db.database import WriteSession
from app.core.observability.metrics import Counter
from app.jobs import queue
from app.users import jobs

_MAX_REPLAYS = 200
_ALARMS = Counter(
    "refresh_token_alarms",
    "Login sessions ended because a refresh token was used again too late, or is newer than the database.",
    event=("auth.refresh_reuse_detected", "auth.refresh_from_the_future"),
)


async def refresh(
    session: WriteSession, kit: Toolkit, actor: Actor, token: str, *, scope: str | None = None
) -> TokenPair:
    """Exchange a refresh token for its successor and a new access token."""
    presented = refresh_tokens.parse(token)
    if presented is None:
        raise InvalidGrantError
    state = await crud.rotate(
        session,
        presented.session_id,
        presented.generation,
        pepper_id=kit.keys.active_pepper,
        idle=kit.settings.of(AuthSettings).refresh_idle_ttl,
    )
    if state is None:
        return await _refresh_used(session, kit, actor, presented, scope)
    if not refresh_tokens.is_genuine(kit.keys, presented, state.nonce):
        # The error rolls the rotation back, so a guessed token changes no session.
        raise InvalidGrantError
    return issue(kit, state, scope)


async def _refresh_used(
    session: WriteSession, kit: Toolkit, actor: Actor, presented: Presented, scope: str | None
) -> TokenPair:
    """Handle a token that did not rotate its session: return the same successor again, or end the session, or refuse."""
    stored = await crud.classify(session, presented.session_id, grace=kit.settings.of(AuthSettings).refresh_reuse_grace)
    if stored is None or not refresh_tokens.is_genuine(kit.keys, presented, stored.state.nonce):
        raise InvalidGrantError
    if not stored.is_live:
        # A trigger ends the sessions of a disabled account, so the reason is stored there as well.
        raise RefreshRefusedError(stored.revoke_reason or "expired", stored.state.user_id, stored.state.id)
    alarm = _alarm(stored, presented.generation)
    if alarm is None:
        await crud.count_replay(session, stored.state.id)
        return issue(kit, stored.state, scope)
    await _end_stolen(session, actor, stored.state, alarm)
    raise InvalidGrantError


def _alarm(stored: StoredState, generation: int) -> str | None:
    """Return the audit event if the token must end its session, or None if it may have the same successor again."""
    behind = stored.state.generation - generation
    if behind < 0:
        # We issued the token, but the row is older: the database was restored to an earlier state.
        return "auth.refresh_from_the_future"
    if behind == 1 and stored.is_within_grace:
        if stored.replays >= _MAX_REPLAYS:
            raise TooManyReplaysError
        return None
    return "auth.refresh_reuse_detected"


async def _end_stolen(session: WriteSession, actor: Actor, state: SessionState, event: str) -> None:
    await revoking_crud.revoke(session, state.user_id, state.id, "refresh_reuse")
    client = Actor(session_id=state.id, ip_prefix=actor.ip_prefix, request_id=actor.request_id)
    await audit.record(session, client, event, subject_id=state.user_id)
    await queue.enqueue(session, jobs.mail_user_notice, "session_stolen", state.user_id)
    await session.commit()  # The session must stay ended although the caller raises an error.
    _ALARMS.count(event)
