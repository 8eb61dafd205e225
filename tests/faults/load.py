"""Sends writes and records each response, so that a test can compare the responses with the rows of the database."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from uuid import uuid4

# Sends one write with this id and returns the status of the response.
type Send = Callable[[str], Awaitable[int]]

NO_RESPONSE = "no response"
# Seconds until a refused client tries again.
_PAUSE = 0.05


@dataclass(frozen=True)
class Comparison:
    """The differences between the responses and the rows."""

    # Acknowledged, but not in the database.
    lost: set[str]
    # In the database, but never sent.
    invented: set[str]
    # In the database more than once.
    doubled: set[str]

    @property
    def differs(self) -> bool:
        return bool(self.lost or self.invented or self.doubled)


@dataclass
class Ledger:
    """Records for each write, by its id, when it was sent and whether it was acknowledged."""

    sent: dict[str, float] = field(default_factory=dict)
    acknowledged: set[str] = field(default_factory=set)
    responses: Counter[int | str] = field(default_factory=Counter)
    # The longest time in seconds that a client waited for a response.
    slowest: float = 0.0
    _last_sent: float = 0.0
    _next: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self, send: Send) -> bool:
        """Send one write and record the result. A broken connection counts as no response."""
        name = uuid4().hex
        self.sent[name] = monotonic()
        try:
            status = await send(name)
        except (OSError, asyncio.IncompleteReadError):
            self.responses[NO_RESPONSE] += 1
            return False
        self.responses[status] += 1
        self.slowest = max(self.slowest, monotonic() - self.sent[name])
        if status >= 300:
            return False
        self.acknowledged.add(name)
        self._last_sent = max(self._last_sent, self.sent[name])
        self._next.set()
        self._next = asyncio.Event()
        return True

    async def recovery_time(self, *, within: float) -> float:
        """Wait until a write that was sent after this call is acknowledged. Return the seconds it took."""
        since = monotonic()
        async with asyncio.timeout(within):
            while self._last_sent < since:
                await self._next.wait()
        return monotonic() - since

    async def wait_for_writes(self, count: int, *, within: float) -> None:
        """Wait until `count` more writes have been acknowledged."""
        wanted = len(self.acknowledged) + count
        async with asyncio.timeout(within):
            while len(self.acknowledged) < wanted:
                await self._next.wait()

    def compare(self, rows: Iterable[str]) -> Comparison:
        counted = Counter(rows)
        return Comparison(
            lost=self.acknowledged - counted.keys(),
            invented=counted.keys() - self.sent.keys(),
            doubled={name for name, count in counted.items() if count > 1},
        )


@asynccontextmanager
async def writing(ledger: Ledger, send: Send, *, clients: int, pause: float = _PAUSE) -> AsyncIterator[None]:
    """Let this many clients write continuously while the context lasts, then wait for their last responses."""
    stopping = asyncio.Event()

    async def client() -> None:
        while not stopping.is_set():
            if not await ledger.write(send):
                await asyncio.sleep(pause)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
        try:
            yield
        finally:
            stopping.set()
