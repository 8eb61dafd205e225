"""Runs a prebuilt SELECT on a pooled connection without an ORM session. Three times cheaper than a session; for hot paths."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter
from typing import Any, Protocol, override

import asyncpg
from sqlalchemy import Boolean, DateTime, Integer, Result, Select, String, Uuid
from sqlalchemy.engine import IteratorResult
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.util.concurrency import greenlet_spawn

from app.core.db.connections import pool_of
from app.core.db.failures import DatabaseUnavailableError
from app.core.db.query_log import QueryLog
from app.core.db.timeouts import current_statement_timeout

# Maximum number of compiled statements in the cache.
_MAX_PREPARED = 1000
# Timeouts of the server (statement or lock) or of the driver, and broken sockets.
_TIMEOUTS = (asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError, TimeoutError, ConnectionError)
_FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
# Column types for which SQLAlchemy does not convert the values that the driver returns.
_UNCONVERTED_TYPES = (Boolean, DateTime, Integer, String, Uuid)

type Values = Mapping[str, Any]
type Sessions = Callable[[], AsyncSession]
# Raises an error if a connection must not be used now.
type Confirm = Callable[[PoolProxiedConnection], Awaitable[None]]


class Reads(Protocol):
    """Runs single statements. Every session has this interface."""

    async def execute(self, statement: Select[*tuple[Any, ...]], values: Values, /) -> Result[Any]:
        """Run a statement, and return all of its rows."""
        ...


class SessionReads:
    """Runs each statement in a separate session."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def execute(self, statement: Select[*tuple[Any, ...]], values: Values, /) -> Result[Any]:
        """Run a statement, and return all of its rows."""
        async with self._sessions() as session:
            result: Result[Any] = await session.execute(statement, values)
            return result


@dataclass(frozen=True, slots=True)
class _Prepared:
    text: str
    names: Sequence[str]
    constants: Values
    columns: SimpleResultMetaData


class DirectReads(SessionReads):
    """Runs statements on a pooled connection, without a session.

    Each statement must be a constant: `bindparam` stands for each value that varies. The types of its columns must be those that
    the driver converts itself. A statement that fails, other than by a timeout, runs again in a session. There it succeeds, for
    example after a lost connection, or it raises the usual error of SQLAlchemy.
    """

    def __init__(
        self, engine: AsyncEngine, sessions: Sessions, query_log: QueryLog, confirm: Confirm | None = None
    ) -> None:
        super().__init__(sessions)
        self._confirm = confirm
        self._engine = engine.sync_engine
        # SQLAlchemy's pool may give a free connection to a new task before the waiting ones. A semaphore is fair.
        self._permits = asyncio.Semaphore(pool_of(engine).size())
        self._query_log = query_log
        self._prepared = lru_cache(_MAX_PREPARED)(self._prepare)

    @override
    async def execute(self, statement: Select[*tuple[Any, ...]], values: Values, /) -> Result[Any]:
        if current_statement_timeout():
            # Only a transaction can have another timeout than the connection.
            return await super().execute(statement, values)
        try:
            return await self.fetch(statement, values)
        except _TIMEOUTS as error:
            # A second attempt would reach the same timeout.
            raise DatabaseUnavailableError from error
        except _FAILURES:
            return await super().execute(statement, values)

    async def fetch(self, statement: Select[*tuple[Any, ...]], values: Values) -> Result[Any]:
        """Run a statement once, and return all of its rows. If it fails, raise the error of the driver."""
        prepared = self._prepared(statement)
        parameters = {**prepared.constants, **values}
        rows = await self._fetch(prepared.text, [parameters[name] for name in prepared.names])
        return IteratorResult(prepared.columns, iter(rows))

    async def _fetch(self, text: str, values: Sequence[Any]) -> Sequence[Any]:
        if self._permits.locked():
            await self._wait()
        else:
            await self._permits.acquire()
        try:
            return await self._fetch_now(text, values)
        finally:
            self._permits.release()

    async def _wait(self) -> None:
        pool = pool_of(self._engine)
        try:
            with pool.counted_as_waiting():
                async with asyncio.timeout(pool.timeout()):
                    await self._permits.acquire()
        except TimeoutError as error:
            raise PoolTimeoutError(f"no connection of the pool became free within {pool.timeout():g} s") from error

    async def _connection(self) -> PoolProxiedConnection:
        if pool_of(self._engine).checkedin():
            # A greenlet takes a tenth of the time of a small request, and is only needed to open a connection.
            with suppress(MissingGreenlet):
                return self._engine.raw_connection()
        return await greenlet_spawn(self._engine.raw_connection)

    async def _fetch_now(self, text: str, values: Sequence[Any]) -> Sequence[Any]:
        connection = await self._connection()
        driver: Any = connection.driver_connection
        began_at = perf_counter()
        try:
            if self._confirm is not None:
                await self._confirm(connection)
                began_at = perf_counter()
            rows: Sequence[Any] = await driver.fetch(text, *values)
        except BaseException as error:
            if not isinstance(error, _FAILURES):
                # The task was cancelled. The next user of this connection would receive the result of this statement.
                driver.terminate()
            raise
        finally:
            self._query_log.record(text, perf_counter() - began_at)
            connection.close()
        return rows

    def _prepare(self, statement: Select[*tuple[Any, ...]]) -> _Prepared:
        dialect = self._engine.dialect
        compiled = statement.compile(dialect=dialect)
        for column in statement.selected_columns:
            if not isinstance(column.type, _UNCONVERTED_TYPES):
                raise TypeError(f"SQLAlchemy may convert the values of {column}; use a session")
        return _Prepared(
            text=str(compiled),
            names=compiled.positiontup or (),
            constants=compiled.params,
            columns=SimpleResultMetaData([str(column.key) for column in statement.selected_columns]),
        )
