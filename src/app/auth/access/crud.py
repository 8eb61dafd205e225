"""The statements that decide whether an access token or a ticket is still valid. Private to auth's services."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    Boolean,
    ColumnElement,
    Select,
    Uuid,
    and_,
    any_,
    bindparam,
    delete,
    func,
    insert,
    literal,
    select,
    true,
)

from app.auth.models import IS_LIVE, LoginSession, Revocation, SocketTicket
from app.core.db import crud
from app.core.db.database import ReadSession, WriteSession
from app.users import locks
from app.users.models import User
from app.users.roles import Role


class TokenStatus(NamedTuple):
    """The columns that decide whether an access token is still valid, and for which scopes."""

    is_session_live: bool
    acr: str
    is_active: bool
    authz_version: int
    role: str
    # The administrators among the locked accounts who can log in.
    admins: Sequence[UUID] | None = None


class UsedTicket(NamedTuple):
    """A ticket that has just been deleted, and the state of its login session and account."""

    is_current: bool
    user_id: UUID
    session_id: UUID
    version: int
    scope: str
    auth_time: datetime
    acr: str
    token_expires_at: datetime
    is_session_live: bool
    is_active: bool
    authz_version: int
    role: str

    @property
    def status(self) -> TokenStatus:
        return TokenStatus(self.is_session_live, self.acr, self.is_active, self.authz_version, self.role)


_STATUS = (
    select(IS_LIVE, LoginSession.acr, User.is_active, User.authz_version, User.role)
    .join(LoginSession, LoginSession.user_id == User.id)
    .where(User.id == bindparam("user_id"), LoginSession.id == bindparam("session_id"))
)


def _is_admin(users: Any) -> ColumnElement[bool]:
    """Return the condition that an account is an administrator who can log in. `users` is the class, or columns with its names.

    Whoever has a password can also set up the second factor that the role may need.
    """
    is_verified = users.email_verified_at.is_not(None) | bindparam("unverified_can_log_in", type_=Boolean)
    return and_(users.role == Role.ADMIN, users.is_active, users.hashed_password.is_not(None), is_verified)


def _locking(account_ids: ColumnElement[Sequence[UUID]]) -> Select[*tuple[Any, ...]]:
    """Build the statement that locks these accounts and then the caller's login session, and reads the status of the caller's token."""
    locked = locks.in_order(select(User).where(User.id == any_(account_ids))).cte("locked_users")
    is_caller = locked.c.id == bindparam("user_id")
    # The aggregates need all rows, so every account is locked before the session.
    accounts = select(
        func.bool_or(locked.c.is_active).filter(is_caller).label("is_active"),
        func.max(locked.c.authz_version).filter(is_caller).label("authz_version"),
        func.max(locked.c.role).filter(is_caller).label("role"),
        func.array_agg(locked.c.id).filter(_is_admin(locked.c)).label("admins"),
    ).subquery("accounts")
    return (
        select(IS_LIVE, LoginSession.acr, accounts)
        .join(accounts, true())
        .where(LoginSession.id == bindparam("session_id"), LoginSession.user_id == bindparam("user_id"))
        .with_for_update(key_share=True, of=LoginSession)
    )


_ACCOUNT_IDS = bindparam("account_ids", type_=ARRAY(Uuid))
_SESSION_IDS = bindparam("session_ids", type_=ARRAY(Uuid))
_LOCKED_STATUS = _locking(_ACCOUNT_IDS)
_LOCKED_STATUS_WITH_ADMINS = _locking(
    _ACCOUNT_IDS + func.array(select(User.id).where(_is_admin(User)).scalar_subquery())
)


async def get_token_status(session: ReadSession, user_id: UUID, session_id: UUID) -> TokenStatus | None:
    """Read the status of an access token. Both tables are read by primary key."""
    parameters = {"user_id": user_id, "session_id": session_id}
    return crud.only(TokenStatus, await session.execute(_STATUS, parameters))


async def versions_of_live_sessions(
    session: ReadSession, session_ids: Collection[UUID]
) -> Mapping[UUID, tuple[UUID, int]]:
    """Return the user and the version of the account of each live session among these, if the account is active."""
    statement = (
        select(LoginSession.id, User.id.label("user_id"), User.authz_version)
        .join(User, LoginSession.user_id == User.id)
        .where(LoginSession.id == any_(_SESSION_IDS), IS_LIVE, User.is_active)
    )
    rows = await session.execute(statement, {"session_ids": list(session_ids)})
    return {session_id: (user_id, version) for session_id, user_id, version in rows}


async def lock_token_status(
    session: WriteSession,
    user_id: UUID,
    session_id: UUID,
    *,
    accounts: Collection[UUID],
    with_admins: bool,
    unverified_can_log_in: bool,
) -> TokenStatus | None:
    """Lock accounts and then the login session, and read the status of an access token; see `token_status.lock`."""
    statement = _LOCKED_STATUS_WITH_ADMINS if with_admins else _LOCKED_STATUS
    account_ids = [user_id, *accounts]
    parameters = {
        "user_id": user_id,
        "session_id": session_id,
        "account_ids": account_ids,
        "unverified_can_log_in": unverified_can_log_in,
    }
    return crud.only(TokenStatus, await session.execute(statement, parameters))


async def create_ticket(session: WriteSession, values: Mapping[str, Any], *, lifetime: timedelta, keep: int) -> bool:
    """Insert a ticket; return False if the login session has `keep` unused ones."""
    unused = (
        select(func.count())
        .where(SocketTicket.session_id == values["session_id"], SocketTicket.expires_at > func.now())
        .scalar_subquery()
    )
    columns = SocketTicket.__table__.c
    row = {**values, "expires_at": func.least(func.now() + lifetime, values["token_expires_at"])}
    fields = [literal(value, columns[name].type) if name != "expires_at" else value for name, value in row.items()]
    statement = insert(SocketTicket).from_select(list(row), select(*fields).where(unused < keep))
    return await session.scalar(statement.returning(SocketTicket.session_id)) is not None


async def use_ticket(session: WriteSession, digest: bytes) -> UsedTicket | None:
    """Delete a ticket and return it. Of several concurrent calls, one gets it."""
    used = (
        delete(SocketTicket)
        .where(SocketTicket.digest == digest)
        .returning(
            SocketTicket.session_id,
            SocketTicket.version,
            SocketTicket.scope,
            SocketTicket.token_expires_at,
            (SocketTicket.expires_at > func.now()).label("is_current"),
        )
        .cte("used")
    )
    statement = (
        select(
            used.c.is_current,
            LoginSession.user_id,
            *(used.c[name] for name in ("session_id", "version", "scope")),
            LoginSession.auth_time,
            LoginSession.acr,
            used.c.token_expires_at,
            *(IS_LIVE, User.is_active, User.authz_version, User.role),
        )
        .join(LoginSession, LoginSession.id == used.c.session_id)
        .join(User, User.id == LoginSession.user_id)
    )
    return crud.only(UsedTicket, await session.execute(statement))


purge_revocations = partial(crud.remove_expired, key=Revocation.id, expiry=Revocation.expires_at)
purge_tickets = partial(crud.remove_expired, key=SocketTicket.digest, expiry=SocketTicket.expires_at)
