"""One function per statement. Private to the services of `users`."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from functools import cache, partial
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Integer, Select, bindparam, delete, func, select, union_all, update

from app.core.db import crud
from app.core.db.database import ReadSession, WriteSession
from app.core.db.keyset import Order, PageRequest, PageRows, after
from app.core.db.reads import Reads
from app.users import locks
from app.users.errors import EmailTakenError
from app.users.models import AccountLink, User


class Account(NamedTuple):
    """The columns of an account that clients see, those that lists sort by, and those that decide whether its tokens are valid."""

    id: UUID
    email: str
    full_name: str | None
    role: str
    is_active: bool
    email_verified_at: datetime | None
    created_at: datetime
    updated_at: datetime
    authz_version: int
    version: int
    email_key: str


# The last Unicode character. Every text with a prefix sorts between the prefix and the prefix followed by this character.
_LAST = "\U0010ffff"

# Statements are built once, because building one costs more than running it. They select columns of the table, not of the class.
# The ORM would double the time of each execution, and rows that are only shown do not need it.
_TABLE = User.__table__.c
_ACCOUNTS = select(*(_TABLE[name] for name in Account._fields))
_ACCOUNT = _ACCOUNTS.where(_TABLE.id == bindparam("id"))
_LOCKED_ACCOUNT = locks.in_order(_ACCOUNT)
_FILTERS: Mapping[str, ColumnElement[bool]] = {
    "email_key": _TABLE.email_key == bindparam("email_key"),
    "role": _TABLE.role == bindparam("role"),
    "is_active": _TABLE.is_active == bindparam("is_active"),
    "created_after": _TABLE.created_at > bindparam("created_after"),
    "created_before": _TABLE.created_at < bindparam("created_before"),
}
_IS_USABLE = AccountLink.used_at.is_(None) & (AccountLink.expires_at > func.now())


async def get_account(reads: Reads, user_id: UUID) -> Account | None:
    """Read an account as columns; None if it does not exist."""
    return crud.only(Account, await reads.execute(_ACCOUNT, {"id": user_id}))


async def lock_account(session: WriteSession, user_id: UUID) -> Account | None:
    """Read an account, and lock its row until the transaction ends; None if it does not exist."""
    return crud.only(Account, await session.execute(_LOCKED_ACCOUNT, {"id": user_id}))


async def get_id(session: ReadSession, email_key: str) -> UUID | None:
    return await session.scalar(select(User.id).where(User.email_key == email_key))


async def get_hash(session: ReadSession, user_id: UUID) -> str | None:
    """Read the password hash of an account; None if it has none, or does not exist."""
    return await session.scalar(select(User.hashed_password).where(User.id == user_id))


async def page(reads: Reads, filters: Mapping[str, Any], request: PageRequest) -> PageRows:
    statement = _listing(frozenset(filters), request.order, is_first=request.position is None)
    values = {**filters, **request.order.values(request.position), "limit": request.limit + 1}
    # pydantic reads a named tuple in half the time that it takes for a row of SQLAlchemy.
    return crud.cut([*map(Account._make, await reads.execute(statement, values))], request)


@cache
def _listing(filters: frozenset[str], order: Order, *, is_first: bool) -> Select[*tuple[Any, ...]]:
    """Build the statement for these filters. There are a few hundred combinations, so the cache stays small."""
    position, limit = None if is_first else order.placeholders(), bindparam("limit", type_=Integer)
    conditions = [_FILTERS[name] for name in sorted(filters & _FILTERS.keys())]
    statement = _ACCOUNTS.where(*conditions)
    if "prefix" in filters:
        # A union of two pages: each key has an index, but no index can serve "either key".
        matching = select(_TABLE.id).where(*conditions)
        pages = [
            after(
                matching.where(key >= bindparam("prefix"), key <= bindparam("prefix") + _LAST), order, position
            ).limit(limit)
            for key in (_TABLE.email_key, _TABLE.name_key)
        ]
        statement = statement.where(_TABLE.id.in_(union_all(*pages)))
    return after(statement, order, position).limit(limit)


async def lock(session: WriteSession, user_id: UUID) -> User | None:
    """Load an account for a change, and lock its row until the transaction ends."""
    return await session.scalar(locks.in_order(select(User).where(User.id == user_id)))


async def create(session: WriteSession, values: Mapping[str, Any]) -> User | None:
    """Insert an account; None if another account has the address."""
    return await crud.insert_or_none(session, User, values, unique=[User.email_key])


async def change(session: WriteSession, user_id: UUID, values: Mapping[str, Any]) -> User | None:
    return await crud.change(session, User, user_id, values)


async def change_email(session: WriteSession, user_id: UUID, values: Mapping[str, Any]) -> None:
    """Change the address of an account. Raises `EmailTakenError` if another account has it; the transaction stays usable."""
    async with crud.on_unique_violation(session, {"uq_users_email_key": EmailTakenError}):
        await crud.change(session, User, user_id, values)


async def remove(session: WriteSession, user_id: UUID) -> bool:
    """Delete an account and, by cascade, all rows that belong to it."""
    return await crud.remove(session, User, user_id)


async def replace_hash(session: WriteSession, user_id: UUID, *, old: str, new: str) -> None:
    """Store a new hash of the same password, unless the password has changed since `old` was read."""
    # `updated_at` and the version, and so the ETag, stay the same, because clients see no change.
    values = {"hashed_password": new, "updated_at": User.updated_at}
    await session.execute(update(User).where(User.id == user_id, User.hashed_password == old).values(values))


async def any_exist(session: ReadSession) -> bool:
    return await session.scalar(select(User.id).limit(1)) is not None


async def delete_links(session: WriteSession, user_id: UUID, purposes: Collection[str]) -> None:
    await session.execute(delete(AccountLink).where(AccountLink.user_id == user_id, AccountLink.purpose.in_(purposes)))


async def use_link(session: WriteSession, link_id: UUID) -> bool:
    """Mark a link as used; False if it was used before, or has expired."""
    statement = (
        update(AccountLink)
        .where(AccountLink.id == link_id, _IS_USABLE)
        .values(used_at=func.now())
        .returning(AccountLink.id)
        .execution_options(synchronize_session=False)
    )
    return await session.scalar(statement) is not None


async def add_link(session: WriteSession, values: Mapping[str, Any], lifetime: timedelta) -> UUID:
    """Add a link that expires after `lifetime`, measured with the clock of the database."""
    link = AccountLink(**values, expires_at=func.now() + lifetime)
    session.add(link)
    await session.flush()
    return link.id


async def get_live_link(session: ReadSession, link_id: UUID) -> AccountLink | None:
    """Read a link that is neither used nor expired."""
    return await session.scalar(select(AccountLink).where(AccountLink.id == link_id, _IS_USABLE))


purge_links = partial(crud.remove_expired, key=AccountLink.id, expiry=AccountLink.expires_at)
