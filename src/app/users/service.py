"""What can happen to a user."""

from uuid import UUID

from app.core.database import ReadSession, WriteSession
from app.core.passwords import refuse_weak
from app.core.security import PasswordHasher
from app.users import crud
from app.users.crud import Account, Credentials
from app.users.emails import InvalidEmailError, identity, normalize
from app.users.errors import EmailTakenError, UserNotFoundError
from app.users.models import User
from app.users.roles import Role

__all__ = ["Account", "Credentials"]


async def get_account(session: ReadSession, user_id: UUID) -> Account:
    """Read an account, in one round trip."""
    account = await crud.get_account(session, user_id)
    if account is None:
        raise UserNotFoundError
    return account


async def find_credentials(session: ReadSession, email: str) -> Credentials | None:
    """Read what a login with this address is checked against; None for an address nobody can have, too."""
    try:
        email_key = identity(email)
    except InvalidEmailError:
        return None
    return await crud.get_credentials(session, email_key)


async def upgrade_hash(session: WriteSession, user_id: UUID, *, old: str, new: str) -> None:
    """Store a stronger hash of the password that has just proved right."""
    await crud.replace_hash(session, user_id, old=old, new=new)


async def create_admin(
    session: WriteSession,
    hasher: PasswordHasher,
    *,
    email: str,
    password: str,
    min_length: int,
    full_name: str | None = None,
) -> User:
    """Create an administrator whose address counts as verified: whoever can run commands here vouches for it."""
    refuse_weak(password, min_length=min_length, about=[email, full_name or ""])
    # Hash first: no statement has run yet, so no connection waits on the CPU.
    hashed_password = await hasher.hash(password)
    user = await crud.create(
        session,
        email=normalize(email),
        email_key=identity(email),
        hashed_password=hashed_password,
        full_name=full_name,
        role=Role.ADMIN,
        is_verified=True,
    )
    if user is None:
        raise EmailTakenError
    return user


async def create_first_admin(
    session: WriteSession, hasher: PasswordHasher, *, email: str, password: str
) -> User | None:
    """Create an administrator on an empty database; None when there are accounts already."""
    if await crud.any_exist(session):
        return None
    return await create_admin(session, hasher, email=email, password=password, min_length=len(password))
