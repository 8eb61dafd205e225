"""One function per statement; private to auth's services."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    CTE,
    ColumnElement,
    Interval,
    Row,
    Select,
    Text,
    Update,
    Uuid,
    any_,
    bindparam,
    exists,
    func,
    insert,
    select,
    text,
    true,
    update,
)
from sqlalchemy.orm import aliased

from app.auth.models import LoginSession, Revocation, RevokeReason, SessionCutoff
from app.core.db import crud
from app.core.db.database import ReadSession, WriteSession
from app.core.db.keyset import Order, Position
from app.users import locks
from app.users.models import User
from app.users.roles import Role
from app.users.service import Credentials


class SessionState(NamedTuple):
    """A login session and what its account may do, in one row."""

    id: UUID
    user_id: UUID
    generation: int
    nonce: bytes
    pepper_id: int
    scope: str
    auth_time: datetime
    idle_expires_at: datetime
    absolute_expires_at: datetime
    role: str
    authz_version: int


class LockedUser(NamedTuple):
    """An account held against changes."""

    id: UUID
    is_active: bool
    authz_version: int
    role: str
    # A session that begins now has a higher id than this: everybody before has been logged out.
    cutoff: UUID | None


class Created(NamedTuple):
    """What the database's clock made of a new session."""

    auth_time: datetime
    idle_expires_at: datetime
    absolute_expires_at: datetime
    is_first: bool
    is_known_device: bool


class StoredState(NamedTuple):
    """Why a session could not be rotated: the row as it is, judged by the database's clock."""

    state: SessionState
    is_live: bool
    is_within_grace: bool
    replays: int
    revoke_reason: str | None


class Standing(NamedTuple):
    """What decides whether an access token still speaks for its account and session, and for which scopes."""

    is_active: bool
    authz_version: int
    role: str
    is_session_live: bool


class HeldStanding(NamedTuple):
    """The same, and the active administrators among the accounts that are locked."""

    standing: Standing
    admins: Sequence[UUID]


_LOWEST = UUID(int=0)
_LAST_CUTOFF = select(SessionCutoff.cutoff).order_by(SessionCutoff.cutoff.desc()).limit(1)
_LAST_SESSION = select(LoginSession.id).order_by(LoginSession.id.desc()).limit(1)
# Ids begin with 48 bits of time (RFC 9562); the rest is chance.
_CHANCE_BITS = 80
_OF_USERS = {"role", "authz_version"}
_STATE = [getattr(User if name in _OF_USERS else LoginSession, name) for name in SessionState._fields]
_IS_LIVE = (
    LoginSession.revoked_at.is_(None)
    & (LoginSession.idle_expires_at > func.now())
    & (LoginSession.absolute_expires_at > func.now())
)
_STANDING = (
    select(
        User.is_active,
        User.authz_version,
        User.role,
        _IS_LIVE.label("is_session_live"),
    )
    .join(LoginSession, LoginSession.user_id == User.id)
    .where(User.id == bindparam("user_id"), LoginSession.id == bindparam("session_id"))
)
_IS_ADMIN = (User.role == Role.ADMIN) & User.is_active


def _holding(account_ids: ColumnElement[Sequence[UUID]]) -> Select[*tuple[Any, ...]]:
    """Build the statement that locks these accounts, then the caller's login session, and reads the caller's standing."""
    held = locks.in_order(select(User).where(User.id == any_(account_ids))).cte("held")
    is_caller = held.c.id == bindparam("user_id")
    # An aggregate needs all rows: every account is locked before the first session is.
    accounts = select(
        func.bool_or(held.c.is_active).filter(is_caller).label("is_active"),
        func.max(held.c.authz_version).filter(is_caller).label("authz_version"),
        func.max(held.c.role).filter(is_caller).label("role"),
        func.array_agg(held.c.id).filter((held.c.role == Role.ADMIN) & held.c.is_active).label("admins"),
    ).subquery("accounts")
    return (
        select(
            accounts.c.is_active,
            accounts.c.authz_version,
            accounts.c.role,
            _IS_LIVE.label("is_session_live"),
            accounts.c.admins,
        )
        .join(accounts, true())
        .where(LoginSession.id == bindparam("session_id"), LoginSession.user_id == bindparam("user_id"))
        .with_for_update(key_share=True, of=LoginSession)
    )


_ACCOUNT_IDS = bindparam("account_ids", type_=ARRAY(Uuid))
_HELD_STANDING = _holding(_ACCOUNT_IDS)
_HELD_STANDING_WITH_ADMINS = _holding(_ACCOUNT_IDS + func.array(select(User.id).where(_IS_ADMIN).scalar_subquery()))
_LOGIN = select(
    *(getattr(User, name) for name in Credentials._fields),
    exists()
    .where(LoginSession.user_id == User.id, LoginSession.origin == bindparam("origin", type_=Text))
    .label("is_known_origin"),
).where(User.email_key == bindparam("email_key"))
# Of tables, not of entities, and built once: the statement takes less than half of the time that way.
_TABLE = LoginSession.metadata.tables[LoginSession.__tablename__]
_SESSIONS, _USERS = _TABLE.c, User.__table__.c
_ROTATION = (
    update(_TABLE)
    .where(
        _SESSIONS.id == bindparam("presented_id"),
        _SESSIONS.generation == bindparam("presented"),
        _SESSIONS.revoked_at.is_(None),
        _SESSIONS.idle_expires_at > func.now(),
        _SESSIONS.absolute_expires_at > func.now(),
        _USERS.id == _SESSIONS.user_id,
        _USERS.is_active,
    )
    .values(
        generation=_SESSIONS.generation + 1,
        pepper_id=bindparam("new_pepper_id"),
        replays=0,
        rotated_at=func.now(),
        last_seen_at=func.now(),
        idle_expires_at=func.least(func.now() + bindparam("idle", type_=Interval), _SESSIONS.absolute_expires_at),
    )
    .returning(*(_USERS[name] if name in _OF_USERS else _SESSIONS[name] for name in SessionState._fields))
)
_LISTED = (
    LoginSession.id,
    LoginSession.created_at,
    LoginSession.last_seen_at,
    LoginSession.user_agent,
    LoginSession.ip_prefix,
)


async def get_login(session: ReadSession, email_key: str, origin: str | None) -> tuple[Credentials | None, bool]:
    """Read what a login is checked against, and whether a session that is still stored began at this origin."""
    row = (await session.execute(_LOGIN, {"email_key": email_key, "origin": origin})).one_or_none()
    return (None, False) if row is None else (Credentials._make(row[:-1]), row.is_known_origin)


async def lock_user(session: WriteSession, user_id: UUID) -> LockedUser | None:
    """Hold an account against changes and other logins until the transaction ends."""
    columns = (User.id, User.is_active, User.authz_version, User.role, _LAST_CUTOFF.scalar_subquery())
    statement = locks.in_order(select(*columns).where(User.id == user_id))
    row = (await session.execute(statement)).one_or_none()
    return None if row is None else LockedUser._make(row)


async def create(
    session: WriteSession,
    values: Mapping[str, Any],
    *,
    idle: timedelta,
    absolute: timedelta,
    keep: int,
    along: Sequence[CTE] = (),
) -> Created:
    """Insert a session that ends by the database's clock, and say whether its device has been seen before.

    Of the account's live sessions the `keep` seen last stay, the new one included; `along` is done in the same statement.
    """
    ends = {"idle_expires_at": func.now() + min(idle, absolute), "absolute_expires_at": func.now() + absolute}
    earlier = aliased(LoginSession)
    of_user = exists().where(earlier.user_id == values["user_id"])
    statement = (
        insert(LoginSession)
        .values(**values, **ends)
        .returning(
            LoginSession.auth_time,
            LoginSession.idle_expires_at,
            LoginSession.absolute_expires_at,
            # The new row is not seen by its own statement.
            (~of_user).label("is_first"),
            of_user.where(earlier.device_family == values["device_family"]).label("is_known_device"),
        )
        .add_cte(_eviction(values["user_id"], keep - 1), *along)
    )
    return Created._make((await session.execute(statement)).one())


def _eviction(user_id: UUID, keep: int) -> CTE:
    surplus = (
        select(LoginSession.id)
        .where(LoginSession.user_id == user_id, _IS_LIVE)
        .order_by(LoginSession.last_seen_at.desc(), LoginSession.id.desc())
        .offset(keep)
    )
    return _revoking(LoginSession.id.in_(surplus), "evicted").cte("evicted")


async def rotate(
    session: WriteSession, session_id: UUID, generation: int, *, pepper_id: int, idle: timedelta
) -> SessionState | None:
    """Move a live session of an active account on by one generation; None for every other caller, who waited."""
    values = {"presented_id": session_id, "presented": generation, "new_pepper_id": pepper_id, "idle": idle}
    row = (await session.execute(_ROTATION, values)).one_or_none()
    return None if row is None else SessionState._make(row)


async def classify(session: WriteSession, session_id: UUID, *, grace: timedelta) -> StoredState | None:
    """Hold a session that could not be rotated and say what it is."""
    statement = (
        select(
            *_STATE,
            (_IS_LIVE & User.is_active).label("is_live"),
            # The time after the wait for the row, not that of the transaction: without a grace nothing is within it.
            (LoginSession.rotated_at > func.clock_timestamp() - grace).label("is_within_grace"),
            LoginSession.replays,
            LoginSession.revoke_reason,
        )
        .join(User, User.id == LoginSession.user_id)
        .where(LoginSession.id == session_id)
        .with_for_update(of=LoginSession)
    )
    row = (await session.execute(statement)).one_or_none()
    if row is None:
        return None
    width = len(SessionState._fields)
    return StoredState(SessionState._make(row[:width]), *row[width:])


async def count_replay(session: WriteSession, session_id: UUID) -> None:
    """Note that the generation before has been presented once more."""
    await session.execute(
        update(LoginSession).where(LoginSession.id == session_id).values(replays=LoginSession.replays + 1)
    )


async def renew_auth_time(session: WriteSession, session_id: UUID) -> SessionState | None:
    """Note that the password has just been given again in this session."""
    statement = (
        update(LoginSession)
        .where(LoginSession.id == session_id, _IS_LIVE, User.id == LoginSession.user_id, User.is_active)
        .values(auth_time=func.now(), last_seen_at=func.now())
        .returning(*_STATE)
        .execution_options(synchronize_session=False)
    )
    row = (await session.execute(statement)).one_or_none()
    return None if row is None else SessionState._make(row)


async def revoke(session: WriteSession, user_id: UUID, session_id: UUID, reason: RevokeReason) -> bool:
    """End one live session of an account; False when there is none such."""
    ended = await _revoke(
        session, (LoginSession.id == session_id) & (LoginSession.user_id == user_id) & _IS_LIVE, reason
    )
    return bool(ended)


async def revoke_all(
    session: WriteSession, user_id: UUID, reason: RevokeReason, *, but: UUID | None = None
) -> Sequence[UUID]:
    """End every session of an account, but for one."""
    condition = (LoginSession.user_id == user_id) & LoginSession.revoked_at.is_(None)
    return await _revoke(session, condition & (LoginSession.id != but) if but else condition, reason)


async def cut_off(session: WriteSession) -> UUID:
    """Draw the line between all sessions there are and all that will be; every process is told when this is committed."""
    # A login holds its account's row from before it looks for the last cut-off until its session is there: this waits for
    # those under way, and those to come wait for this. No clock decides on which side of the line a session is.
    await session.execute(text("LOCK TABLE users IN EXCLUSIVE MODE"))
    found = [await session.scalar(statement) for statement in (_LAST_SESSION, _LAST_CUTOFF)]
    last = max((one.int for one in found if one is not None), default=0)
    cutoff = UUID(int=((last >> _CHANCE_BITS) + 1) << _CHANCE_BITS)
    await session.execute(insert(SessionCutoff).values(cutoff=cutoff))
    return cutoff


def beyond(cutoff: UUID | None, session_id: UUID) -> UUID:
    """Give a session's id, with the time of the cut-off where the clock of this machine is behind it."""
    if cutoff is None or session_id > cutoff:
        return session_id
    return UUID(int=cutoff.int | session_id.int & ((1 << _CHANCE_BITS) - 1))


async def revoke_before(
    session: WriteSession, cutoff: UUID, after: UUID | None, *, batch: int
) -> tuple[int, UUID | None, Collection[UUID]]:
    """End those that are live among the next `batch` sessions below a cut-off; return how many, and where to go on.

    A transaction that does not hold the accounts must not wait for a session while it holds others. Live sessions that are
    locked are left, and returned as well.
    """
    below = (LoginSession.id < cutoff) & (LoginSession.id > (after or _LOWEST))
    portion = select(LoginSession.id).where(below).order_by(LoginSession.id).limit(batch).subquery()
    # The last one is found first, dead or alive: a step never reads past `batch` rows in search of live ones.
    last = await session.scalar(select(portion.c.id).order_by(portion.c.id.desc()).limit(1))
    if last is None:
        return 0, None, ()
    step = below & (LoginSession.id <= last)
    live = select(LoginSession.id).where(step & _IS_LIVE)
    found = (await session.scalars(live)).all()
    # The limits of the step stand outside of the subquery as well: no plan then reads the table beyond them.
    unlocked = live.with_for_update(key_share=True, skip_locked=True)
    ended = await _revoke(session, step & LoginSession.id.in_(unlocked), "all")
    return len(ended), last, set(found) - set(ended)


async def revoke_locked(session: WriteSession, session_id: UUID) -> bool:
    """End one session that `revoke_before` has left, once its lock is free; False when it has ended meanwhile."""
    return bool(await _revoke(session, (LoginSession.id == session_id) & _IS_LIVE, "all"))


async def _revoke(session: WriteSession, condition: ColumnElement[bool], reason: RevokeReason) -> Sequence[UUID]:
    statement = _revoking(condition, reason).returning(LoginSession.id).execution_options(synchronize_session=False)
    return (await session.scalars(statement)).all()


def _revoking(condition: ColumnElement[bool], reason: RevokeReason) -> Update:
    return (
        update(LoginSession)
        .where(condition, LoginSession.revoked_at.is_(None))
        .values(revoked_at=func.now(), revoke_reason=reason)
    )


async def get_standing(session: ReadSession, user_id: UUID, session_id: UUID) -> Standing | None:
    """Read what decides about an access token, by primary keys."""
    parameters = {"user_id": user_id, "session_id": session_id}
    row = (await session.execute(_STANDING, parameters)).one_or_none()
    return None if row is None else Standing._make(row)


async def hold_standing(
    session: WriteSession, user_id: UUID, session_id: UUID, *, accounts: Collection[UUID], with_admins: bool
) -> HeldStanding | None:
    """Read the same, and lock the accounts and then the login session until the transaction ends.

    The accounts are the caller's, those given and, if asked for, those of all active administrators.
    """
    statement = _HELD_STANDING_WITH_ADMINS if with_admins else _HELD_STANDING
    account_ids = [user_id, *accounts]
    parameters = {"user_id": user_id, "session_id": session_id, "account_ids": account_ids}
    row = (await session.execute(statement, parameters)).one_or_none()
    return None if row is None else HeldStanding(Standing._make(row[:-1]), row.admins or ())


async def page(
    session: ReadSession, user_id: UUID, order: Order, position: Position | None, limit: int
) -> tuple[Sequence[Row[Any]], Position | None]:
    """Read one page of an account's live sessions."""
    statement = select(*_LISTED).where(LoginSession.user_id == user_id, _IS_LIVE)
    return await crud.page(session, statement, order, position, limit=limit)


async def list_newest(session: ReadSession, user_id: UUID, *, limit: int) -> Sequence[Row[*tuple[Any, ...]]]:
    """Read the sessions kept of an account for its export, the one seen last first."""
    columns = (*_LISTED, LoginSession.revoked_at, LoginSession.revoke_reason)
    newest = (LoginSession.last_seen_at.desc(), LoginSession.id.desc())
    statement = select(*columns).where(LoginSession.user_id == user_id).order_by(*newest).limit(limit)
    return (await session.execute(statement)).all()


async def purge_expired_sessions(
    session: WriteSession, after: datetime | None, *, keep: timedelta, batch: int
) -> datetime | None:
    """Delete the next sessions that ended by themselves longer than `keep` ago; return where to go on."""
    before = func.now() - keep
    return await crud.remove_expired(
        session, LoginSession.id, LoginSession.absolute_expires_at, before, after=after, limit=batch
    )


async def purge_revoked_sessions(
    session: WriteSession, after: datetime | None, *, keep: timedelta, batch: int
) -> datetime | None:
    """Delete the next sessions that were revoked longer than `keep` ago; return where to go on."""
    before = func.now() - keep
    return await crud.remove_expired(
        session, LoginSession.id, LoginSession.revoked_at, before, after=after, limit=batch
    )


async def purge_revocations(session: WriteSession, after: datetime | None, *, batch: int) -> datetime | None:
    """Delete the next revocations that no token can still need; return where to go on."""
    return await crud.remove_expired(
        session, Revocation.id, Revocation.expires_at, func.now(), after=after, limit=batch
    )
