"""The statements about login sessions, except those that end them. Private to auth's services."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache, partial
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    CTE,
    ColumnElement,
    Interval,
    Row,
    Select,
    Text,
    bindparam,
    exists,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.orm import aliased

from app.auth.models import IS_LIVE, LoginSession
from app.auth.sessions.revoking_crud import LAST_CUTOFF, revoking
from app.core.db import crud
from app.core.db.database import ReadSession, WriteSession
from app.core.db.keyset import PageRequest, PageRows
from app.users import locks
from app.users.models import User


class SessionState(NamedTuple):
    """A login session, and the role and version of its account."""

    id: UUID
    user_id: UUID
    generation: int
    nonce: bytes
    pepper_id: int
    scope: str
    auth_time: datetime
    acr: str
    amr: Sequence[str]
    idle_expires_at: datetime
    absolute_expires_at: datetime
    role: str
    authz_version: int


class Credentials(NamedTuple):
    """The columns that a login checks.

    And whether a stored session of the account started from the client's address, and whether the account has a second factor.
    """

    id: UUID
    hashed_password: str | None
    is_active: bool
    email_verified_at: datetime | None
    authz_version: int
    is_known_origin: bool
    is_enrolled: bool


class LockedUser(NamedTuple):
    id: UUID
    email_key: str
    authz_version: int
    role: str
    # All sessions with a lower id have been ended; a new session needs a higher one.
    cutoff: UUID | None


class NewSession(NamedTuple):
    state: SessionState
    # The account has sessions, but none on a device of this family.
    is_new_device: bool
    has_factor: bool


# For a statement of another feature that locks the account in the same way.
LOCKED_COLUMNS = (User.id, User.email_key, User.authz_version, User.role, LAST_CUTOFF.scalar_subquery().label("cutoff"))


class StoredState(NamedTuple):
    """A session, whether it is live, and whether its previous refresh token may be used again, at the time of the database."""

    state: SessionState
    is_live: bool
    is_within_grace: bool
    replays: int
    revoke_reason: str | None


_OF_USERS = {"role", "authz_version"}
_STATE = [getattr(User if name in _OF_USERS else LoginSession, name) for name in SessionState._fields]
_LOGIN = select(
    User.id,
    User.hashed_password,
    User.is_active,
    User.email_verified_at,
    User.authz_version,
    exists()
    .where(LoginSession.user_id == User.id, LoginSession.origin == bindparam("origin", type_=Text))
    .label("is_known_origin"),
).where(User.email_key == bindparam("email_key"))
# Built once, and of tables instead of entities: that halves the time to compile and run the statement.
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
    LoginSession.acr,
)


async def get_login(
    session: ReadSession, email_key: str, origin: str | None, is_enrolled: ColumnElement[bool]
) -> Credentials | None:
    statement = _login_with(is_enrolled)
    return crud.only(Credentials, await session.execute(statement, {"email_key": email_key, "origin": origin}))


# The condition is always the same, so there is one statement.
@cache
def _login_with(is_enrolled: ColumnElement[bool]) -> Select[*tuple[Any, ...]]:
    return _LOGIN.add_columns(is_enrolled.label("is_enrolled"))


async def lock_unchanged(
    session: WriteSession, user_id: UUID | ColumnElement[UUID], authz_version: int | ColumnElement[int]
) -> LockedUser | None:
    """Lock an active account of this version against changes and other logins, until the transaction ends; None if there is none."""
    is_unchanged = (User.id == user_id) & (User.authz_version == authz_version) & User.is_active
    return crud.only(LockedUser, await session.execute(locks.in_order(select(*LOCKED_COLUMNS).where(is_unchanged))))


async def create(
    session: WriteSession,
    user: LockedUser,
    values: Mapping[str, Any],
    *,
    idle: timedelta,
    absolute: timedelta,
    keep: int,
    is_enrolled: ColumnElement[bool],
    ctes: Sequence[CTE] = (),
) -> NewSession:
    """Insert a session for a locked account.

    At most `keep` sessions of the account stay live: the new one, and the most recently refreshed of the others. The rest end.
    `ctes` run as parts of the same statement.
    """
    ends = {"idle_expires_at": func.now() + min(idle, absolute), "absolute_expires_at": func.now() + absolute}
    earlier = aliased(LoginSession)
    of_user = exists().where(earlier.user_id == user.id)
    of_family = of_user.where(earlier.device_family == values["device_family"])
    statement = (
        insert(LoginSession)
        .values(user_id=user.id, **values, **ends)
        # A statement does not see the row that it inserts.
        .returning(
            *(column for column in _STATE if column.class_ is LoginSession),
            of_user & ~of_family,
            # This statement begins after the lock, so it sees a factor that was set up since the login was read.
            select(is_enrolled).where(User.id == user.id).scalar_subquery(),
        )
        .add_cte(_eviction(user.id, keep - 1), *ctes)
    )
    *columns, is_new_device, has_factor = (await session.execute(statement)).one()
    return NewSession(SessionState._make((*columns, user.role, user.authz_version)), is_new_device, has_factor)


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
    """Rotate a live session of an active account to the next generation. Only one of several concurrent calls succeeds."""
    values = {"presented_id": session_id, "presented": generation, "new_pepper_id": pepper_id, "idle": idle}
    return crud.only(SessionState, await session.execute(_ROTATION, values))


async def classify(session: WriteSession, session_id: UUID, *, grace: timedelta) -> StoredState | None:
    """Lock a session, and read whether it is live and whether its previous refresh token may be used again."""
    statement = (
        select(
            *_STATE,
            (IS_LIVE & User.is_active).label("is_live"),
            # `clock_timestamp` is the time after the wait for the lock; `now` would be that of the transaction's start.
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
    await session.execute(
        update(LoginSession).where(LoginSession.id == session_id).values(replays=LoginSession.replays + 1)
    )


async def renew_auth_time(
    session: WriteSession, user_id: UUID, session_id: UUID, factor: Sequence[str], is_enrolled: ColumnElement[bool]
) -> tuple[SessionState, bool] | None:
    """Record that the client has just given the password, or a second factor by these methods, in this session.

    Returns also whether the account has a factor.
    """
    statement = (
        update(LoginSession)
        .where(
            LoginSession.id == session_id,
            LoginSession.user_id == user_id,
            IS_LIVE,
            User.id == LoginSession.user_id,
            User.is_active,
        )
        .values(auth_time=func.now(), last_seen_at=func.now(), **_assurance(factor))
        .returning(*_STATE, select(is_enrolled).where(User.id == user_id).correlate(None).scalar_subquery())
        .execution_options(synchronize_session=False)
    )
    row = (await session.execute(statement)).one_or_none()
    return None if row is None else (SessionState._make(row[:-1]), row[-1])


def _assurance(factor: Sequence[str]) -> dict[str, Any]:
    """Return the values of a session that has given a second factor by these methods, if any. Its earlier methods stay."""
    if not factor:
        # A trigger refuses to renew a session of an account with a factor without naming `acr`, as earlier releases do.
        return {"acr": LoginSession.acr}
    methods: ColumnElement[Any] = LoginSession.amr.expression
    for method in (*factor, "mfa"):
        name = literal(method, Text)
        methods = func.array_append(func.array_remove(methods, name), name)
    return {"acr": "aal2", "amr": methods}


async def page(session: ReadSession, user_id: UUID, request: PageRequest) -> PageRows:
    statement = select(*_LISTED).where(LoginSession.user_id == user_id, IS_LIVE)
    return await crud.page(session, statement, request)


async def list_newest(session: ReadSession, user_id: UUID, *, limit: int) -> Sequence[Row[*tuple[Any, ...]]]:
    """Read the stored sessions of an account, ended ones included, the most recently refreshed first."""
    columns = (*_LISTED, LoginSession.revoked_at, LoginSession.revoke_reason)
    newest = (LoginSession.last_seen_at.desc(), LoginSession.id.desc())
    statement = select(*columns).where(LoginSession.user_id == user_id).order_by(*newest).limit(limit)
    return (await session.execute(statement)).all()


purge_expired_sessions = partial(crud.remove_expired, key=LoginSession.id, expiry=LoginSession.absolute_expires_at)
purge_revoked_sessions = partial(crud.remove_expired, key=LoginSession.id, expiry=LoginSession.revoked_at)
