"""Reads of GET operations from a standby, as soon as it has everything that was committed before the read."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any

import asyncpg
from sqlalchemy import URL, Select, text
from sqlalchemy.engine import Result
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.pool import PoolProxiedConnection

from app.core.config import DatabaseSettings
from app.core.db.connections import CONNECT_ERRORS, close_permanently, create_read_engine
from app.core.db.database import Database, ReadSession
from app.core.db.failures import (
    TRANSIENT_CLASSES,
    DatabaseUnavailableError,
    StandbyFailedError,
    is_transient,
    is_undone,
    reason,
    sqlstate,
)
from app.core.db.reads import DirectReads, Reads, Values
from app.core.db.retries import is_retry
from app.core.db.timeouts import current_statement_timeout
from app.core.observability.metrics import Counter, Gauge, Reading, readings_of_pool
from app.core.observability.tracing import Tracing
from app.core.standby.positions import (
    APPLIED,
    IDENTITY,
    Position,
    Primary,
    Reason,
    Server,
    StandbyUnusableError,
    difference,
)

# Seconds between two checks of the standby, and the time limit of a check.
_INTERVAL = 1.0
_CHECK_TIMEOUT = 2.0
# Seconds between two looks at a standby that is behind. Each pause is twice as long as the one before.
_FIRST_PAUSE, _MAX_PAUSE = 0.001, 0.02
# In the memory of a connection: the last known position of its server.
_KNOWN = "applied"

READS = Counter(
    "standby_reads_total",
    "Reads that could use the standby: those that did, and why the others used the primary.",
    outcome=("standby", "behind", "unreachable", "wrong_server", "unknown_position", "retried"),
)
IN_USE = Gauge("standby_in_use", "1 while reads use the standby.")
LAG = Gauge("standby_lag_bytes", "Log that the standby had not applied when last asked.")

log = logging.getLogger(__name__)

# Runs a statement on a connection, and returns its row.
type Fetch = Callable[[str], Awaitable[Sequence[Any]]]


class Standby:
    """Runs reads on a standby that has every commit before the read. If it has not, or fails, they run on the primary.

    Only GET operations use it, and only for what they show. Checks of callers, limits and writes use the `Database` itself.
    """

    def __init__(
        self, settings: DatabaseSettings, database: Database, url: URL, *, uses_sessions: bool = False
    ) -> None:
        self.engine = create_read_engine(settings, url)
        self._database = database
        self._primary = Primary(settings)
        self._max_lag = settings.read_max_lag.total_seconds()
        self._is_pooled = settings.transaction_pooler
        database.query_log.listen(self.engine.sync_engine)
        self._sessions = async_sessionmaker(self.engine, class_=ReadSession, expire_on_commit=False, autoflush=False)
        self._unusable: StandbyUnusableError | None = StandbyUnusableError("unknown_position", "it was not checked yet")
        direct = DirectReads(self.engine, self._sessions, database.query_log, self._confirm_pooled)
        self.reads: Reads = _StandbyReads(self, database, None if uses_sessions or self._is_pooled else direct)

    @property
    def reason(self) -> Reason | None:
        """Why reads do not use the standby now, or None if they do."""
        return self._unusable.reason if self._unusable else None

    def readings(self) -> Iterator[Reading]:
        yield from readings_of_pool("standby", self.engine)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[ReadSession]:
        """Open a session on the standby or, if it cannot serve this read, on the primary.

        If the standby fails later, `StandbyFailedError` makes `with_retries` run the operation again, then on the primary.
        """
        session = await self._confirmed_session()
        if session is None:
            async with self._database.read_sessions() as session:
                yield session
            return
        async with session:
            try:
                yield session
            except Exception as error:
                if not _may_succeed_elsewhere(error):
                    raise
                self.note(error)
                raise StandbyFailedError from error

    async def _confirmed_session(self) -> ReadSession | None:
        if not self.is_usable():
            return None
        session = self._sessions()
        try:
            await self._confirm_session(session)
        except BaseException as error:
            await session.invalidate()
            if not isinstance(error, Exception) or not _may_succeed_elsewhere(error):
                raise
            self.note(error)
            READS.count(self.reason or "retried")
            return None
        READS.count("standby")
        return session

    def is_usable(self) -> bool:
        """Return whether a read may try the standby. Count it if it may not."""
        if is_retry():
            READS.count("retried")
            return False
        if self._unusable:
            READS.count(self._unusable.reason)
            return False
        return True

    async def _confirm_session(self, session: ReadSession) -> None:
        connection = await session.connection()
        if not self._is_pooled:
            raw = await connection.get_raw_connection()
            driver: Any = raw.driver_connection
            await self._confirm(driver.fetchrow, raw.info)
            return

        async def fetch(statement: str) -> Sequence[Any]:
            return (await session.execute(text(statement))).one()

        # Each transaction may run on another server, so nothing about the last one is remembered.
        await self._confirm(fetch, {})

    async def _confirm_pooled(self, connection: PoolProxiedConnection) -> None:
        driver: Any = connection.driver_connection
        await self._confirm(driver.fetchrow, connection.info)

    async def _confirm(self, fetch: Fetch, memory: MutableMapping[Any, Any]) -> None:
        """Return when the server of this connection has everything that was committed before the call.

        Raises `StandbyUnusableError` if that takes too long. Several standbys can share one address, so each connection is asked.
        """
        needed = await self._primary.position()
        known: Position | None = memory.get(_KNOWN)
        if known and known.includes(needed):
            return
        give_up_at, pause = monotonic() + self._max_lag, _FIRST_PAUSE
        while True:
            known = memory[_KNOWN] = await self._applied(fetch, known, needed)
            if known.includes(needed):
                return
            if monotonic() + pause > give_up_at:
                raise StandbyUnusableError("behind", "it has not applied the latest commits")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE)

    async def _applied(self, fetch: Fetch, known: Position | None, needed: Position) -> Position:
        try:
            if known and known[:2] == needed[:2]:
                applied = known._replace(lsn=(await fetch(APPLIED))[0])
            else:
                applied = self._identified(Server(*await fetch(IDENTITY)))
        except CONNECT_ERRORS as error:
            raise StandbyUnusableError("unreachable", reason(error)) from error
        LAG.value = max(0, needed.lsn - applied.lsn)
        return applied

    def _identified(self, server: Server) -> Position:
        primary = self._primary.server
        if problem := primary and difference(primary, server):
            raise StandbyUnusableError("wrong_server", problem)
        return Position(server.system, server.timeline, server.applied or 0)

    def note(self, error: Exception) -> None:
        """Send the next reads to the primary, until a check succeeds. Not after an error that concerns one statement alone.

        Such an error is a conflict with recovery: the standby has cancelled the statement to go on applying the log.
        """
        if not _concerns_all_reads(error):
            return
        found = error if isinstance(error, StandbyUnusableError) else _unreachable(error)
        if self._unusable is None or self._unusable.reason != found.reason:
            log.warning(
                "standby not used, reads go to the primary",
                extra={"reason": found.reason, "explanation": found.explanation},
            )
        self._unusable = found
        IN_USE.value = 0

    async def run(self) -> None:
        """Follow the primary, and check the standby every second. Cancel it to stop."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._primary.run())
            with suppress(TimeoutError):
                await asyncio.wait_for(self._primary.connected.wait(), _INTERVAL)
            while True:
                await self._check()
                await asyncio.sleep(_INTERVAL)

    async def _check(self) -> None:
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT), self._sessions() as session:
                connection = await session.connection()
                # Ask the server itself, also if its last known position is still sufficient.
                (await connection.get_raw_connection()).info.pop(_KNOWN, None)
                try:
                    await self._confirm_session(session)
                except StandbyUnusableError:
                    # A new connection may lead to another server.
                    await session.invalidate()
                    raise
        except Exception as error:  # noqa: BLE001  # Nothing restarts this task.
            self.note(error)
            return
        if self._unusable:
            log.info("standby used for reads")
        self._unusable = None
        IN_USE.value = 1


class _StandbyReads:
    """Runs single statements on the standby or, if it cannot serve them, on the primary."""

    def __init__(self, standby: Standby, database: Database, direct: DirectReads | None) -> None:
        self._standby = standby
        self._database = database
        self._direct = direct

    async def execute(self, statement: Select[*tuple[Any, ...]], values: Values, /) -> Result[Any]:
        """Run a statement, and return all of its rows."""
        with suppress(StandbyFailedError):
            if self._direct is None or current_statement_timeout():
                async with self._standby.session() as session:
                    result: Result[Any] = await session.execute(statement, values)
                    return result
            if self._standby.is_usable():
                return await self._fetch(self._direct, statement, values)
        return await self._database.reads.execute(statement, values)

    async def _fetch(self, direct: DirectReads, statement: Select[*tuple[Any, ...]], values: Values) -> Result[Any]:
        try:
            result = await direct.fetch(statement, values)
        except asyncpg.QueryCanceledError as error:
            raise DatabaseUnavailableError from error
        except (*CONNECT_ERRORS, DatabaseUnavailableError, PoolTimeoutError) as error:
            self._standby.note(error)
            READS.count(self._standby.reason or "retried")
            raise StandbyFailedError from error
        READS.count("standby")
        return result


def _may_succeed_elsewhere(error: Exception) -> bool:
    """Return whether a read that failed in a session on the standby may succeed on the primary."""
    # A statement that reaches its timeout on the standby would reach it on the primary too.
    return is_transient(error) and sqlstate(error) != asyncpg.QueryCanceledError.sqlstate


def _concerns_all_reads(error: Exception) -> bool:
    if is_undone(error):
        return False
    state = sqlstate(error) if isinstance(error, DBAPIError) else getattr(error, "sqlstate", None)
    return state is None or state.startswith(TRANSIENT_CLASSES)


def _unreachable(error: Exception) -> StandbyUnusableError:
    return StandbyUnusableError("unreachable", reason(error.__cause__ or error))


@asynccontextmanager
async def reading_from_standby(
    settings: DatabaseSettings, database: Database, tracing: Tracing | None
) -> AsyncIterator[Standby | None]:
    """Keep the standby of the settings ready while the block runs. Yields None if the settings name none."""
    url = settings.read_sqlalchemy_url()
    if url is None:
        yield None
        return
    standby = Standby(settings, database, url, uses_sessions=tracing is not None)
    if tracing:
        tracing.trace_engine(standby.engine)
    task = asyncio.create_task(standby.run(), name="standby")
    try:
        yield standby
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await close_permanently(standby.engine)
        IN_USE.value = 0
