"""Positions in the write-ahead log: where the primary is, and how far a standby has applied the log."""

import asyncio
import logging
import random
from contextlib import suppress
from typing import Literal, NamedTuple

import asyncpg

from app.core.config import DatabaseSettings
from app.core.db.failures import DatabaseUnavailableError
from app.core.notifications import direct

# Seconds for one query of a position.
_QUERY_TIMEOUT = 1.0
_FIRST_RETRY, _MAX_RETRY = 0.1, 1.0
# Any role may call these functions. The two timelines of a standby are those of its last restartpoint and of its last written page.
IDENTITY = """
SELECT (SELECT system_identifier FROM pg_control_system()) AS system,
    (SELECT oid FROM pg_database WHERE datname = current_database()) AS database,
    pg_is_in_recovery() AS is_standby,
    greatest(
        (SELECT timeline_id FROM pg_control_checkpoint()), (SELECT min_recovery_end_timeline FROM pg_control_recovery())
    ) AS timeline,
    pg_last_wal_replay_lsn() AS applied
"""
APPLIED = "SELECT pg_last_wal_replay_lsn()"
# A commit is acknowledged when its record is flushed or, without synchronous commits, inserted.
_POSITION = """
SELECT pg_walfile_name(lsn), lsn FROM (
    SELECT CASE current_setting('synchronous_commit')
        WHEN 'off' THEN pg_current_wal_insert_lsn() ELSE pg_current_wal_flush_lsn()
    END AS lsn
) AS position
"""
# The name of a WAL file begins with the timeline, in hexadecimal digits.
_TIMELINE_DIGITS = 8

log = logging.getLogger(__name__)

type Reason = Literal["behind", "unreachable", "wrong_server", "unknown_position"]


class StandbyUnusableError(DatabaseUnavailableError):
    """The standby cannot serve a read now. The read goes to the primary."""

    def __init__(self, reason: Reason, explanation: str) -> None:
        super().__init__()
        self.reason = reason
        self.explanation = explanation


class Server(NamedTuple):
    """What a server says about itself. `applied` is None on a server that was never a standby."""

    system: int
    database: int
    is_standby: bool
    timeline: int
    applied: int | None


class Position(NamedTuple):
    """A position in the log of one timeline of one cluster. After a fail-over, the same number means another content."""

    system: int
    timeline: int
    lsn: int

    def includes(self, other: "Position") -> bool:
        """Return whether a server that has applied the log up to here has everything up to the other position."""
        return self[:2] == other[:2] and self.lsn >= other.lsn


def difference(primary: Server, given: Server) -> str | None:
    """Return why a server is no standby of the primary's database, or None if it is one."""
    if not given.is_standby:
        return "it leads to a primary; give the address of a standby, or remove the setting"
    if given.system != primary.system:
        return (
            f"it leads to another database cluster (system identifier {given.system}, DATABASE_URL has {primary.system}); "
            "give the address of a standby of that server"
        )
    if given.database != primary.database:
        return "it names another database of the same server; use the name of DATABASE_URL"
    return None


class Primary:
    """Tells the position of the primary, over one connection of its own.

    Calls that arrive while a query runs share the next query. So the primary gets one small query per round trip, however many
    reads there are.
    """

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        self._waiting: list[asyncio.Future[Position]] = []
        self._asked = asyncio.Event()
        self.connected = asyncio.Event()
        # None while there is no connection.
        self.server: Server | None = None

    async def position(self) -> Position:
        """Return a position behind every commit that was acknowledged before this call."""
        if self.server is None:
            raise _unknown()
        future: asyncio.Future[Position] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._asked.set()
        return await future

    async def run(self) -> None:
        """Serve the calls. After any error, start again with a new connection. Cancel it to stop."""
        pause = _FIRST_RETRY
        while True:
            try:
                async with direct.connected(
                    self._settings, purpose="positions", command_timeout=_QUERY_TIMEOUT
                ) as connection:
                    self.server = Server(*await connection.fetchrow(IDENTITY))
                    self.connected.set()
                    pause = _FIRST_RETRY
                    await self._serve(connection, self.server.system)
            except Exception as error:  # noqa: BLE001  # Nothing restarts this task.
                log.info("position of the primary unknown", extra={"reason": type(error).__name__})
            finally:
                self.server = None
                self._fail()
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  # Spreads reconnections.
            pause = min(2 * pause, _MAX_RETRY)

    async def _serve(self, connection: asyncpg.Connection, system: int) -> None:
        statement = await connection.prepare(_POSITION)
        # So that the loop notices a closed connection at once.
        connection.add_termination_listener(lambda _: self._asked.set())
        while True:
            await self._asked.wait()
            self._asked.clear()
            asked, self._waiting = self._waiting, []
            try:
                file, lsn = await statement.fetchrow()
            except BaseException:
                # `_fail` tells them.
                self._waiting += asked
                raise
            position = Position(system, int(file[:_TIMELINE_DIGITS], 16), lsn)
            for future in asked:
                # A request may have been cancelled meanwhile.
                with suppress(asyncio.InvalidStateError):
                    future.set_result(position)

    def _fail(self) -> None:
        failed, self._waiting = self._waiting, []
        for future in failed:
            with suppress(asyncio.InvalidStateError):
                future.set_exception(_unknown())


def _unknown() -> StandbyUnusableError:
    return StandbyUnusableError("unknown_position", "the position of the primary is unknown")
