"""Writes whose every sending and every answer is kept, so that what the database holds in the end can be held against them."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from uuid import uuid4

# Sends one write under this id, and gives the status of the answer.
type Send = Callable[[str], Awaitable[int]]

NO_ANSWER = "no answer"
# A client that is refused comes back, and not at once.
_PAUSE = 0.05


@dataclass(frozen=True)
class Comparison:
    """What is wrong between the answers and the rows: all of it is empty when nothing is."""

    # Acknowledged, and not there.
    lost: set[str]
    # There, and never sent.
    invented: set[str]
    # There more than once.
    doubled: set[str]

    @property
    def differs(self) -> bool:
        return bool(self.lost or self.invented or self.doubled)


@dataclass
class Ledger:
    """Each write by its id: when it was sent, and whether it was acknowledged."""

    sent: dict[str, float] = field(default_factory=dict)
    acknowledged: set[str] = field(default_factory=set)
    answers: Counter[int | str] = field(default_factory=Counter)
    # The longest that a client waited for any answer.
    slowest: float = 0.0
    _last_sent: float = 0.0
    _next: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self, send: Send) -> bool:
        """Send one write and keep how it went; a broken connection is an answer that did not come."""
        name = uuid4().hex
        self.sent[name] = monotonic()
        try:
            status = await send(name)
        except (OSError, asyncio.IncompleteReadError):
            self.answers[NO_ANSWER] += 1
            return False
        self.answers[status] += 1
        self.slowest = max(self.slowest, monotonic() - self.sent[name])
        if status >= 300:
            return False
        self.acknowledged.add(name)
        self._last_sent = max(self._last_sent, self.sent[name])
        self._next.set()
        self._next = asyncio.Event()
        return True

    async def works_again(self, *, within: float) -> float:
        """Wait until a write sent from now on is acknowledged; give the seconds that took."""
        since = monotonic()
        async with asyncio.timeout(within):
            while self._last_sent < since:
                await self._next.wait()
        return monotonic() - since

    async def acknowledges(self, count: int, *, within: float) -> None:
        """Wait until so many more writes have been acknowledged."""
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
    """Have this many clients write without a break until the block ends; what is in flight then is waited for."""
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
