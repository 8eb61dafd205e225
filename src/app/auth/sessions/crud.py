"""The statements about login sessions, but for those that end them; private to auth's services."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import CTE, Interval, Row, Text, bindparam, exists, func, insert, select, update
from sqlalchemy.orm import aliased

from app.auth.models import IS_LIVE, LoginSession
from app.auth.sessions.revoking_crud import LAST_CUTOFF, revoking
from app.core.db import crud
from app.core.db.database import ReadSession, WriteSession
from app.core.db.keyset import Order, Position
from app.users import locks
from app.users.models import User
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


_OF_USERS = {"role", "authz_version"}
_STATE = [getattr(User if name in _OF_USERS else LoginSession, name) for name in SessionState._fields]
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
    columns = (User.id, User.is_active, User.authz_version, User.role, LAST_CUTOFF.scalar_subquery())
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
        .where(LoginSession.user_id == user_id, IS_LIVE)
        .order_by(LoginSession.last_seen_at.desc(), LoginSession.id.desc())
        .offset(keep)
    )
    return revoking(LoginSession.id.in_(surplus), "evicted").cte("evicted")


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
            (IS_LIVE & User.is_active).label("is_live"),
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
        .where(LoginSession.id == session_id, IS_LIVE, User.id == LoginSession.user_id, User.is_active)
        .values(auth_time=func.now(), last_seen_at=func.now())
        .returning(*_STATE)
        .execution_options(synchronize_session=False)
    )
    row = (await session.execute(statement)).one_or_none()
    return None if row is None else SessionState._make(row)


async def page(
    session: ReadSession, user_id: UUID, order: Order, position: Position | None, limit: int
) -> tuple[Sequence[Row[Any]], Position | None]:
    """Read one page of an account's live sessions."""
    statement = select(*_LISTED).where(LoginSession.user_id == user_id, IS_LIVE)
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
