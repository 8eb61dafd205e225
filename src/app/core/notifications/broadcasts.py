"""Messages to all processes, for event streams: `publish` in a transaction, `subscribe` in any process.

PostgreSQL delivers a message to every process that listens, after the transaction has committed. Each process has one connection
for all of its subscriptions. It opens that connection for the first one. A message is not stored: a subscription that may have missed
one ends. Its client then reads the current state, and subscribes again.
"""

import asyncio
import collections
import logging
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from typing import Literal, Self, get_args

import asyncpg
from sqlalchemy import text

from app.core.config import DatabaseSettings
from app.core.db.database import WriteSession
from app.core.db.failures import DatabaseUnavailableError
from app.core.notifications import direct
from app.core.observability.metrics import Counter, Reading
from app.core.shutdown import Shutdown

CHANNEL = "broadcasts"
# PostgreSQL's limit for a notification, in bytes.
MAX_SIZE = 7_999
# Maximum number of messages that a subscription holds for a slow client.
MAX_WAITING = 100
HEARTBEAT_INTERVAL = 5.0
_COMMAND_TIMEOUT = 2.0
_FIRST_RETRY, _MAX_RETRY = 0.1, 5.0
_SEPARATOR = "\n"
_NOTIFY = text(f"SELECT pg_notify('{CHANNEL}', :content)")
_HELLO = f"NOTIFY {CHANNEL}, 'hello'"

type EndReason = Literal["slow", "lost", "shutdown"]

_ENDED = Counter(
    "broadcast_subscriptions_ended",
    "Subscriptions that ended early: the client was slow, the connection for messages was lost, or the process shuts down.",
    reason=get_args(EndReason.__value__),
)

log = logging.getLogger(__name__)


async def publish(session: WriteSession, topic: str, message: str) -> None:
    """Send a message to the subscriptions of a topic in all processes. They get it if the transaction commits, and not earlier.

    A commit with messages takes a lock of the whole database: such commits run one after the other. Topic and message together may
    have 7998 bytes; send the id of a longer one.
    """
    content = f"{topic}{_SEPARATOR}{message}"
    if not topic or _SEPARATOR in topic or len(content.encode()) > MAX_SIZE:
        error = f"a topic is one line, and topic and message together have at most {MAX_SIZE - 1} bytes"
        raise ValueError(error)
    await session.execute(_NOTIFY, {"content": content})


class Subscription:
    """The messages of one topic, in order. The iteration ends early if a message may be missing; `ended` is the reason."""

    def __init__(self) -> None:
        self.ended: EndReason | None = None
        self._messages: collections.deque[str] = collections.deque()
        self._changed = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        """Return the next message. Messages that arrived before the end are still returned."""
        while not self._messages:
            if self.ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._messages.popleft()

    def deliver(self, message: str) -> None:
        """Add a message, or end if the client has read too few."""
        if len(self._messages) >= MAX_WAITING:
            self.end("slow")
        if not self.ended:
            self._messages.append(message)
            self._changed.set()

    def end(self, reason: EndReason) -> None:
        """End after the messages that have arrived."""
        if not self.ended:
            self.ended = reason
            _ENDED.count(reason)
            self._changed.set()


class Broadcasts:
    """Receives the messages for all subscriptions of this process."""

    def __init__(self, settings: DatabaseSettings, shutdown: Shutdown) -> None:
        self._settings = settings
        self._shutdown = shutdown
        self._topics: dict[str, set[Subscription]] = collections.defaultdict(set)
        self._task: asyncio.Task[None] | None = None
        self._listening = asyncio.Event()
        self._heard = asyncio.Event()
        self._lost = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Close the connection after the block. A shutdown that begins earlier ends the subscriptions."""
        try:
            with self._shutdown.calling(lambda: self._end_all("shutdown")):
                yield self
        finally:
            if self._task:
                self._task.cancel()
                with suppress(asyncio.CancelledError):
                    await self._task

    @asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[Subscription]:
        """Yield the messages of a topic that are committed from now on. Raises an error (503) if the database is unreachable."""
        await self._start_listening()
        subscription = Subscription()
        self._topics[topic].add(subscription)
        if self._shutdown.has_begun:
            subscription.end("shutdown")
        try:
            yield subscription
        finally:
            self._topics[topic].remove(subscription)
            if not self._topics[topic]:
                del self._topics[topic]

    def readings(self) -> Iterator[Reading]:
        """Yield the number of subscriptions, as a metric."""
        count = sum(map(len, self._topics.values()))
        yield Reading("broadcast_subscriptions", "Subscriptions of this process.", count)

    async def _start_listening(self) -> None:
        if self._task is None:
            # In an empty context: that of this request has its id for log lines, and its statement timeout.
            self._task = asyncio.create_task(self._run(), name="broadcasts", context=Context())
        try:
            await asyncio.wait_for(self._listening.wait(), self._settings.connect_timeout.total_seconds())
        except TimeoutError:
            raise DatabaseUnavailableError from None

    async def _run(self) -> None:
        """Connect and receive. After any error, end all subscriptions and start again with a new connection."""
        pause = _FIRST_RETRY
        while True:
            try:
                async with direct.connected(
                    self._settings, purpose="broadcasts", command_timeout=_COMMAND_TIMEOUT
                ) as connection:
                    await self._listen(connection)
                    pause = _FIRST_RETRY
                    await self._keep_alive(connection)
            except Exception as error:  # noqa: BLE001  # Nothing restarts this task.
                log.warning("no connection for messages", extra={"reason": str(error) or type(error).__name__})
            finally:
                self._listening.clear()
                self._end_all("lost")
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  # Spreads reconnections.
            pause = min(2 * pause, _MAX_RETRY)

    async def _listen(self, connection: asyncpg.Connection) -> None:
        """Send LISTEN, and make sure that messages arrive: behind a transaction pooler they do not."""
        self._heard.clear()
        self._lost.clear()
        connection.add_termination_listener(lambda _: self._lost.set())
        await connection.add_listener(CHANNEL, self._on_notification)
        await connection.execute(_HELLO)
        try:
            await asyncio.wait_for(self._heard.wait(), _COMMAND_TIMEOUT)
        except TimeoutError:
            message = "messages do not arrive; set APP_DATABASE__DIRECT_URL to an address without a transaction pooler"
            raise ConnectionError(message) from None
        self._listening.set()

    async def _keep_alive(self, connection: asyncpg.Connection) -> None:
        """Query the server regularly: the connection of a server that is gone may stay open. This ends only with an error."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), HEARTBEAT_INTERVAL)
            await connection.execute("SELECT 1")

    def _on_notification(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self._heard.set()
        topic, separator, message = str(payload).partition(_SEPARATOR)
        if separator and topic in self._topics:
            for subscription in self._topics[topic]:
                subscription.deliver(message)

    def _end_all(self, reason: EndReason) -> None:
        for subscriptions in self._topics.values():
            for subscription in subscriptions:
                subscription.end(reason)
