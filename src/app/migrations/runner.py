"""Runs migrations: one runner at a time, each migration in its own transaction, with short waits for locks."""

import asyncio
import io
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from time import monotonic

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from app.core.config import DatabaseSettings
from app.core.db import choices, tls
from app.core.db.connections import milliseconds
from app.core.db.database import MINIMUM_VERSION
from app.core.db.failures import reason, sqlstate
from app.migrations import revisions, scripts
from app.migrations.errors import MigrationError
from app.migrations.steps import MigrationResult, resolve, resolve_offline
from app.migrations.steps import status as describe
from app.models import Base

_LOCK_KEY = 4_021_973_155
_RUNNER_LOCK_TIMEOUT = 60.0
_LOCK_NOT_AVAILABLE = "55P03"
_TABLE_LOCK_TIMEOUT = 60.0
_TABLE_LOCK_PAUSE = 1.0

log = logging.getLogger(__name__)


async def upgrade(settings: DatabaseSettings, revision: str = "head") -> MigrationResult:
    """Upgrade or downgrade the schema to a revision. A second runner waits for the first and then has nothing to do."""
    directory = scripts.read()
    if revision == "head":
        # Two heads are reported without a connection to the database.
        scripts.head(directory)
    async with _exclusive(settings) as connection:
        deadline = monotonic() + _TABLE_LOCK_TIMEOUT
        while True:
            try:
                return await _migrate(connection, directory, revision)
            except DBAPIError as error:
                if sqlstate(error) != _LOCK_NOT_AVAILABLE or monotonic() > deadline:
                    raise
                log.warning("migration did not get its lock and will be retried")
                await connection.rollback()
            # A migration that waits for a lock on a table blocks every later statement on that table. So each wait is short,
            # and other statements run in the pauses.
            await asyncio.sleep(_TABLE_LOCK_PAUSE * random.uniform(0.5, 1.5))  # noqa: S311  # Not a secret.


async def _migrate(connection: AsyncConnection, directory: ScriptDirectory, revision: str) -> MigrationResult:
    before = await _current(connection)
    if step := resolve(directory, before, revision):
        await connection.run_sync(_run, *step)
    after = await _current(connection)
    # Another revision, for example after a downgrade, need not accept the values of this release.
    if not revisions.mismatch(after):
        await _check_declared_values(connection)
    return MigrationResult(before, after)


async def _check_declared_values(connection: AsyncConnection) -> None:
    """Raise if the database rejects a value that the code declares, such as a new role."""
    problem = await choices.outdated_constraint(connection, Base.metadata)
    await connection.rollback()
    if problem:
        raise MigrationError(problem)


async def check(settings: DatabaseSettings) -> str:
    """Return a sentence about the schema if it is at the newest revision; otherwise raise a `MigrationError`."""
    revisions.head()
    async with _connect(settings) as connection:
        if problem := revisions.mismatch(await _current(connection)):
            message = f"{problem}; run `app migrate`"
            raise MigrationError(message)
        await _check_declared_values(connection)
    return f"The schema is at {revisions.head()}, which this program needs."


async def status(settings: DatabaseSettings) -> str:
    directory = scripts.read()
    async with _connect(settings) as connection:
        return describe(directory, await _current(connection))


def sql(revision: str = "head") -> str:
    """Return the SQL of all migrations up to a revision. This needs no database."""
    target = resolve_offline(scripts.read(), revision)
    configuration = scripts.config()
    configuration.output_buffer = io.StringIO()
    with scripts.migration_errors():
        command.upgrade(configuration, target, sql=True)
    return configuration.output_buffer.getvalue()


@asynccontextmanager
async def _connect(settings: DatabaseSettings) -> AsyncIterator[AsyncConnection]:
    if settings.transaction_pooler and settings.direct_url is None:
        message = "migrations cannot run through a transaction pooler; set APP_DATABASE__DIRECT_URL to the address of PostgreSQL"
        raise MigrationError(message)
    engine = _create_engine(settings)
    try:
        async with aclosing(await _open(engine)) as connection:
            await _check_server_version(connection)
            yield connection
    except DBAPIError as error:
        message = f"a migration failed and was rolled back: {reason(error.orig or error)}"
        raise MigrationError(message) from error
    finally:
        await engine.dispose()


def _create_engine(settings: DatabaseSettings) -> AsyncEngine:
    return create_async_engine(
        settings.direct_sqlalchemy_url() if settings.transaction_pooler else settings.sqlalchemy_url(),
        poolclass=NullPool,
        hide_parameters=True,
        connect_args={
            "async_creator_fn": tls.connect,
            "timeout": settings.connect_timeout.total_seconds(),
            "server_settings": {
                "application_name": f"{settings.application_name}-migrate",
                "lock_timeout": milliseconds(settings.migration_lock_timeout),
                "statement_timeout": milliseconds(settings.migration_statement_timeout),
            },
        },
    )


async def _open(engine: AsyncEngine) -> AsyncConnection:
    try:
        return await engine.connect()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, DBAPIError) as error:
        cause = error.orig or error if isinstance(error, DBAPIError) else error
        place = f"{engine.url.host or 'the local socket'}:{engine.url.port or 5432}"
        message = f"cannot connect to PostgreSQL at {place}: {reason(cause)}"
        raise MigrationError(message) from error


async def _check_server_version(connection: AsyncConnection) -> None:
    version = int(await connection.scalar(text("SELECT current_setting('server_version_num')")) or 0)
    await connection.rollback()
    if version < MINIMUM_VERSION * 10_000:
        message = f"PostgreSQL {version // 10_000} is too old; version {MINIMUM_VERSION} or newer is required"
        raise MigrationError(message)


@asynccontextmanager
async def _exclusive(settings: DatabaseSettings) -> AsyncIterator[AsyncConnection]:
    async with _connect(settings) as connection:
        deadline = monotonic() + _RUNNER_LOCK_TIMEOUT
        # The lock is polled. A statement that waits for it would hold a snapshot. If the other runner builds an index
        # concurrently, the build would wait for that snapshot: a deadlock.
        while not await connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK_KEY}):
            await connection.rollback()
            if monotonic() > deadline:
                message = f"another migration has been running for {_RUNNER_LOCK_TIMEOUT:.0f} s; try again when it has finished"
                raise MigrationError(message)
            await asyncio.sleep(0.2)
        # Commit, so that no transaction stays open. The advisory lock belongs to the session and ends with it.
        await connection.commit()
        yield connection


async def _current(connection: AsyncConnection) -> tuple[str, ...]:
    applied = tuple(await revisions.applied(connection))
    await connection.rollback()
    return applied


def _run(connection: Connection, run: Callable[[Config, str], None], target: str) -> None:
    configuration = scripts.config()
    configuration.attributes["connection"] = connection
    with scripts.migration_errors():
        run(configuration, target)
