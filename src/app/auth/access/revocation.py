"""Revoked access tokens, kept in memory by each worker process, so that requests need no query.

The listener has one connection of its own, outside of the pool. It first sends LISTEN and then reads all revocations; the
other order could miss one. After that it applies notifications, and polls every second over the same connection. The poll shows
that the connection works, and finds revocations whose notification was lost. A revocation only adds an
entry or raises one, so the order of revocations and their repetition do not matter. If the last successful poll is older than
`MAX_AGE`, requests query the database instead; see `TokenStatusCheck`.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic
from uuid import UUID

import asyncpg

from app.core.config import DatabaseSettings
from app.core.notifications import direct
from app.core.observability.metrics import Reading

CHANNEL = "revocations"
# Seconds since the last successful poll. Above that, requests query the database.
MAX_AGE = 3.0
POLL_INTERVAL = 1.0
_POLL_TIMEOUT = 1.0
# The minimum time between polls, also when many notifications cannot be parsed.
_MIN_POLL_DELAY = 0.05
_FIRST_RETRY, _MAX_RETRY = 0.1, 5.0
_PROBE_TIMEOUT = 2.0
_SWEEP_INTERVAL = 60.0
_SESSION, _USER_BELOW_VERSION, _SESSIONS_BELOW_ID = 1, 2, 4
_NO_CUTOFF = UUID(int=0), 0.0
# Seconds. No access token lives longer, so an entry is not needed for longer.
_MAX_ENTRY_AGE = 17 * 60.0

# The LEFT JOIN returns the snapshot even without revocations; the next poll starts at its xmin.
_READ = """
SELECT snapshot.xmin, kind, subject, min_version
FROM (SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS xmin) AS snapshot
LEFT JOIN revocations ON revocations.expires_at > now() AND revocations.xid >= $1::text::xid8
"""
_ALL_ROWS = "0"

log = logging.getLogger(__name__)


class RevocationSet:
    """Ended sessions, users whose tokens below a version are revoked, and the last cut-off of all sessions."""

    def __init__(self) -> None:
        self._sessions: dict[UUID, float] = {}
        self._users: dict[UUID, tuple[int, float]] = {}
        self._cutoff: tuple[UUID, float] = _NO_CUTOFF

    def __len__(self) -> int:
        return len(self._sessions) + len(self._users) + (self._cutoff is not _NO_CUTOFF)

    def is_revoked(self, *, session_id: UUID, user_id: UUID, version: int) -> bool:
        return (
            session_id in self._sessions
            or version < self._users.get(user_id, (0, 0.0))[0]
            or session_id < self._cutoff[0]
        )

    def add(self, kind: int, subject: UUID | None, min_version: int | None) -> None:
        """Apply one revocation. A repeated one only keeps its entry for longer; one of an unknown kind is ignored."""
        ends = monotonic() + _MAX_ENTRY_AGE
        if kind == _SESSION and subject:
            self._sessions[subject] = ends
        elif kind == _USER_BELOW_VERSION and subject and min_version:
            self._users[subject] = (max(min_version, self._users.get(subject, (0, 0.0))[0]), ends)
        elif kind == _SESSIONS_BELOW_ID and subject:
            self._cutoff = max(self._cutoff, (subject, ends))

    def sweep(self) -> None:
        """Remove entries that no live token needs."""
        now = monotonic()
        self._sessions = {key: ends for key, ends in self._sessions.items() if ends > now}
        self._users = {key: value for key, value in self._users.items() if value[1] > now}
        if self._cutoff[1] <= now:
            self._cutoff = _NO_CUTOFF


class RevocationListener:
    """Keeps a `RevocationSet` current while the process runs."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        self._set = RevocationSet()
        self._task: asyncio.Task[None] | None = None
        self._last_ok: float | None = None
        self._cursor = _ALL_ROWS
        self._wake = asyncio.Event()
        self.loaded = asyncio.Event()
        # Called after revocations were added.
        self.on_change: Callable[[], None] = lambda: None
        self.mode = "fallback"

    def start(self) -> None:
        """Start the listener. Until its first full read, `is_current` is False."""
        self._task = asyncio.create_task(self._run(), name="revocation-listener")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def unready(self) -> str | None:
        """Return why this process is not ready: until the first full read it does not know the revocations."""
        return None if self.loaded.is_set() else "the revocations have not been read yet"

    @property
    def age(self) -> float | None:
        """Seconds since the state was last known to be complete."""
        return None if self._last_ok is None else monotonic() - self._last_ok

    def readings(self) -> Iterator[Reading]:
        for mode in ("listening", "polling", "fallback"):
            meaning = "1 for the mode in which revocations are learned. In fallback, each request queries the database."
            yield Reading("revocation_mode", meaning, mode == self.mode, {"mode": mode})
        yield Reading("revocation_entries", "Revocations in memory that live tokens may need.", len(self._set))
        # Before the first full read there is no age.
        if (age := self.age) is not None:
            yield Reading("revocation_age_seconds", "Time since the state was last known to be complete.", age)

    @property
    def is_current(self) -> bool:
        """Whether requests may rely on the set: it contains every revocation that was committed over `MAX_AGE` seconds ago."""
        age = self.age
        return age is not None and age < MAX_AGE

    def is_revoked(self, *, session_id: UUID, user_id: UUID, version: int) -> bool:
        """Return whether a token is revoked, as far as this process knows; see `is_current`."""
        return self._set.is_revoked(session_id=session_id, user_id=user_id, version=version)

    async def _run(self) -> None:
        """Connect, read all revocations, and follow the new ones. After any error, start again with a new connection."""
        pause = _FIRST_RETRY
        while True:
            try:
                async with direct.connected(
                    self._settings, purpose="revocations", command_timeout=_POLL_TIMEOUT
                ) as connection:
                    await self._listen(connection)
                    pause = _FIRST_RETRY
                    await self._follow(connection)
            except Exception as error:  # noqa: BLE001  # Nothing restarts this task.
                if self.mode != "fallback":
                    log.warning("revocation listener lost its connection", extra={"reason": type(error).__name__})
            self._last_ok, self.mode = None, "fallback"
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  # Spreads reconnections.
            pause = min(2 * pause, _MAX_RETRY)

    async def _listen(self, connection: asyncpg.Connection) -> None:
        """Send LISTEN, read all revocations, and find out whether notifications arrive."""
        self._cursor = _ALL_ROWS
        heard = asyncio.Event()

        def on_notification(_connection: object, _pid: int, _channel: str, payload: object) -> None:
            heard.set()
            self._apply(str(payload))

        # When the connection ends, this triggers a poll. Its error makes the listener reconnect.
        connection.add_termination_listener(lambda _: self._wake.set())
        await connection.add_listener(CHANNEL, on_notification)
        await self._poll(connection)
        self.mode = "listening" if await _receives_notifications(connection, heard) else "polling"
        log.info("revocations loaded", extra={"mode": self.mode, "entries": len(self._set)})
        self.loaded.set()

    async def _follow(self, connection: asyncpg.Connection) -> None:
        """Poll every `POLL_INTERVAL` seconds, and earlier when `_wake` is set. This ends only with an error."""
        swept = monotonic()
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), POLL_INTERVAL)
                await asyncio.sleep(_MIN_POLL_DELAY)
            self._wake.clear()
            await self._poll(connection)
            if monotonic() - swept > _SWEEP_INTERVAL:
                self._set.sweep()
                swept = monotonic()

    async def _poll(self, connection: asyncpg.Connection) -> None:
        # The age is counted from before the query: the result does not contain revocations that are committed while it runs.
        sent = monotonic()
        rows = await connection.fetch(_READ, self._cursor, timeout=_POLL_TIMEOUT)
        for row in rows:
            if row["kind"] is not None:
                self._set.add(row["kind"], row["subject"], row["min_version"])
        self._cursor = rows[0]["xmin"]
        self._last_ok = sent
        if rows[0]["kind"] is not None:
            self.on_change()

    def _apply(self, payload: str) -> None:
        """Apply a notification. One that cannot be parsed triggers an early poll."""
        kind, _, rest = payload.partition(" ")
        subject, _, version = rest.partition(" ")
        try:
            self._set.add(int(kind), UUID(subject), int(version) if version else None)
        except ValueError:
            self._wake.set()
        else:
            self.on_change()


async def _receives_notifications(connection: asyncpg.Connection, heard: asyncio.Event) -> bool:
    """Return whether notifications arrive. Behind a transaction pooler they do not, and only polling remains."""
    await connection.execute(f"NOTIFY {CHANNEL}, 'hello'", timeout=_POLL_TIMEOUT)
    try:
        await asyncio.wait_for(heard.wait(), _PROBE_TIMEOUT)
    except TimeoutError:
        log.warning("notifications not received; a revocation takes effect within a second, by polling")
        return False
    return True
