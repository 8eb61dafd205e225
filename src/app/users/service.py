"""Use cases of accounts: create, read, list, change and delete them."""

from collections.abc import Collection
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import func

from app.audit import service as audit
from app.audit.service import Actor
from app.core.config import Settings
from app.core.db.database import ReadSession, Versions, WriteSession
from app.core.db.keyset import Order, PageRequest, PageRows
from app.core.db.reads import Reads
from app.core.errors import FieldError, InvalidInputError
from app.core.schemas.emails import InvalidEmailError, has_special_use_domain, identity, name_key, normalize
from app.core.security.hashing import PasswordHasher
from app.core.security.keys import KeyRing
from app.core.security.passwords import refuse_weak
from app.jobs import queue
from app.mail.settings import accepts_special_use_domains
from app.users import crud, jobs, links
from app.users.crud import Account
from app.users.errors import EmailTakenError, LastAdminError, UserNotFoundError
from app.users.models import Purpose, User
from app.users.roles import Role
from app.users.schemas import MeUpdate, UserCreate, UserQuery, UserUpdate

__all__ = ["Account"]


class Confirm(Protocol):
    """Checks again, in the transaction of a write, that the caller is still authorized; see `Principal.confirm`."""

    async def __call__(self, session: WriteSession, *accounts: UUID, with_admins: bool = False) -> Collection[UUID]:
        """Lock the caller's account and these accounts. Returns the ids of the administrators among them who can log in."""


# The statements that other features use as they are.
find_account = crud.get_account
lock_account = crud.lock_account
find_hash = crud.get_hash
upgrade_hash = crud.replace_hash

_BY_AGE = (User.created_at, User.id)
_BY_EMAIL = (User.email_key,)
ORDERS = {
    "created_at": Order(_BY_AGE),
    "-created_at": Order(_BY_AGE, descending=True),
    "email": Order(_BY_EMAIL),
    "-email": Order(_BY_EMAIL, descending=True),
}


async def get_account(reads: Reads, user_id: UUID) -> Account:
    account = await crud.get_account(reads, user_id)
    if account is None:
        raise UserNotFoundError
    return account


async def find_id(session: ReadSession, email: str) -> UUID | None:
    """Read the id of the account with this address; None if the address is unknown or invalid."""
    try:
        email_key = identity(email)
    except InvalidEmailError:
        return None
    return await crud.get_id(session, email_key)


async def list_page(reads: Reads, query: UserQuery, page: PageRequest) -> PageRows:
    return await crud.page(reads, _filters(query), page)


def _filters(query: UserQuery) -> dict[str, Any]:
    filters = query.model_dump(exclude_none=True, include={"role", "is_active", "created_after", "created_before"})
    if query.email is not None:
        filters["email_key"] = identity(query.email)
    if query.q is not None:
        filters["prefix"] = name_key(query.q)
    return filters


def refuse_special_use_domain(settings: Settings, email: str, *, member: str = "email") -> None:
    """Raise if the domain is one for private networks or development, and the settings do not accept these."""
    if has_special_use_domain(email) and not accepts_special_use_domains(settings):
        detail = "The internet delivers no mail to this domain. Give an address in a public domain."
        raise InvalidInputError(FieldError(f"#/{member}", "email_invalid", detail))


async def create(session: WriteSession, actor: Actor, keys: KeyRing, payload: UserCreate) -> User:
    """Create an account without a password, and mail its owner a link to set one."""
    user = await _insert(
        session, actor, email=payload.email, full_name=payload.full_name, role=payload.role, hashed_password=None
    )
    await mail_link(session, keys, user.id, "set_password")
    return user


async def mail_link(session: WriteSession, keys: KeyRing, user_id: UUID, purpose: Purpose) -> None:
    await queue.enqueue(session, jobs.mail_link, await links.create(session, keys, user_id, purpose))


async def create_admin(
    session: WriteSession,
    hasher: PasswordHasher,
    *,
    email: str,
    password: str,
    min_length: int,
    full_name: str | None = None,
) -> User:
    return await create_with_password(
        session,
        hasher,
        email=email,
        password=password,
        min_length=min_length,
        full_name=full_name,
        role=Role.ADMIN,
    )


async def create_with_password(
    session: WriteSession,
    hasher: PasswordHasher,
    *,
    email: str,
    password: str,
    min_length: int,
    full_name: str | None,
    role: Role,
) -> User:
    """Create an account. The address counts as verified, because the operator who runs the command is trusted."""
    refuse_weak(password, min_length=min_length, about=[email, full_name or ""])
    # Hash before the first statement, so that the session holds no connection during the slow hash.
    hashed_password = await hasher.hash(password)
    return await _insert(
        session,
        audit.SYSTEM,
        email=normalize(email),
        full_name=full_name,
        role=role,
        hashed_password=hashed_password,
        email_verified_at=func.now(),
    )


async def create_first_admin(
    session: WriteSession, hasher: PasswordHasher, *, email: str, password: str
) -> User | None:
    """Create an administrator if the database has no account; otherwise return None. For `make run`."""
    if await crud.any_exist(session):
        return None
    # The password is generated, so the minimum length of the settings does not apply to it.
    return await create_admin(session, hasher, email=email, password=password, min_length=len(password))


async def _insert(
    session: WriteSession, actor: Actor, *, email: str, full_name: str | None, role: Role, **values: Any
) -> User:
    user = await crud.create(
        session,
        {
            "email": email,
            "email_key": identity(email),
            "full_name": full_name,
            "name_key": full_name and name_key(full_name),
            "role": role.value,
            **values,
        },
    )
    if user is None:
        raise EmailTakenError
    await audit.record(session, actor, "users.created", subject_id=user.id, role=role.value)
    return user


async def create_unverified(
    session: WriteSession, actor: Actor, *, email: str, full_name: str | None, hashed_password: str
) -> User | None:
    """Create an account with an unverified address; None if another account has the address."""
    try:
        return await _insert(
            session, actor, email=email, full_name=full_name, role=Role.USER, hashed_password=hashed_password
        )
    except EmailTakenError:
        return None


async def verify_email(session: WriteSession, user_id: UUID) -> None:
    await crud.change(session, user_id, {"email_verified_at": func.now()})


async def set_password(session: WriteSession, user_id: UUID, hashed_password: str) -> None:
    """Set a password after the use of a mailed link, which also verifies the address. Earlier tokens become invalid."""
    values = {
        "hashed_password": hashed_password,
        "authz_version": User.authz_version + 1,
        "email_verified_at": func.coalesce(User.email_verified_at, func.now()),
    }
    await crud.change(session, user_id, values)


async def replace_password(session: WriteSession, user_id: UUID, *, old: str, new: str, confirm: Confirm) -> bool:
    """Replace the password hash if it is still `old`; otherwise return False. Earlier tokens become invalid."""
    user = await crud.lock(session, user_id)
    if user is None or user.hashed_password != old:
        return False
    await confirm(session)
    await crud.change(session, user_id, {"hashed_password": new, "authz_version": User.authz_version + 1})
    return True


async def set_email(session: WriteSession, user_id: UUID, email: str) -> bool:
    """Set a verified address for an account; False if another account has it."""
    values = {"email": email, "email_key": identity(email), "email_verified_at": func.now()}
    try:
        await crud.change_email(session, user_id, values)
    except EmailTakenError:
        return False
    return True


async def update_me(
    session: WriteSession, actor: Actor, user_id: UUID, payload: MeUpdate, *, versions: Versions
) -> User:
    return await _change(session, actor, await _lock(session, user_id, versions), payload)


async def update(
    session: WriteSession, actor: Actor, user_id: UUID, payload: UserUpdate, *, versions: Versions, confirm: Confirm
) -> User:
    """Change an account on behalf of an administrator. Earlier tokens become invalid if the role or `is_active` changes."""
    removes_admin = payload.role is Role.USER or payload.is_active is False
    admins = await confirm(session, user_id, with_admins=removes_admin)
    user = await _lock(session, user_id, versions)
    if removes_admin:
        _refuse_last_admin(user, admins)
    return await _change(session, actor, user, payload)


async def _change(session: WriteSession, actor: Actor, user: User, payload: MeUpdate) -> User:
    changes = {
        name: value for name, value in payload.model_dump(exclude_unset=True).items() if value != getattr(user, name)
    }
    if not changes:
        return user
    values: dict[str, Any] = dict(changes)
    if "full_name" in changes:
        values["name_key"] = changes["full_name"] and name_key(changes["full_name"])
    if changes.keys() & {"role", "is_active"}:
        values["authz_version"] = User.authz_version + 1
    await _record_changes(session, actor, user, changes)
    # The row is locked, so it still exists. The statement also updates `user`.
    await crud.change(session, user.id, values)
    return user


async def _record_changes(session: WriteSession, actor: Actor, user: User, changes: dict[str, Any]) -> None:
    if "full_name" in changes:
        await audit.record(session, actor, "users.renamed", subject_id=user.id)
    if "role" in changes:
        detail = {"old": user.role, "new": changes["role"]}
        await audit.record(session, actor, "users.role_changed", subject_id=user.id, **detail)
    if "is_active" in changes:
        event = "users.enabled" if changes["is_active"] else "users.disabled"
        await audit.record(session, actor, event, subject_id=user.id)


async def delete(
    session: WriteSession, actor: Actor, user_id: UUID, *, versions: Versions = None, confirm: Confirm
) -> None:
    """Delete an account. The audit log keeps its events."""
    admins = await confirm(session, user_id, with_admins=True)
    _refuse_last_admin(await _lock(session, user_id, versions), admins)
    await crud.remove(session, user_id)
    await audit.record(session, actor, "users.deleted", subject_id=user_id)


def _refuse_last_admin(user: User, admins: Collection[UUID]) -> None:
    # These administrators are locked, so each of them can still log in when this transaction ends.
    if user.role == Role.ADMIN and user.is_active and set(admins) <= {user.id}:
        raise LastAdminError


async def _lock(session: WriteSession, user_id: UUID, versions: Versions) -> User:
    """Lock an account. Raises `PreconditionFailedError` if its version is not in `versions`."""
    user = await crud.lock(session, user_id)
    if user is None:
        raise UserNotFoundError
    user.require_version(versions)
    return user
