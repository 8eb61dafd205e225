"""Whether a database can be used, and if not, why, in one sentence without a password."""

import asyncpg
from sqlalchemy import URL, make_url

from app.core.database import MINIMUM_VERSION

_PATIENCE = 5.0


class DatabaseAccessError(Exception):
    """Says in one sentence why the database cannot be used, and what to do about it."""


async def make_database(server_url: str, name: str) -> None:
    """Create a database unless it exists; the name is ours, never a person's."""
    connection = await asyncpg.connect(_for_asyncpg(make_url(server_url)), timeout=_PATIENCE)
    try:
        if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", name):
            await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()


async def usable_version(url: URL) -> str:
    """Connect once and give the server's version; the error says what is wrong."""
    place = f"{url.host or 'localhost'}:{url.port or 5432}"
    try:
        connection = await asyncpg.connect(_for_asyncpg(url), timeout=_PATIENCE)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise DatabaseAccessError(_explain(error, url, place)) from error
    try:
        version = connection.get_server_version()
    finally:
        await connection.close()
    if version.major < MINIMUM_VERSION:
        message = f"DATABASE_URL: PostgreSQL {version.major} at {place} is too old: version {MINIMUM_VERSION} or newer is needed."
        raise DatabaseAccessError(message)
    return f"{version.major}.{version.minor}"


def _explain(error: Exception, url: URL, place: str) -> str:
    match error:
        case asyncpg.InvalidAuthorizationSpecificationError():
            return f"DATABASE_URL: PostgreSQL at {place} does not let the user {url.username} in: check the name and the password."
        case asyncpg.InvalidCatalogNameError():
            return f"DATABASE_URL: PostgreSQL at {place} has no database named {url.database}: create it, or name another one."
        case TimeoutError():
            return f"DATABASE_URL: nothing answered at {place} within {_PATIENCE:.0f} s: check the address."
        case OSError():
            return f"DATABASE_URL: no PostgreSQL can be reached at {place}: {error.strerror or error}."
        case asyncpg.PostgresError():
            return f"DATABASE_URL: PostgreSQL at {place} refuses: {error}."
        case _:
            return f"DATABASE_URL: asyncpg cannot use it: {type(error).__name__}."


def _for_asyncpg(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)
