"""PostgreSQL: the two engines, the two kinds of session, the declarative base and its column types."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Annotated, Any, override
from uuid import UUID

import asyncpg
from sqlalchemy import BigInteger, DateTime, MetaData, Text, event, func, text
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry
from uuid_utils.compat import uuid7

from app.core.config import DatabaseSettings
from app.core.errors import UnavailableError
from app.core.metrics import Reading
from app.core.statements import watch

MINIMUM_VERSION = 15

# Failures of the moment, not of the request: connection, resources, operator intervention, statement and
# lock timeouts, deadlock and serialization, a primary that has become read-only.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_TRANSIENT_CLASSES = ("08", "53", "57", "58")
_TRANSIENT_STATES = frozenset({"25006", "25P03", "25P04", "40001", "40P01", "55P03"})

# These stay plain assignments: SQLAlchemy reads Annotated directly, a `type` alias would need a registry entry.
PrimaryKey = Annotated[UUID, mapped_column(primary_key=True, default=uuid7)]
CreatedAt = Annotated[datetime, mapped_column(server_default=func.now())]
UpdatedAt = Annotated[datetime, mapped_column(server_default=func.now(), onupdate=func.now())]
Version = Annotated[int, mapped_column(server_default=text("1"))]


class DatabaseUnavailableError(UnavailableError):
    """The database cannot be reached, or has no room for this request at the moment."""

    code = "database_unavailable"
    detail = "The database cannot answer at the moment; try again shortly."


class Base(DeclarativeBase):
    """What every model inherits: names for constraints, time zones, and no lazy loading."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: DateTime(timezone=True), str: Text(), int: BigInteger()}  # noqa: RUF012  # Declared an instance variable by SQLAlchemy.
    # Values made by the server come back with the INSERT: async code can never load them later.
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012  # As above.


class _NoFlushSession(Session):
    @override
    def flush(self, objects: Sequence[Any] | None = None) -> None:
        if self.new or self.dirty or self.deleted:
            message = "a read session writes nothing; take the writing session"
            raise RuntimeError(message)


class ReadSession(AsyncSession):
    """A session for reading: each statement is its own transaction and costs one round trip.

    PostgreSQL itself refuses a write on its connections (`default_transaction_read_only`).
    """

    sync_session_class: type[Session] = _NoFlushSession


class WriteSession(ReadSession):
    """A session for one atomic change. A function that takes a `ReadSession` also takes this one, never the reverse."""

    sync_session_class = Session


class _Pool(AsyncAdaptedQueuePool):
    """A pool that knows how many wait."""

    waiting = 0

    @override
    def _do_get(self) -> ConnectionPoolEntry:
        self.waiting += 1
        try:
            return super()._do_get()
        finally:
            self.waiting -= 1


class Database:
    """The way to PostgreSQL, made when the application starts and disposed of when it stops."""

    def __init__(self, settings: DatabaseSettings, *, slow_query: timedelta | None = None) -> None:
        self.engine = _create_engine(settings)
        self.read_engine = _create_engine(
            settings,
            server_settings={"default_transaction_read_only": "on"},
            isolation_level="AUTOCOMMIT",
            # Nothing to undo after single statements: giving the connection back costs no round trip.
            pool_reset_on_return=None,
        )
        for engine in (self.engine, self.read_engine):
            watch(engine.sync_engine, slow=slow_query.total_seconds() if slow_query else None)
        self.sessions = async_sessionmaker(self.engine, class_=WriteSession, expire_on_commit=False)
        self.read_sessions = async_sessionmaker(
            self.read_engine, class_=ReadSession, expire_on_commit=False, autoflush=False
        )

    async def dispose(self) -> None:
        """Close every connection."""
        await self.engine.dispose()
        await self.read_engine.dispose()

    def readings(self) -> Iterator[Reading]:
        """Show how the pools are used."""
        for name, engine in (("write", self.engine), ("read", self.read_engine)):
            pool: Any = engine.pool
            labels = {"pool": name}
            yield Reading("database_pool_size", "Connections that the pool may have.", pool.size(), labels)
            yield Reading("database_pool_in_use", "Connections taken from the pool.", pool.checkedout(), labels)
            yield Reading("database_pool_waiting", "Tasks that wait for a connection.", pool.waiting, labels)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[WriteSession]:
        """Open a unit of work that commits at the end, for the edges that are not HTTP."""
        async with self.sessions() as session:
            yield session
            await session.commit()


def _create_engine(
    settings: DatabaseSettings, *, server_settings: dict[str, str] | None = None, **options: Any
) -> AsyncEngine:
    engine = create_async_engine(
        settings.sqlalchemy_url(),
        poolclass=_Pool,
        pool_size=settings.pool_size,
        # An overflow pool opens and closes connections under load; a fixed one queues fairly.
        max_overflow=0,
        pool_timeout=settings.pool_wait.total_seconds(),
        pool_recycle=int(settings.pool_recycle.total_seconds()),
        hide_parameters=True,
        connect_args={
            "timeout": settings.connect_timeout.total_seconds(),
            # The server cancels first and says why; this one is for a server that has gone silent.
            "command_timeout": settings.statement_timeout.total_seconds() + 1,
            "server_settings": {
                "application_name": settings.application_name,
                "statement_timeout": _milliseconds(settings.statement_timeout.total_seconds()),
                "lock_timeout": _milliseconds(settings.lock_timeout.total_seconds()),
                "idle_in_transaction_session_timeout": _milliseconds(
                    settings.idle_in_transaction_timeout.total_seconds()
                ),
                "timezone": "UTC",
                # Compiling a plan costs more than any statement of this application runs.
                "jit": "off",
                **(server_settings or {}),
            },
        },
        **options,
    )
    event.listen(engine.sync_engine, "do_connect", _connect)
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    return engine


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


def _connect(
    dialect: Dialect, _entry: ConnectionPoolEntry, args: list[Any], options: dict[str, Any]
) -> DBAPIConnection:
    """Connect, turning every way in which that fails into the one error the edges know."""
    try:
        return dialect.connect(*args, **options)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, DBAPIError, dialect.loaded_dbapi.Error) as error:
        raise DatabaseUnavailableError from error


def _refuse_closed(connection: DBAPIConnection, _entry: ConnectionPoolEntry, _proxy: object) -> None:
    """Replace a connection whose socket is known to be closed.

    The event loop has already noticed, so this costs nothing, where a ping costs a round trip per checkout. A peer
    that vanished silently is found by `command_timeout`.
    """
    driver_connection: asyncpg.Connection[Any] = connection.driver_connection
    if driver_connection.is_closed():
        raise DisconnectionError


def sqlstate(error: DBAPIError) -> str | None:
    """Give the five-letter PostgreSQL code of a failed statement."""
    return getattr(error.orig, "sqlstate", None)


def constraint_name(error: DBAPIError) -> str | None:
    """Give the name of the constraint that refused a statement."""
    cause = error.orig.__cause__ if error.orig else None
    return getattr(cause, "constraint_name", None)


def is_transient(error: Exception) -> bool:
    """Say whether trying again later may help: then the client is told 503, not 500."""
    if isinstance(error, PoolTimeoutError | TimeoutError | ConnectionError | DatabaseUnavailableError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    state = sqlstate(error)
    if state is None:
        # The driver's own errors (connection lost, protocol broken) carry no code.
        return error.connection_invalidated
    return state.startswith(_TRANSIENT_CLASSES) or state in _TRANSIENT_STATES
