"""Starts, lists and ends login sessions, and issues their pairs of tokens."""

import hmac
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from uuid import UUID

from sqlalchemy import CTE, ColumnElement
from uuid_utils.compat import uuid7

from app.audit import service as audit
from app.audit.service import Actor
from app.auth.errors import (
    CodeRequiredError,
    InvalidGrantError,
    InvalidScopeError,
    InvalidTokenError,
    SessionNotFoundError,
)
from app.auth.models import Acr, LoginSession
from app.auth.schemas import TokenPair
from app.auth.sessions import crud, refresh_tokens, revoking_crud
from app.auth.sessions.crud import LockedUser, SessionState
from app.auth.settings import AuthSettings
from app.auth.toolkit import Toolkit
from app.core.db.database import ReadSession, WriteSession
from app.core.db.keyset import Order, PageRequest, PageRows
from app.core.http.addresses import subscriber
from app.jobs import queue
from app.users import jobs
from app.users import service as users_service
from app.users.roles import GRANTS, Role

# The statements that the features above use as they are. Their caller records its own event.
revoke_all = revoking_crud.revoke_all
LOCKED_COLUMNS = crud.LOCKED_COLUMNS
list_newest = crud.list_newest

__all__ = ["LockedUser"]

ORDER = Order((LoginSession.last_seen_at, LoginSession.id), descending=True)
_MAX_USER_AGENT = 256
_VERSION = re.compile(r"[0-9][0-9._]*")


async def lock_unchanged(
    session: WriteSession, user_id: UUID | ColumnElement[UUID], authz_version: int | ColumnElement[int]
) -> LockedUser:
    """Lock the account of a login. Raises `InvalidGrantError` if it has been disabled or changed since this version was read.

    SQL expressions, such as scalar subqueries, save the statement that would read the values.
    """
    user = await crud.lock_unchanged(session, user_id, authz_version)
    if user is None:
        raise InvalidGrantError
    return user


async def start(
    session: WriteSession,
    kit: Toolkit,
    actor: Actor,
    user: LockedUser,
    requested_scope: str | None,
    *,
    acr: Acr,
    amr: Sequence[str],
    ctes: Sequence[CTE] = (),
) -> TokenPair:
    """Start a login session for an account that the caller has locked and knows to be active. Every way to log in ends here.

    `acr` says how strongly the client has proved who it is, `amr` by which methods (RFC 8176): `("pwd",)`, `("pwd", "otp", "mfa")`.
    Raises `InvalidGrantError` for `aal1` if the account has a second factor.
    One statement ends sessions above the maximum, records the login, runs `ctes`, and inserts the session.
    """
    settings = kit.settings.of(AuthSettings)
    session_id = revoking_crud.beyond(user.cutoff, uuid7())
    values = {
        "id": session_id,
        "nonce": os.urandom(32),
        "pepper_id": kit.keys.active_pepper,
        "scope": " ".join(sorted(granted_scopes(user.role, requested_scope))) if requested_scope else "",
        "acr": acr,
        "amr": list(amr),
        "ip_prefix": actor.ip_prefix,
        "origin": origin(kit, actor),
        "user_agent": _cleaned(actor.user_agent),
        "device_family": _VERSION.sub("", _cleaned(actor.user_agent) or ""),
    }
    owner = Actor(user.id, session_id, actor.ip_prefix, actor.request_id)
    new = await crud.create(
        session,
        user,
        values,
        idle=settings.refresh_idle_ttl,
        absolute=settings.refresh_absolute_ttl,
        keep=settings.sessions_per_user,
        is_enrolled=kit.second_factor.is_enrolled,
        ctes=(audit.record_cte(owner, "auth.login_succeeded", subject_id=user.id), *ctes),
    )
    if new.has_factor and acr != "aal2":
        # The error rolls the session back. The next attempt is asked for the factor.
        raise InvalidGrantError
    if new.is_new_device:
        await queue.enqueue(session, jobs.mail_user_notice, "new_device", user.id)
    return issue(kit, new.state)


def origin(kit: Toolkit, actor: Actor) -> str | None:
    """Return a keyed digest of the client's address (IPv6: of its /64 network). It identifies the address without storing it."""
    if actor.address is None:
        return None
    return hmac.digest(kit.keys.derive("login-origin"), subscriber(actor.address).encode(), "sha256").hex()


def _cleaned(user_agent: str | None) -> str | None:
    """Remove unprintable characters, and shorten the text to `_MAX_USER_AGENT`."""
    if user_agent is None:
        return None
    return "".join(islice(filter(str.isprintable, user_agent), _MAX_USER_AGENT))


async def renew(session: WriteSession, kit: Toolkit, actor: Actor, *, factor: Sequence[str] = ()) -> TokenPair:
    """Record that the client has just proved again who it is, in the actor's session, and return a pair with the new time.

    With `factor`, the methods of a second factor, the session becomes `aal2`. Without, only the password was given: it renews no
    session of an account with a factor, and raises `CodeRequiredError`. The refresh token is that of the current generation: it does
    not rotate.
    """
    is_enrolled = kit.second_factor.is_enrolled
    renewed = (
        await crud.renew_auth_time(session, actor.user_id, actor.session_id, factor, is_enrolled)
        if actor.user_id and actor.session_id
        else None
    )
    if renewed is None:
        raise InvalidTokenError
    state, has_factor = renewed
    if has_factor and not factor:
        raise CodeRequiredError
    await audit.record(session, actor, "auth.reauthenticated", subject_id=state.user_id)
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
    """End the session that a verified token belongs to, and return whether it was live."""
    has_ended = await revoking_crud.revoke(session, user_id, session_id, "logout")
    if has_ended:
        owner = Actor(user_id, session_id, actor.ip_prefix, actor.request_id)
        await audit.record(session, owner, "auth.logged_out", subject_id=user_id)
    return has_ended


async def end_one(session: WriteSession, actor: Actor, user_id: UUID, session_id: UUID) -> None:
    if not await revoking_crud.revoke(session, user_id, session_id, "user"):
        raise SessionNotFoundError
    await audit.record(session, actor, "auth.session_ended", subject_id=user_id, ended=str(session_id))


async def end_others(session: WriteSession, actor: Actor, user_id: UUID, *, except_id: UUID) -> None:
    ended = await revoking_crud.revoke_all(session, user_id, "user", except_id=except_id)
    await audit.record(session, actor, "auth.other_sessions_ended", subject_id=user_id, count=len(ended))


async def end_all(session: WriteSession, actor: Actor, user_id: UUID) -> None:
    """End every login session of an account, on behalf of an administrator."""
    await users_service.get_account(session, user_id)
    ended = await revoking_crud.revoke_all(session, user_id, "admin")
    await audit.record(session, actor, "auth.all_sessions_ended", subject_id=user_id, count=len(ended), reason="admin")


async def list_page(session: ReadSession, user_id: UUID, page: PageRequest, *, current: UUID) -> PageRows:
    """Read one page of an account's live sessions, the most recently refreshed first, and mark the current one."""
    rows, following = await crud.page(session, user_id, page)
    return [{**row._asdict(), "is_current": row.id == current} for row in rows], following


def granted_scopes(role: str, requested: str | None, within: str = "") -> frozenset[str]:
    """Return the scopes of the role, limited to those requested now and, with `within`, to those of the login."""
    granted = GRANTS[Role(role)]
    if within:
        granted &= frozenset(within.split())
    wanted = frozenset((requested or "").split())
    if not wanted <= granted:
        raise InvalidScopeError
    return wanted or granted


def issue(kit: Toolkit, state: SessionState, requested_scope: str | None = None) -> TokenPair:
    scopes = granted_scopes(state.role, requested_scope, within=state.scope)
    if kit.settings.of(AuthSettings).withholds(state.role, state.acr):
        # The session keeps the scopes that its login requested, for when it gives a second factor.
        scopes = frozenset()
    ends = min(state.idle_expires_at, state.absolute_expires_at)
    access_token, expires_in = kit.access_tokens.issue(
        user_id=state.user_id,
        session_id=state.id,
        version=state.authz_version,
        scopes=scopes,
        auth_time=int(state.auth_time.timestamp()),
        acr=state.acr,
        amr=state.amr,
        session_ends=ends.timestamp(),
    )
    # If the pepper of this generation has been removed, the active one makes an equally valid token.
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
