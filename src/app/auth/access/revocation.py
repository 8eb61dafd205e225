"""What has been revoked, known to every worker without asking: a set in memory, fed by LISTEN and fenced by a poll.

One connection of its own, never from the pool: LISTEN first, then read everything (the other way round loses an event);
after that, notifications are applied as they come, and a poll every second over the same connection is heartbeat, gap
repair and fence in one. Entries only ever grow, so neither order nor repetition matters. While the last successful poll
is older than `FENCE`, or the connection is away, the database is asked for each request instead; see `AccessCheck`.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any
from uuid import UUID

import asyncpg

from app.core.config import DatabaseSettings
from app.core.db import tls
from app.core.db.connections import REFUSALS, each_host
from app.core.observability.metrics import Reading

CHANNEL = "revocations"
FENCE = 3.0
POLL_INTERVAL = 1.0
_POLL_TIMEOUT = 1.0
# A flood of what cannot be read brings no more polls than this apart.
_EARLY_POLL = 0.05
_RETRY_FIRST, _RETRY_MOST = 0.1, 5.0
_PROBE_PATIENCE = 2.0
_SWEEP_INTERVAL = 60.0
_SESSION_ENDED, _USER_BELOW, _SESSIONS_BEFORE = 1, 2, 4
_NOTHING = UUID(int=0), 0.0
# No token outlives this, so no entry need.
_LONGEST = 17 * 60.0

# The row of the snapshot is there even when nothing was revoked: its xmin is where the next poll begins.
_READ = """
SELECT snapshot.xmin, kind, subject, min_version
FROM (SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS xmin) AS snapshot
LEFT JOIN revocations ON revocations.expires_at > now() AND revocations.xid >= $1::text::xid8
"""
_EVERYTHING = "0"
_MODES = ("listening", "polling", "fallback")

log = logging.getLogger(__name__)


class RevocationSet:
    """Ended sessions, users below a version, and the end of all sessions at once."""

    def __init__(self) -> None:
        self._sessions: dict[UUID, float] = {}
        self._users: dict[UUID, tuple[int, float]] = {}
        self._cutoff: tuple[UUID, float] = _NOTHING

    def __len__(self) -> int:
        return len(self._sessions) + len(self._users) + (self._cutoff is not _NOTHING)

    def covers(self, *, session_id: UUID, user_id: UUID, version: int) -> bool:
        """Say whether a token of these is revoked."""
        return (
            session_id in self._sessions
            or version < self._users.get(user_id, (0, 0.0))[0]
            or session_id < self._cutoff[0]
        )

    def add(self, kind: int, subject: UUID | None, min_version: int | None) -> None:
        """Apply one revocation; one applied before, or of another kind, changes nothing."""
        ends = monotonic() + _LONGEST
        if kind == _SESSION_ENDED and subject:
            self._sessions[subject] = ends
        elif kind == _USER_BELOW and subject and min_version:
            self._users[subject] = (max(min_version, self._users.get(subject, (0, 0.0))[0]), ends)
        elif kind == _SESSIONS_BEFORE and subject:
            self._cutoff = max(self._cutoff, (subject, ends))

    def sweep(self) -> None:
        """Drop what no token can still need."""
        now = monotonic()
        self._sessions = {key: ends for key, ends in self._sessions.items() if ends > now}
        self._users = {key: value for key, value in self._users.items() if value[1] > now}
        if self._cutoff[1] <= now:
            self._cutoff = _NOTHING


class RevocationListener:
    """Keeps a `RevocationSet` current for as long as the process runs."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        self._set = RevocationSet()
        self._task: asyncio.Task[None] | None = None
        self._last_ok: float | None = None
        self._cursor = _EVERYTHING
        self._wake = asyncio.Event()
        self.loaded = asyncio.Event()
        self.mode = "fallback"

    def start(self) -> None:
        """Begin to listen; until the first full read the database is asked."""
        self._task = asyncio.create_task(self._run(), name="revocation-listener")

    async def stop(self) -> None:
        """Stop and close the connection."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def unready(self) -> str | None:
        """Say what keeps this process from serving: until the first full read it has no state of its own."""
        return None if self.loaded.is_set() else "the revocations have not been read yet"

    @property
    def age(self) -> float | None:
        """Seconds since the state was last known to be complete."""
        return None if self._last_ok is None else monotonic() - self._last_ok

    def readings(self) -> Iterator[Reading]:
        """Show how the state is kept current, how old it is and how large."""
        for mode in _MODES:
            meaning = (
                "1 for the way in which revocations are learned; in fallback the database is asked for each request."
            )
            yield Reading("revocation_mode", meaning, mode == self.mode, {"mode": mode})
        yield Reading("revocation_entries", "Revocations that tokens still alive might need.", len(self._set))
        # There is no age of what has never been known.
        if (age := self.age) is not None:
            yield Reading("revocation_age_seconds", "Time since the state was last known to be complete.", age)

    @property
    def is_current(self) -> bool:
        """Whether the set may decide: what it does not hold has not been revoked more than `FENCE` seconds ago."""
        age = self.age
        return age is not None and age < FENCE

    def covers(self, *, session_id: UUID, user_id: UUID, version: int) -> bool:
        """Say whether a token is revoked, as far as this process knows; see `is_current`."""
        return self._set.covers(session_id=session_id, user_id=user_id, version=version)

    async def _run(self) -> None:
        pause = _RETRY_FIRST
        while True:
            try:
                async with _connected(self._settings) as connection:
                    await self._listen(connection)
                    pause = _RETRY_FIRST
                    await self._follow(connection)
            except Exception as error:  # noqa: BLE001  # Whatever it is: a listener that has ended would never be missed.
                if self.mode != "fallback":
                    log.warning("revocation listener lost its connection", extra={"reason": type(error).__name__})
            self._last_ok, self.mode = None, "fallback"
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  # Spreads reconnections.
            pause = min(2 * pause, _RETRY_MOST)

    async def _listen(self, connection: asyncpg.Connection) -> None:
        self._cursor = _EVERYTHING
        heard = asyncio.Event()

        def on_notification(_connection: object, _pid: int, _channel: str, payload: object) -> None:
            heard.set()
            self._apply(str(payload))

        # A connection that ends is noticed by the poll, and this makes it come at once.
        connection.add_termination_listener(lambda _: self._wake.set())
        await connection.add_listener(CHANNEL, on_notification)
        await self._poll(connection)
        self.mode = "listening" if await _hears_itself(connection, heard) else "polling"
        log.info("revocations are known", extra={"mode": self.mode, "entries": len(self._set)})
        self.loaded.set()

    async def _follow(self, connection: asyncpg.Connection) -> None:
        swept = monotonic()
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), POLL_INTERVAL)
                await asyncio.sleep(_EARLY_POLL)
            self._wake.clear()
            await self._poll(connection)
            if monotonic() - swept > _SWEEP_INTERVAL:
                self._set.sweep()
                swept = monotonic()

    async def _poll(self, connection: asyncpg.Connection) -> None:
        # Stamped with the time it was sent: an answer that took long says nothing about what came meanwhile.
        sent = monotonic()
        rows = await connection.fetch(_READ, self._cursor, timeout=_POLL_TIMEOUT)
        for row in rows:
            if row["kind"] is not None:
                self._set.add(row["kind"], row["subject"], row["min_version"])
        self._cursor = rows[0]["xmin"]
        self._last_ok = sent

    def _apply(self, payload: str) -> None:
        """Apply a notification at once; one that cannot be read makes the poll come early."""
        kind, _, rest = payload.partition(" ")
        subject, _, version = rest.partition(" ")
        try:
            self._set.add(int(kind), UUID(subject), int(version) if version else None)
        except ValueError:
            self._wake.set()


async def _hears_itself(connection: asyncpg.Connection, heard: asyncio.Event) -> bool:
    """Say whether notifications arrive: behind a transaction pooler they do not, and the poll has to do."""
    await connection.execute(f"NOTIFY {CHANNEL}, 'hello'", timeout=_POLL_TIMEOUT)
    try:
        await asyncio.wait_for(heard.wait(), _PROBE_PATIENCE)
    except TimeoutError:
        log.warning("notifications do not arrive here; revocations take up to a second to be known")
        return False
    return True


@asynccontextmanager
async def _connected(settings: DatabaseSettings) -> AsyncIterator[asyncpg.Connection]:
    url = settings.direct_sqlalchemy_url()
    # Read as the engines read it: the driver's own reader takes `ssl` for a setting of the server.
    _, options = url.get_dialect()().create_connect_args(url)
    connection = await _connect(settings, options)
    try:
        yield connection
    finally:
        # Closing politely would wait for a peer that may be gone.
        connection.terminate()


async def _connect(settings: DatabaseSettings, options: Mapping[str, Any]) -> asyncpg.Connection:
    refusal: Exception = OSError()
    for place in each_host(options):
        try:
            return await tls.connect(
                **place,
                timeout=settings.connect_timeout.total_seconds(),
                # For LISTEN, too: a socket that has gone silent must not keep us from trying another.
                command_timeout=_POLL_TIMEOUT,
                statement_cache_size=0,
                server_settings={"application_name": f"{settings.application_name}-revocations"},
            )
        except REFUSALS as error:
            refusal = error
    raise refusal
