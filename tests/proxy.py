"""A proxy in front of PostgreSQL. It simulates networks, poolers and failovers: it can stall, delay, cut and redirect connections."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from sqlalchemy import make_url

_NOTIFICATION = b"A"


@dataclass
class Proxy:
    """A running proxy. `url` connects through it."""

    target: str
    swallows_notifications: bool = False
    # Stalls as soon as a client sends this.
    silent_at: bytes | None = None
    # Delay in each direction, in seconds, plus or minus `jitter`.
    delay: float = 0.0
    jitter: float = 0.0
    url: str = ""
    sent: bytearray = field(default_factory=bytearray)
    _forwards: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _refuses: bool = False
    _forwards_responses: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_forwarding(self) -> bool:
        """Whether data passes through."""
        return self._forwards.is_set()

    @property
    def connections(self) -> int:
        """Number of connections since the start."""
        return len(self._tasks)

    def stall(self) -> None:
        """Keep all connections open and forward nothing, so that neither side gets an error."""
        self._forwards.clear()

    def resume(self) -> None:
        """Forward data again, including the data that was held back."""
        self.silent_at = None
        self._forwards.set()
        self._forwards_responses.set()

    def hold_responses(self) -> None:
        """Forward the requests of clients and hold back the responses, so that clients do not learn whether a commit succeeded."""
        self._forwards_responses.clear()

    def redirect_to(self, target: str) -> None:
        """Connect new connections to another server, as after a change of DNS. Open connections stay."""
        self.target = target

    def cut(self) -> None:
        """Abort all connections and refuse new ones."""
        self._refuses = True
        for writer in self._writers:
            writer.transport.abort()

    def accept(self) -> None:
        """Accept connections again."""
        self._refuses = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection."""
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        self._writers.add(writer)
        if not self._refuses:
            target = make_url(self.target)
            try:
                theirs, ours = await asyncio.open_connection(target.host, target.port)
            except OSError:
                writer.transport.abort()
                return
            self._writers.add(ours)
            await asyncio.gather(self._upwards(reader, ours), self._downwards(theirs, writer))
            ours.close()
        writer.close()

    async def _upwards(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                self.sent += data
                if self.silent_at and self.silent_at in data:
                    self.stall()
                await self._pass()
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _downwards(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                # A message has a type byte and a length of four bytes, which includes these four.
                head = await reader.readexactly(5)
                message = head + await reader.readexactly(int.from_bytes(head[1:]) - 4)
                await self._forwards_responses.wait()
                await self._pass()
                if not (self.swallows_notifications and head[:1] == _NOTIFICATION):
                    writer.write(message)
                    await writer.drain()
        writer.close()

    async def _pass(self) -> None:
        await self._forwards.wait()
        if self.delay:
            await asyncio.sleep(self.delay + random.uniform(-self.jitter, self.jitter))  # noqa: S311  # No secret.

    async def close(self) -> None:
        """Abort all connections and wait for their tasks."""
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def proxied(target: str, *, swallows_notifications: bool = False) -> AsyncIterator[Proxy]:
    """Run a proxy in front of this database. Connections through it are not encrypted."""
    proxy = Proxy(target, swallows_notifications)
    proxy.resume()
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = make_url(target).set(host="127.0.0.1", port=port).update_query_dict({"ssl": "disable"})
    proxy.url = url.render_as_string(hide_password=False)
    try:
        yield proxy
    finally:
        # asyncio leaks a connection that is accepted at the moment in which the listener is closed.
        await asyncio.sleep(0.02)
        server.close()
        await proxy.close()
