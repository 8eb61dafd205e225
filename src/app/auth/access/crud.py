"""The statements that decide whether an access token is still good; private to auth's services."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ARRAY, ColumnElement, Select, Uuid, any_, bindparam, func, select, true

from app.auth.models import IS_LIVE, LoginSession, Revocation
from app.core.db import crud
from app.core.db.database import ReadSession, WriteSession
from app.users import locks
from app.users.models import User
from app.users.roles import Role


class Standing(NamedTuple):
    """What decides whether an access token is still good, and for which scopes."""

    is_active: bool
    authz_version: int
    role: str
    is_session_live: bool


class LockedStanding(NamedTuple):
    """The standing, and the active administrators among the locked accounts."""

    standing: Standing
    admins: Sequence[UUID]


_STANDING = (
    select(
        User.is_active,
        User.authz_version,
        User.role,
        IS_LIVE.label("is_session_live"),
    )
    .join(LoginSession, LoginSession.user_id == User.id)
    .where(User.id == bindparam("user_id"), LoginSession.id == bindparam("session_id"))
)
_IS_ADMIN = (User.role == Role.ADMIN) & User.is_active


def _locking(account_ids: ColumnElement[Sequence[UUID]]) -> Select[*tuple[Any, ...]]:
    """Build the statement that locks these accounts and then the caller's login session, and reads the caller's standing."""
    locked = locks.in_order(select(User).where(User.id == any_(account_ids))).cte("locked_users")
    is_caller = locked.c.id == bindparam("user_id")
    # The aggregates need all rows, so every account is locked before the session.
    accounts = select(
        func.bool_or(locked.c.is_active).filter(is_caller).label("is_active"),
        func.max(locked.c.authz_version).filter(is_caller).label("authz_version"),
        func.max(locked.c.role).filter(is_caller).label("role"),
        func.array_agg(locked.c.id).filter((locked.c.role == Role.ADMIN) & locked.c.is_active).label("admins"),
    ).subquery("accounts")
    return (
        select(
            accounts.c.is_active,
            accounts.c.authz_version,
            accounts.c.role,
            IS_LIVE.label("is_session_live"),
            accounts.c.admins,
        )
        .join(accounts, true())
        .where(LoginSession.id == bindparam("session_id"), LoginSession.user_id == bindparam("user_id"))
        .with_for_update(key_share=True, of=LoginSession)
    )


_ACCOUNT_IDS = bindparam("account_ids", type_=ARRAY(Uuid))
_LOCKED_STANDING = _locking(_ACCOUNT_IDS)
_LOCKED_STANDING_WITH_ADMINS = _locking(_ACCOUNT_IDS + func.array(select(User.id).where(_IS_ADMIN).scalar_subquery()))


async def get_standing(session: ReadSession, user_id: UUID, session_id: UUID) -> Standing | None:
    """Read the standing of an access token, by primary keys."""
    parameters = {"user_id": user_id, "session_id": session_id}
    row = (await session.execute(_STANDING, parameters)).one_or_none()
    return None if row is None else Standing._make(row)


async def lock_standing(
    session: WriteSession, user_id: UUID, session_id: UUID, *, accounts: Collection[UUID], with_admins: bool
) -> LockedStanding | None:
    """Read the standing, and lock the accounts and then the login session until the transaction ends.

    Locks the caller's account, those given and, with `with_admins`, those of all active administrators.
    """
    statement = _LOCKED_STANDING_WITH_ADMINS if with_admins else _LOCKED_STANDING
    account_ids = [user_id, *accounts]
    parameters = {"user_id": user_id, "session_id": session_id, "account_ids": account_ids}
    row = (await session.execute(statement, parameters)).one_or_none()
    return None if row is None else LockedStanding(Standing._make(row[:-1]), row.admins or ())


async def purge_revocations(session: WriteSession, after: datetime | None, *, batch: int) -> datetime | None:
    """Delete the next expired revocations; return the position to continue from, or None at the end."""
    return await crud.remove_expired(
        session, Revocation.id, Revocation.expires_at, func.now(), after=after, limit=batch
    )
