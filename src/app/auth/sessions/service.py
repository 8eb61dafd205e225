"""Login sessions: begin, go on, end.

A refresh token works once. Presented again within the grace it gives the same successor, so that tabs and lost answers
log nobody out and nobody can fork a session; later, or two generations old, it is a sign of theft and ends the session.
"""

import hmac
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any
from uuid import UUID

from sqlalchemy import CTE, Row
from uuid_utils.compat import uuid7

from app.audit import service as audit
from app.audit.service import Actor
from app.auth.errors import (
    InvalidGrantError,
    InvalidScopeError,
    InvalidTokenError,
    RefreshRefusedError,
    SessionNotFoundError,
    TooManyReplaysError,
)
from app.auth.models import LoginSession, RevokeReason
from app.auth.schemas import TokenPair
from app.auth.sessions import crud, refresh_tokens
from app.auth.sessions.crud import LockedUser, SessionState, StoredState
from app.auth.sessions.refresh_tokens import Presented
from app.auth.settings import AuthSettings
from app.auth.toolkit import Toolkit
from app.core.db.database import ReadSession, WriteSession
from app.core.db.keyset import Order, Position
from app.core.http.addresses import subscriber
from app.core.observability.metrics import Counter
from app.jobs import queue
from app.users import jobs
from app.users import service as users_service
from app.users.roles import GRANTS, Role

ORDER = Order((LoginSession.last_seen_at, LoginSession.id), descending=True)
_NONCE_BYTES = 32
_MAX_REPLAYS = 200
_MAX_USER_AGENT = 256
_VERSION = re.compile(r"[0-9][0-9._]*")
_ALARMS = Counter(
    "refresh_token_alarms",
    "Login sessions ended because a genuine refresh token came that should not exist any more, or not yet.",
    event=("auth.refresh_reuse_detected", "auth.refresh_from_the_future"),
)


async def start(
    session: WriteSession,
    kit: Toolkit,
    actor: Actor,
    user: LockedUser,
    requested_scope: str | None,
    *,
    along: Sequence[CTE] = (),
) -> TokenPair:
    """Begin a login session for an account that the caller holds locked and knows to be active.

    One statement ends what is too many, records the login, does what comes `along`, and inserts the session.
    """
    settings = kit.settings.of(AuthSettings)
    session_id = crud.beyond(user.cutoff, uuid7())
    nonce, pepper_id = os.urandom(_NONCE_BYTES), kit.keys.active_pepper
    scope = " ".join(sorted(granted_scopes(user.role, requested_scope))) if requested_scope else ""
    values = {
        "id": session_id,
        "user_id": user.id,
        "nonce": nonce,
        "pepper_id": pepper_id,
        "scope": scope,
        "ip_prefix": actor.ip_prefix,
        "origin": origin(kit, actor),
        "user_agent": _shortened(actor.user_agent),
        "device_family": _VERSION.sub("", _shortened(actor.user_agent) or ""),
    }
    owner = Actor(user.id, session_id, actor.ip_prefix, actor.request_id)
    made = await crud.create(
        session,
        values,
        idle=settings.refresh_idle_ttl,
        absolute=settings.refresh_absolute_ttl,
        keep=settings.sessions_per_user,
        along=(audit.entry(owner, "auth.login_succeeded", subject_id=user.id), *along),
    )
    if not made.is_first and not made.is_known_device:
        await queue.enqueue(session, jobs.mail_user_notice, "new_device", user.id)
    state = SessionState(
        id=session_id,
        user_id=user.id,
        generation=0,
        nonce=nonce,
        pepper_id=pepper_id,
        scope=scope,
        auth_time=made.auth_time,
        idle_expires_at=made.idle_expires_at,
        absolute_expires_at=made.absolute_expires_at,
        role=user.role,
        authz_version=user.authz_version,
    )
    return issue(kit, state)


def origin(kit: Toolkit, actor: Actor) -> str | None:
    """Return a keyed digest of the caller's address, or of its /64 in IPv6: it recognises the address and does not show it."""
    if actor.address is None:
        return None
    return hmac.digest(kit.keys.derive("login-origin"), subscriber(actor.address).encode(), "sha256").hex()


def _shortened(user_agent: str | None) -> str | None:
    if user_agent is None:
        return None
    return "".join(islice(filter(str.isprintable, user_agent), _MAX_USER_AGENT))


def granted_scopes(role: str, requested: str | None, within: str = "") -> frozenset[str]:
    """Give what the role grants, limited to what was asked for now and, by `within`, at login."""
    granted = GRANTS[Role(role)]
    if within:
        granted &= frozenset(within.split())
    wanted = frozenset((requested or "").split())
    if not wanted <= granted:
        raise InvalidScopeError
    return wanted or granted


def issue(kit: Toolkit, state: SessionState, requested_scope: str | None = None) -> TokenPair:
    """Make the pair of tokens that the session's present state gives."""
    scopes = granted_scopes(state.role, requested_scope, within=state.scope)
    ends = min(state.idle_expires_at, state.absolute_expires_at)
    access_token, expires_in = kit.access_tokens.issue(
        user_id=state.user_id,
        session_id=state.id,
        version=state.authz_version,
        scopes=scopes,
        auth_time=int(state.auth_time.timestamp()),
        session_ends=ends.timestamp(),
    )
    # A pepper that is removed: the same generation made with another is as good.
    pepper_id = state.pepper_id if kit.keys.pepper(state.pepper_id) else kit.keys.active_pepper
    return TokenPair(
        access_token=access_token,
        expires_in=expires_in,
        refresh_token=refresh_tokens.make(
            kit.keys, state.id, generation=state.generation, pepper_id=pepper_id, nonce=state.nonce
        ),
        refresh_expires_in=max(0, int((ends - datetime.now(UTC)).total_seconds())),
        scope=" ".join(sorted(scopes)),
    )


async def refresh(
    session: WriteSession, kit: Toolkit, actor: Actor, token: str, *, scope: str | None = None
) -> TokenPair:
    """Trade a refresh token for its successor and a fresh access token."""
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
        return await _refresh_again(session, kit, actor, presented, scope)
    if not refresh_tokens.is_genuine(kit.keys, presented, state.nonce):
        # Raising rolls the rotation back: a guess moves nobody's session on.
        raise InvalidGrantError
    return issue(kit, state, scope)


async def _refresh_again(
    session: WriteSession, kit: Toolkit, actor: Actor, presented: Presented, scope: str | None
) -> TokenPair:
    stored = await crud.classify(session, presented.session_id, grace=kit.settings.of(AuthSettings).refresh_reuse_grace)
    if stored is None or not refresh_tokens.is_genuine(kit.keys, presented, stored.state.nonce):
        raise InvalidGrantError
    if not stored.is_live:
        # A disabled account has no live sessions: a trigger has ended them, and that is the reason.
        raise RefreshRefusedError(stored.revoke_reason or "expired", stored.state.user_id, stored.state.id)
    alarm = _judge(stored, presented.generation)
    if alarm is None:
        await crud.count_replay(session, stored.state.id)
        return issue(kit, stored.state, scope)
    await _end_stolen(session, actor, stored.state, alarm)
    raise InvalidGrantError


def _judge(stored: StoredState, generation: int) -> str | None:
    """Name the event when a genuine token must end its live session; None when it may have the same successor again."""
    behind = stored.state.generation - generation
    if behind < 0:
        # We made it, and the row does not know: the database has been set back to an earlier state.
        return "auth.refresh_from_the_future"
    if behind == 1 and stored.is_within_grace:
        if stored.replays >= _MAX_REPLAYS:
            raise TooManyReplaysError
        return None
    return "auth.refresh_reuse_detected"


async def _end_stolen(session: WriteSession, actor: Actor, state: SessionState, event: str) -> None:
    await crud.revoke(session, state.user_id, state.id, "refresh_reuse")
    thief = Actor(session_id=state.id, ip_prefix=actor.ip_prefix, request_id=actor.request_id)
    await audit.record(session, thief, event, subject_id=state.user_id)
    await queue.enqueue(session, jobs.mail_user_notice, "session_stolen", state.user_id)
    await session.commit()  # The end of the session has to outlive the error that tells of it.
    _ALARMS.count(event)


async def renew(session: WriteSession, kit: Toolkit, actor: Actor) -> TokenPair:
    """Note that the password has just been given again in the actor's session, and give a pair that says so.

    The refresh token is that of the session's present generation: it does not rotate.
    """
    state = await crud.renew_auth_time(session, actor.session_id) if actor.session_id else None
    if state is None:
        raise InvalidTokenError
    return issue(kit, state)


async def end_by_refresh_token(session: WriteSession, kit: Toolkit, actor: Actor, token: str) -> bool:
    """End the session that a refresh token of any generation belongs to, and return whether one ended."""
    presented = refresh_tokens.parse(token)
    stored = presented and await crud.classify(
        session, presented.session_id, grace=kit.settings.of(AuthSettings).refresh_reuse_grace
    )
    if not presented or not stored or not refresh_tokens.is_genuine(kit.keys, presented, stored.state.nonce):
        return False
    return await end_by_access_token(session, actor, stored.state.user_id, stored.state.id)


async def end_by_access_token(session: WriteSession, actor: Actor, user_id: UUID, session_id: UUID) -> bool:
    """End the session that a verified token belongs to, and return whether it was still live."""
    has_ended = await crud.revoke(session, user_id, session_id, "logout")
    if has_ended:
        owner = Actor(user_id, session_id, actor.ip_prefix, actor.request_id)
        await audit.record(session, owner, "auth.logged_out", subject_id=user_id)
    return has_ended


async def end_one(session: WriteSession, actor: Actor, user_id: UUID, session_id: UUID) -> None:
    """End one of an account's live sessions."""
    if not await crud.revoke(session, user_id, session_id, "user"):
        raise SessionNotFoundError
    await audit.record(session, actor, "auth.session_ended", subject_id=user_id, ended=str(session_id))


async def end_others(session: WriteSession, actor: Actor, user_id: UUID, *, but: UUID) -> None:
    """End all of an account's sessions but one."""
    ended = await crud.revoke_all(session, user_id, "user", but=but)
    await audit.record(session, actor, "auth.other_sessions_ended", subject_id=user_id, count=len(ended))


async def end_all(session: WriteSession, actor: Actor, user_id: UUID) -> None:
    """End every login session of an account, on behalf of an administrator."""
    await users_service.get_account(session, user_id)
    ended = await crud.revoke_all(session, user_id, "admin")
    await audit.record(session, actor, "auth.all_sessions_ended", subject_id=user_id, count=len(ended), reason="admin")


async def revoke_all(session: WriteSession, user_id: UUID, reason: RevokeReason, *, but: UUID | None = None) -> None:
    """End all of an account's sessions but one, as part of a change that has an event of its own."""
    await crud.revoke_all(session, user_id, reason, but=but)


async def list_page(
    session: ReadSession, user_id: UUID, position: Position | None, limit: int, *, current: UUID
) -> tuple[list[dict[str, Any]], Position | None]:
    """Read one page of an account's live sessions, the one seen last first, and say which is the current one."""
    rows, following = await crud.page(session, user_id, ORDER, position, limit)
    return [{**row._asdict(), "is_current": row.id == current} for row in rows], following


async def list_newest(session: ReadSession, user_id: UUID, *, limit: int) -> Sequence[Row[*tuple[Any, ...]]]:
    """Read the sessions kept of an account, ended ones included, the one seen last first."""
    return await crud.list_newest(session, user_id, limit=limit)
