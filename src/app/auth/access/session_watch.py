"""Ends long responses, such as event streams, and WebSockets, when their caller may no longer read them.

The guard checks an access token when a request begins. A response that lasts for minutes needs further checks: the token may expire,
or its session may be revoked. One task per process checks the callers of all long responses, after each revocation and once a
second. It reads the revocations in memory. If those are not current, it queries the database once for all callers. A WebSocket
counts as a long response.
"""

import asyncio
import collections
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Literal, get_args
from uuid import UUID

from app.auth.access import crud
from app.auth.access.revocation import MAX_AGE, RevocationListener
from app.auth.errors import TooManyStreamsError
from app.core.db.database import Database
from app.core.observability.metrics import Counter
from app.core.shutdown import Shutdown

CHECK_INTERVAL = 1.0
# The minimum time between checks, also if there are many revocations.
_MIN_DELAY = 0.02
_QUERY_TIMEOUT = 2.0

type EndReason = Literal["expired", "revoked", "unconfirmed", "shutdown"]

_ENDED = Counter(
    "session_watches_ended",
    "Long responses that the server ended, by reason.",
    reason=get_args(EndReason.__value__),
)

log = logging.getLogger(__name__)


class SessionWatch:
    """The caller of one long response. `ended` is the reason why the response must end, or None."""

    def __init__(
        self,
        *,
        user_id: UUID,
        session_id: UUID,
        version: int,
        expires_at: int,
        on_end: Callable[[EndReason], None] = lambda _reason: None,
    ) -> None:
        self.user_id = user_id
        self.session_id = session_id
        self.version = version
        self.expires_at = expires_at
        self._on_end = on_end
        # When the token was last known to be valid. The guard has checked it just now.
        self.confirmed_at = time.monotonic()
        self.ended: EndReason | None = None
        self._waits: set[asyncio.Timeout] = set()

    def end(self, reason: EndReason) -> None:
        """End the response. Only the first reason counts."""
        if self.ended:
            return
        self.ended = reason
        _ENDED.count(reason)
        self._on_end(reason)
        for wait in self._waits:
            wait.reschedule(asyncio.get_running_loop().time())

    async def until_end[T](self, source: AsyncIterable[T]) -> AsyncIterator[T]:
        """Yield the items of `source` until it is exhausted or the response must end. Then it stops at once, without an error."""
        items = aiter(source)
        while not self.ended:
            wait = asyncio.timeout(None)
            try:
                async with wait:
                    item = await self._next(items, wait)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if wait.expired():
                    return
                raise
            # The item and the end may arrive together.
            if not self.ended:
                yield item

    async def _next[T](self, items: AsyncIterator[T], wait: asyncio.Timeout) -> T:
        self._waits.add(wait)
        try:
            return await anext(items)
        finally:
            self._waits.remove(wait)


class SessionWatches:
    """Checks the callers of all long responses of this process."""

    def __init__(
        self, database: Database, listener: RevocationListener | None, shutdown: Shutdown, *, per_account: int
    ) -> None:
        self._database = database
        self._listener = listener
        self._shutdown = shutdown
        self._per_account = per_account
        self._watches: set[SessionWatch] = set()
        self._counts: collections.Counter[UUID] = collections.Counter()
        self._wake = asyncio.Event()
        if listener:
            listener.on_change = self._wake.set

    @contextmanager
    def watching(self, watch: SessionWatch) -> Iterator[SessionWatch]:
        """Check this caller while the block runs. Raises `TooManyStreamsError` if the account has too many long responses."""
        if self._counts[watch.user_id] >= self._per_account:
            raise TooManyStreamsError
        self._watches.add(watch)
        self._counts[watch.user_id] += 1
        self._end_at_shutdown(watch)
        try:
            yield watch
        finally:
            self._watches.remove(watch)
            self._counts[watch.user_id] -= 1
            if not self._counts[watch.user_id]:
                del self._counts[watch.user_id]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Check the callers while the block runs."""
        task = asyncio.create_task(self._run(), name="session-watch")
        try:
            with self._shutdown.calling(self._wake.set):
                yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), CHECK_INTERVAL)
            self._wake.clear()
            # A copy: watches may come and go during the query.
            await self._check(list(self._watches))
            await asyncio.sleep(_MIN_DELAY)

    async def _check(self, watches: Collection[SessionWatch]) -> None:
        now = time.time()
        for watch in watches:
            self._end_at_shutdown(watch)
            if watch.expires_at <= now:
                watch.end("expired")
        open_watches = [watch for watch in watches if not watch.ended]
        if not open_watches:
            return
        if self._listener is None or not self._listener.is_current:
            await self._query(open_watches)
            return
        for watch in open_watches:
            self._look_up(self._listener, watch)

    def _end_at_shutdown(self, watch: SessionWatch) -> None:
        if self._shutdown.has_begun:
            watch.end("shutdown")

    @staticmethod
    def _look_up(listener: RevocationListener, watch: SessionWatch) -> None:
        if listener.is_revoked(session_id=watch.session_id, user_id=watch.user_id, version=watch.version):
            watch.end("revoked")
        else:
            watch.confirmed_at = time.monotonic()

    async def _query(self, watches: Collection[SessionWatch]) -> None:
        sent = time.monotonic()
        try:
            async with asyncio.timeout(_QUERY_TIMEOUT), self._database.read_sessions() as session:
                versions = await crud.versions_of_live_sessions(session, [watch.session_id for watch in watches])
        except Exception as error:  # noqa: BLE001  # Nothing restarts this task. Any failure leaves the watches unconfirmed.
            log.warning("callers of long responses not checked", extra={"reason": type(error).__name__})
            self._end_unconfirmed(watches)
            return
        for watch in watches:
            if versions.get(watch.session_id) == (watch.user_id, watch.version):
                watch.confirmed_at = sent
            else:
                watch.end("revoked")

    @staticmethod
    def _end_unconfirmed(watches: Collection[SessionWatch]) -> None:
        now = time.monotonic()
        for watch in watches:
            if now - watch.confirmed_at > MAX_AGE:
                watch.end("unconfirmed")
