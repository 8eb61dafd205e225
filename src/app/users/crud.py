"""One function per statement; private to `users.service`."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import bindparam, func, select, update

from app.core import crud
from app.core.database import ReadSession, WriteSession
from app.users.models import User


class Account(NamedTuple):
    """What is shown of an account, and what decides whether a token still speaks for it."""

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


class Credentials(NamedTuple):
    """What a login is checked against."""

    id: UUID
    hashed_password: str | None
    role: str
    is_active: bool
    email_verified_at: datetime | None
    authz_version: int


# Built once: composing a statement costs more than running it.
_ACCOUNT = select(*(getattr(User, name) for name in Account._fields)).where(User.id == bindparam("id"))
_CREDENTIALS = select(*(getattr(User, name) for name in Credentials._fields)).where(
    User.email_key == bindparam("email_key")
)


async def get_account(session: ReadSession, user_id: UUID) -> Account | None:
    """Read an account as columns."""
    row = (await session.execute(_ACCOUNT, {"id": user_id})).one_or_none()
    return None if row is None else Account._make(row)


async def get_credentials(session: ReadSession, email_key: str) -> Credentials | None:
    """Read what a login with this address is checked against."""
    row = (await session.execute(_CREDENTIALS, {"email_key": email_key})).one_or_none()
    return None if row is None else Credentials._make(row)


async def create(
    session: WriteSession,
    *,
    email: str,
    email_key: str,
    hashed_password: str | None,
    full_name: str | None,
    role: str,
    is_verified: bool,
) -> User | None:
    """Insert an account, or return None when the address is taken."""
    values = {
        "email": email,
        "email_key": email_key,
        "hashed_password": hashed_password,
        "full_name": full_name,
        "role": role,
        "email_verified_at": func.now() if is_verified else None,
    }
    return await crud.insert_or_none(session, User, values, unique=[User.email_key])


async def replace_hash(session: WriteSession, user_id: UUID, *, old: str, new: str) -> None:
    """Store a stronger hash of the same password, unless the password has been changed meanwhile."""
    await session.execute(
        update(User).where(User.id == user_id, User.hashed_password == old).values(hashed_password=new)
    )


async def any_exist(session: ReadSession) -> bool:
    """Say whether there is any account at all."""
    return await session.scalar(select(User.id).limit(1)) is not None
