"""Connections to PostgreSQL: their settings, how they are opened, and when they are replaced."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic
from typing import Any, NoReturn, cast, override

import asyncpg
from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect, ExceptionContext
from sqlalchemy.exc import DBAPIError, DisconnectionError, MissingGreenlet
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.util.concurrency import in_greenlet

from app.core.config import DatabaseSettings
from app.core.db import tls
from app.core.db.failures import READ_ONLY, SESSION_ENDED, DatabaseUnavailableError, causes, sqlstates
from app.core.db.retries import note_commit_sent
from app.core.db.timeouts import current_statement_timeout

# Errors of a failed connection attempt.
CONNECT_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

# If the connection of a transaction of this age or older is closed, the reason is probably a timeout.
_SUSPICIOUS_AGE = timedelta(seconds=1)
# The statements with which the driver ends a transaction. `ROLLBACK TO` ends only a savepoint.
_ENDS_OF_TRANSACTIONS = frozenset({"COMMIT;", "ROLLBACK;"})

log = logging.getLogger(__name__)


class Recycling:
    """Replaces the connections of both pools when the server becomes read-only, and again when a server accepts writes.

    A demoted primary still answers reads, so a pool would keep its connections to it. Connections that were opened between
    the two events may also lead to the old primary, because the address may move later.
    """

    def __init__(self) -> None:
        self._is_read_only = False
        self._replace_older_than = float("-inf")

    def watch(self, writing: AsyncEngine, reading: AsyncEngine) -> None:
        event.listen(writing.sync_engine, "handle_error", self._on_write_error)
        event.listen(writing.sync_engine, "connect", self._on_write_connect)
        for engine in (writing, reading):
            event.listen(engine.sync_engine, "connect", _note_opened)
            event.listen(engine.sync_engine, "checkout", self._replace_older)

    def _on_write_error(self, context: ExceptionContext) -> None:
        if READ_ONLY not in sqlstates(context.original_exception):
            return
        # The connection works, but rejects writes.
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False
        if not self._is_read_only:
            log.warning("server rejects writes, all connections are replaced")
            self._is_read_only = True
            self._replace_older_than = monotonic()

    def _on_write_connect(self, connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        if self._is_read_only and _accepts_writes(connection):
            log.warning("server accepts writes again, all older connections are replaced")
            self._is_read_only = False
            self._replace_older_than = monotonic()

    def _replace_older(self, _connection: DBAPIConnection, entry: ConnectionPoolEntry, _proxy: object) -> None:
        if entry.info["opened"] < self._replace_older_than:
            raise DisconnectionError


class Pool(AsyncAdaptedQueuePool):
    """A pool that counts the tasks that wait: until another task returns a connection, or until a new one is open."""

    waiting = 0

    @contextmanager
    def counted_as_waiting(self) -> Iterator[None]:
        """Count the current task as waiting while the block runs."""
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    @override
    def connect(self) -> PoolProxiedConnection:
        if self.checkedin():
            return super().connect()
        with self.counted_as_waiting():
            return super().connect()


def pool_of(engine: AsyncEngine | Engine) -> Pool:
    """Return the current pool of an engine. Do not store it: the engine replaces its pool when connections break."""
    return cast("Pool", engine.pool)


def create_engine(settings: DatabaseSettings) -> AsyncEngine:
    engine = _create_engine(settings, settings.sqlalchemy_url(), {})
    event.listen(engine.sync_engine, "commit", note_commit_sent)
    return engine


def create_read_engine(settings: DatabaseSettings, url: URL | None = None) -> AsyncEngine:
    """Create the engine for reading, on which PostgreSQL rejects writes. `url` replaces that of the settings.

    Each statement is a transaction of its own. Behind a transaction pooler, all statements of a session share one transaction.
    """
    # With `read-write`, the driver would reject these connections, because they cannot write.
    url = url or settings.sqlalchemy_url()
    target = url.query["target_session_attrs"]
    arguments = {"target_session_attrs": "primary" if target == "read-write" else target}
    if settings.transaction_pooler:
        # Prepare and execute are two round trips. Behind a pooler, only a transaction keeps both on one connection.
        return _create_engine(settings, url, arguments, execution_options={"postgresql_readonly": True})
    return _create_engine(
        settings,
        url,
        arguments,
        server_settings={"default_transaction_read_only": "on"},
        isolation_level="AUTOCOMMIT",
        # After single statements there is nothing to roll back, so returning the connection costs no round trip.
        pool_reset_on_return=None,
    )


def _create_engine(
    settings: DatabaseSettings,
    url: URL,
    arguments: dict[str, Any],
    *,
    server_settings: Mapping[str, str] | None = None,
    **options: Any,
) -> AsyncEngine:
    engine = create_async_engine(
        url,
        poolclass=Pool,
        pool_size=settings.pool_size,
        # An overflow pool opens and closes connections under load; a fixed one queues fairly.
        max_overflow=0,
        pool_timeout=settings.pool_wait.total_seconds(),
        pool_recycle=int(settings.pool_recycle.total_seconds()),
        hide_parameters=True,
        connect_args=_connect_arguments(settings, server_settings or {}) | arguments,
        **options,
    )
    event.listen(engine.sync_engine, "do_connect", _connect)
    event.listen(engine.sync_engine, "checkout", _replace_closed)
    event.listen(engine.sync_engine, "handle_error", _keep_other_connections)
    event.listen(engine.sync_engine, "handle_error", _as_database_unavailable)
    _add_timeout_causes(engine, settings.idle_in_transaction_timeout)
    return engine


def _connect_arguments(settings: DatabaseSettings, server_settings: Mapping[str, str]) -> dict[str, Any]:
    startup = {"application_name": settings.application_name, "timezone": "UTC"}
    # JIT compilation takes longer than any statement of this application.
    session = {"jit": "off"} | {name: milliseconds(limit) for name, limit in settings.limits.items()}
    arguments = {
        "async_creator_fn": tls.connect,
        "timeout": settings.connect_timeout.total_seconds(),
        # For a server that does not respond. Otherwise its statement timeout ends the statement first, and gives the reason.
        "command_timeout": _command_timeout(settings.statement_timeout),
        "server_settings": {**startup, **session, **server_settings},
        "connection_class": _Connection,
    }
    if not settings.transaction_pooler:
        return arguments
    after_begin = "".join(f" SET LOCAL {name} = '{value}';" for name, value in session.items())
    return arguments | {
        # A transaction pooler rejects other startup parameters, and cannot keep statements prepared for later.
        "server_settings": startup,
        "connection_class": type("PooledConnection", (_Connection,), {"after_begin": after_begin}),
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
        "prepared_statement_name_func": str,
    }


def _command_timeout(statement_timeout: timedelta) -> float:
    return statement_timeout.total_seconds() + 1


def _as_database_unavailable(context: ExceptionContext) -> Exception | None:
    """Return a `DatabaseUnavailableError` to raise instead of a `TimeoutError` or `ConnectionError` of the driver.

    Those builtin exceptions do not show that they come from the database.
    """
    is_unreachable = isinstance(context.original_exception, TimeoutError | ConnectionError)
    return DatabaseUnavailableError() if is_unreachable else None


def _add_timeout_causes(engine: AsyncEngine, idle_limit: timedelta) -> None:
    """Add the cause to the error of a transaction that a timeout has ended, so that its work is not retried.

    The server sends the reason before it closes the connection, but the driver drops that message while no statement runs. So the
    age of the transaction decides whether a timeout or a crash of the server was the reason. A role or a database can have more
    timeouts than the settings, such as `transaction_timeout`, so a transaction of one second is old enough.
    """
    suspicious_age = min(idle_limit, _SUSPICIOUS_AGE).total_seconds()

    def add_cause(context: ExceptionContext) -> None:
        if context.connection is None or not context.is_disconnect or any(sqlstates(context.original_exception)):
            return
        if monotonic() - context.connection.info["began"] >= suspicious_age:
            last = list(causes(context.original_exception))[-1]
            last.__cause__ = asyncpg.IdleInTransactionSessionTimeoutError(
                "the transaction was idle or open for too long"
            )
            context.invalidate_pool_on_disconnect = False

    event.listen(engine.sync_engine, "begin", _note_begin)
    event.listen(engine.sync_engine, "handle_error", add_cause)


def _note_begin(connection: Connection) -> None:
    connection.info["began"] = monotonic()


def milliseconds(limit: timedelta) -> str:
    """Return a time limit in the format of PostgreSQL's settings."""
    return str(round(limit.total_seconds() * 1000))


def each_host(options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the driver's options for each host, so that each has the full timeout, even after a host that does not respond."""
    hosts, ports = options.get("host"), options.get("port")
    if not isinstance(hosts, list) or not isinstance(ports, list):
        yield dict(options)
        return
    for host, port in zip(hosts, ports, strict=True):
        yield {**options, "host": host, "port": port}


def _connect(
    dialect: Dialect, _entry: ConnectionPoolEntry, args: list[Any], options: dict[str, Any]
) -> DBAPIConnection:
    """Connect. Every failure becomes a `DatabaseUnavailableError`."""
    if not in_greenlet():
        # Raise before the driver creates a coroutine that would never be awaited.
        raise MissingGreenlet("a connection must be opened in a greenlet")
    refusal: Exception | None = None
    for host_options in each_host(options):
        try:
            return dialect.connect(*args, **host_options)
        except (*CONNECT_ERRORS, DBAPIError, dialect.loaded_dbapi.Error) as error:
            refusal = error
    raise DatabaseUnavailableError from refusal


async def close_permanently(engine: AsyncEngine) -> None:
    """Close every connection of an engine. Later attempts to connect fail, because nothing would close such a connection."""
    if event.contains(engine.sync_engine, "do_connect", _connect):
        event.remove(engine.sync_engine, "do_connect", _connect)
        event.listen(engine.sync_engine, "do_connect", _refuse_disposed)
    await engine.dispose()


def _refuse_disposed(*_: object) -> NoReturn:
    raise RuntimeError("this database has been disposed of, because its application has stopped; create another one")


def _replace_closed(connection: DBAPIConnection, _entry: ConnectionPoolEntry, _proxy: object) -> None:
    """Make the pool replace a connection whose socket is closed. For a `DisconnectionError`, SQLAlchemy opens a new one.

    The event loop already knows that the socket is closed, so this check is free. A ping would cost a round trip per checkout.
    `command_timeout` detects a server that has disappeared without closing the connection.
    """
    driver_connection: asyncpg.Connection[Any] = connection.driver_connection
    if driver_connection.is_closed():
        raise DisconnectionError


def _keep_other_connections(context: ExceptionContext) -> None:
    # After a lost connection, SQLAlchemy replaces the whole pool, because others may be lost too. Here the server ended this
    # connection on purpose. If it also ended others, `_replace_closed` detects each one at its checkout.
    if SESSION_ENDED.intersection(sqlstates(context.original_exception)):
        context.invalidate_pool_on_disconnect = False


def _accepts_writes(connection: DBAPIConnection) -> bool:
    # PostgreSQL reports both settings to clients, so this needs no query.
    reported = connection.driver_connection.get_settings()
    return all(getattr(reported, name, "off") == "off" for name in ("in_hot_standby", "default_transaction_read_only"))


def _note_opened(_connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
    entry.info["opened"] = monotonic()


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # The driver publishes no types.
    """A connection whose transactions have the timeouts of the running operation or job.

    Through a transaction pooler, each transaction may run in another session, so each BEGIN sets all timeouts.
    """

    after_begin = ""
    _has_other_timeout = False
    _usual_config: Any = None

    @override
    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        if query.startswith("BEGIN"):
            query += self.after_begin + self._own_timeout()
        try:
            status: str = await super().execute(query, *args, timeout=timeout)
        finally:
            if self._has_other_timeout and query in _ENDS_OF_TRANSACTIONS:
                self._has_other_timeout = False
                self._config = self._usual_config
        return status

    def _own_timeout(self) -> str:
        """Return the statement that sets another timeout for this transaction. The driver waits longer for the server, too."""
        limit = current_statement_timeout()
        if limit is None:
            return ""
        self._has_other_timeout, self._usual_config = True, self._config
        self._config = self._config._replace(command_timeout=_command_timeout(limit))
        return f" SET LOCAL statement_timeout = '{milliseconds(limit)}';"
