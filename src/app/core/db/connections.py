"""Connections to PostgreSQL: their settings, how they are opened, and when they are replaced."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic
from typing import Any, NoReturn, cast, override

import asyncpg
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect, ExceptionContext
from sqlalchemy.exc import DBAPIError, DisconnectionError, MissingGreenlet
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry
from sqlalchemy.util.concurrency import in_greenlet

from app.core.config import DatabaseSettings
from app.core.db import tls
from app.core.db.failures import READ_ONLY, SESSION_ENDED, DatabaseUnavailableError, causes, sqlstates
from app.core.db.retries import note_commit_sent

# Exceptions that mean the server is unreachable.
REFUSALS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

# From this age on, a transaction whose connection is found closed has probably reached a limit.
_SUSPICIOUS_AGE = timedelta(seconds=1)

log = logging.getLogger(__name__)


class Recycling:
    """Replaces the connections of both pools when the server becomes read-only, and again when a server accepts writes.

    A demoted primary still answers reads, so a pool would keep its connections to it. Connections that were opened between
    the two events may also lead to the old primary, because the address may move later.
    """

    def __init__(self) -> None:
        self._is_refused = False
        self._demanded = float("-inf")

    def watch(self, writing: AsyncEngine, reading: AsyncEngine) -> None:
        """Watch the connections of these engines."""
        event.listen(writing.sync_engine, "handle_error", self._on_write_error)
        event.listen(writing.sync_engine, "connect", self._on_write_connect)
        for engine in (writing, reading):
            event.listen(engine.sync_engine, "connect", _stamp)
            event.listen(engine.sync_engine, "checkout", self._refuse_older)

    def _on_write_error(self, context: ExceptionContext) -> None:
        if READ_ONLY not in sqlstates(context.original_exception):
            return
        # The connection works, but refuses writes.
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False
        if not self._is_refused:
            log.warning("the server takes no writes; every connection to it is replaced")
            self._is_refused = True
            self._demanded = monotonic()

    def _on_write_connect(self, connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        if self._is_refused and _takes_writes(connection):
            log.warning("writes are taken again; every connection opened before is replaced")
            self._is_refused = False
            self._demanded = monotonic()

    def _refuse_older(self, _connection: DBAPIConnection, entry: ConnectionPoolEntry, _proxy: object) -> None:
        if entry.info["opened"] < self._demanded:
            raise DisconnectionError


class Pool(AsyncAdaptedQueuePool):
    """A pool that counts the tasks that wait for a connection."""

    waiting = 0

    @contextmanager
    def counted_as_waiting(self) -> Iterator[None]:
        """Count a task that waits."""
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    @override
    def _do_get(self) -> ConnectionPoolEntry:
        if self.checkedin():
            return super()._do_get()
        with self.counted_as_waiting():
            return super()._do_get()


def pool_of(engine: AsyncEngine | Engine) -> Pool:
    """Return the pool that an engine of this module uses now. The engine replaces it when connections break."""
    return cast("Pool", engine.pool)


def create_engine(settings: DatabaseSettings) -> AsyncEngine:
    """Make the engine for writing."""
    engine = _create_engine(settings, {})
    event.listen(engine.sync_engine, "commit", note_commit_sent)
    return engine


def create_read_engine(settings: DatabaseSettings) -> AsyncEngine:
    """Make the engine for reading: PostgreSQL refuses writes on it, and each statement is its own transaction."""
    # The driver would take a connection that we ourselves make read-only for one to a standby.
    target = settings.sqlalchemy_url().query["target_session_attrs"]
    arguments = {"target_session_attrs": "primary" if target == "read-write" else target}
    if settings.transaction_pooler:
        # There, only a transaction keeps several round trips, such as preparing and executing, on one connection.
        return _create_engine(settings, arguments, execution_options={"postgresql_readonly": True})
    return _create_engine(
        settings,
        arguments,
        server_settings={"default_transaction_read_only": "on"},
        isolation_level="AUTOCOMMIT",
        # Nothing to undo after single statements: giving the connection back costs no round trip.
        pool_reset_on_return=None,
    )


def _create_engine(
    settings: DatabaseSettings,
    arguments: Mapping[str, Any],
    *,
    server_settings: Mapping[str, str] | None = None,
    **options: Any,
) -> AsyncEngine:
    engine = create_async_engine(
        settings.sqlalchemy_url(),
        poolclass=Pool,
        pool_size=settings.pool_size,
        # An overflow pool opens and closes connections under load; a fixed one queues fairly.
        max_overflow=0,
        pool_timeout=settings.pool_wait.total_seconds(),
        pool_recycle=int(settings.pool_recycle.total_seconds()),
        hide_parameters=True,
        connect_args={
            "async_creator_fn": tls.connect,
            "timeout": settings.connect_timeout.total_seconds(),
            # The server cancels first and says why; this one is for a server that has gone silent.
            "command_timeout": settings.statement_timeout.total_seconds() + 1,
            **(_through_pooler(settings) if settings.transaction_pooler else _direct(settings, server_settings or {})),
            **arguments,
        },
        **options,
    )
    event.listen(engine.sync_engine, "do_connect", _connect)
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    event.listen(engine.sync_engine, "handle_error", _spare_the_others)
    event.listen(engine.sync_engine, "handle_error", _name_silence)
    _name_timeouts(engine, settings.idle_in_transaction_timeout)
    return engine


def _name_silence(context: ExceptionContext) -> Exception | None:
    """Name the database in a timeout of the driver or a broken socket: those exceptions do not say where they come from."""
    is_silence = isinstance(context.original_exception, TimeoutError | ConnectionError)
    return DatabaseUnavailableError() if is_silence else None


def _name_timeouts(engine: AsyncEngine, idle_limit: timedelta) -> None:
    """Give the error of a transaction that a limit has ended while it was idle the cause that it lacks, so that nothing repeats it.

    The server says why it closes a connection, but the driver drops that message when no statement is running. The age of the
    transaction has to tell a limit from a server that crashed. Limits set outside of this application count as well.
    """
    suspicious_age = min(idle_limit, _SUSPICIOUS_AGE).total_seconds()

    def name(context: ExceptionContext) -> None:
        if context.connection is None or not context.is_disconnect or any(sqlstates(context.original_exception)):
            return
        if monotonic() - context.connection.info["began"] >= suspicious_age:
            last = list(causes(context.original_exception))[-1]
            last.__cause__ = asyncpg.IdleInTransactionSessionTimeoutError("the transaction was idle, or open, too long")
            context.invalidate_pool_on_disconnect = False

    event.listen(engine.sync_engine, "begin", _note_begin)
    event.listen(engine.sync_engine, "handle_error", name)


def _note_begin(connection: Connection) -> None:
    connection.info["began"] = monotonic()


def _common(settings: DatabaseSettings) -> dict[str, str]:
    return {"application_name": settings.application_name, "timezone": "UTC"}


def _limits(settings: DatabaseSettings) -> dict[str, str]:
    # Compiling a plan costs more than any statement of this application runs.
    return {"jit": "off"} | {name: milliseconds(limit) for name, limit in settings.limits.items()}


def _direct(settings: DatabaseSettings, server_settings: Mapping[str, str]) -> dict[str, Any]:
    return {"server_settings": {**_common(settings), **_limits(settings), **server_settings}}


def _through_pooler(settings: DatabaseSettings) -> dict[str, Any]:
    """Share sessions with others: nothing is said when connecting that a pooler refuses, nothing prepared for later."""
    limits = "".join(f" SET LOCAL {name} = '{value}';" for name, value in _limits(settings).items())
    return {
        "server_settings": _common(settings),
        "connection_class": type("PooledConnection", (_PooledConnection,), {"limits": limits}),
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
        "prepared_statement_name_func": str,
    }


def milliseconds(limit: timedelta) -> str:
    """Write a limit as PostgreSQL takes it."""
    return str(round(limit.total_seconds() * 1000))


def each_host(options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the driver's options for one host after the other: one that is silent must not use up the time of the next."""
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
        # Before the driver makes a coroutine that nobody awaits.
        message = "a connection is opened in a greenlet"
        raise MissingGreenlet(message)
    refusal: Exception | None = None
    for place in each_host(options):
        try:
            return dialect.connect(*args, **place)
        except (*REFUSALS, DBAPIError, dialect.loaded_dbapi.Error) as error:
            refusal = error
    raise DatabaseUnavailableError from refusal


async def close_for_good(engine: AsyncEngine) -> None:
    """Close every connection of an engine, and refuse to open another: nobody would close that one."""
    if event.contains(engine.sync_engine, "do_connect", _connect):
        event.remove(engine.sync_engine, "do_connect", _connect)
        event.listen(engine.sync_engine, "do_connect", _refuse_disposed)
    await engine.dispose()


def _refuse_disposed(*_: object) -> NoReturn:
    message = "this database has been disposed of, because its application has ended; make another one"
    raise RuntimeError(message)


def _refuse_closed(connection: DBAPIConnection, _entry: ConnectionPoolEntry, _proxy: object) -> None:
    """Replace a connection whose socket is known to be closed.

    The event loop has already noticed, so this costs nothing, where a ping costs a round trip per checkout. A peer
    that vanished silently is found by `command_timeout`.
    """
    driver_connection: asyncpg.Connection[Any] = connection.driver_connection
    if driver_connection.is_closed():
        raise DisconnectionError


def _spare_the_others(context: ExceptionContext) -> None:
    # The library would replace all of the pool. That is right when a connection broke off, as others may have. Here the
    # server says that it ends this one; if it ends the others too, their checkout notices.
    if SESSION_ENDED.intersection(sqlstates(context.original_exception)):
        context.invalidate_pool_on_disconnect = False


def _takes_writes(connection: DBAPIConnection) -> bool:
    # PostgreSQL tells both whenever they change, so this asks nobody.
    told = connection.driver_connection.get_settings()
    return all(getattr(told, name, "off") == "off" for name in ("in_hot_standby", "default_transaction_read_only"))


def _stamp(_connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
    entry.info["opened"] = monotonic()


class _PooledConnection(asyncpg.Connection):  # type: ignore[misc]  # The driver publishes no types.
    """A connection through a transaction pooler: the next transaction is in another session, so each brings its limits."""

    limits = ""

    @override
    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        if query.startswith("BEGIN"):
            query += self.limits
        status: str = await super().execute(query, *args, timeout=timeout)
        return status
