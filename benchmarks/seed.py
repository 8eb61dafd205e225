"""The content of the databases: accounts, inserted with COPY, and login sessions with their tokens."""

import asyncio
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
from sqlalchemy import make_url
from uuid_utils.compat import uuid7

from app.auth.access.tokens import AccessTokens
from app.auth.sessions import refresh_tokens
from app.auth.settings import AuthSettings, issuer
from app.core.config import Settings
from app.core.security.hashing import BcryptSha256Hasher
from app.core.security.keys import KeyRing
from app.migrations import runner
from app.users.roles import GRANTS, Role

PASSWORD = "correct horse battery staple"
BCRYPT_COST = 12
EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
_DAY = timedelta(days=1)
_COLUMNS = [
    *("id", "email", "email_key", "full_name", "name_key", "role", "hashed_password"),
    *("email_verified_at", "created_at", "updated_at"),
]
_SESSION = """
    INSERT INTO sessions (id, user_id, nonce, pepper_id, scope, idle_expires_at, absolute_expires_at, device_family)
    VALUES ($1, $2, $3, $4, '', $5, $5, '')
"""


@dataclass(frozen=True)
class Caller:
    """An account with a login session."""

    user_id: UUID
    access_token: str
    refresh_token: str


def plain(url: str) -> str:
    """Return a URL without the name of the driver."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def email(number: int) -> str:
    """Return the email address of an account. Number 0 is the administrator."""
    return f"user{number:07}@example.com"


def instant(number: int) -> datetime:
    """Return the creation time of an account. Accounts are a second apart."""
    return EPOCH + timedelta(seconds=number)


async def make_database(settings: Settings, rows: int) -> None:
    """Migrate the database, and insert accounts, which all have the same password."""
    await runner.upgrade(settings.database)
    hashed = BcryptSha256Hasher(BCRYPT_COST).hash(PASSWORD)
    connection = await asyncpg.connect(plain(settings.database.url.get_secret_value()))
    try:
        records = (_record(number, hashed) for number in range(rows))
        await connection.copy_records_to_table("users", records=records, columns=_COLUMNS)
        await connection.execute("VACUUM ANALYZE users")
    finally:
        await connection.close()


def _record(number: int, hashed: str) -> tuple[object, ...]:
    address, name, made = email(number), f"User {number:07}", instant(number)
    role = Role.USER if number else Role.ADMIN
    return (UUID(int=number), address, address, name, name.lower(), role.value, hashed, EPOCH, made, made)


def log_in(settings: Settings, keys: KeyRing, numbers: range) -> list[Caller]:
    """Create a login session for each account without checking its password, which would take minutes."""
    return asyncio.run(_log_in(settings, keys, numbers))


async def _log_in(settings: Settings, keys: KeyRing, numbers: range) -> list[Caller]:
    connection = await asyncpg.connect(plain(settings.database.url.get_secret_value()))
    try:
        ends = datetime.now(UTC) + _DAY
        sessions = [(uuid7(), UUID(int=number), os.urandom(32), keys.active_pepper, ends) for number in numbers]
        await connection.executemany(_SESSION, sessions)
    finally:
        await connection.close()
    return [_caller(settings, keys, *session) for session in sessions]


def _caller(
    settings: Settings, keys: KeyRing, session_id: UUID, user_id: UUID, nonce: bytes, pepper_id: int, ends: datetime
) -> Caller:
    lifetime = int(settings.of(AuthSettings).access_token_ttl.total_seconds())
    tokens = AccessTokens(keys, issuer=issuer(settings), audience=settings.of(AuthSettings).audience, lifetime=lifetime)
    access_token, _ = tokens.issue(
        user_id=user_id,
        session_id=session_id,
        version=1,
        scopes=GRANTS[Role.USER if user_id.int else Role.ADMIN],
        auth_time=int(time.time()),
        acr="aal1",
        amr=["pwd"],
        session_ends=ends.timestamp(),
    )
    refresh_token = refresh_tokens.make(keys, session_id, generation=0, pepper_id=pepper_id, nonce=nonce)
    return Caller(user_id, access_token, refresh_token)
