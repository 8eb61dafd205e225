"""A proxy in front of PostgreSQL: silent, slow, deaf on one side, cutting, moving, as networks, poolers and fail-overs are."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from sqlalchemy import make_url

_NOTIFICATION = b"A"


@dataclass
class Proxy:
    """What stands in between; `url` leads through it."""

    target: str
    swallows_notifications: bool = False
    # Goes silent as soon as a client sends this.
    silent_at: bytes | None = None
    # Seconds that everything takes each way, less or more by `jitter`.
    delay: float = 0.0
    jitter: float = 0.0
    url: str = ""
    sent: bytearray = field(default_factory=bytearray)
    _flowing: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _refuses: bool = False
    _hearing: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def flows(self) -> bool:
        """Whether anything gets through."""
        return self._flowing.is_set()

    @property
    def connections(self) -> int:
        """How many there have been."""
        return len(self._tasks)

    def stall(self) -> None:
        """Keep every connection open and let nothing through: no error tells anybody."""
        self._flowing.clear()

    def resume(self) -> None:
        """Let everything through again, what was held back first."""
        self.silent_at = None
        self._flowing.set()
        self._hearing.set()

    def deafen(self) -> None:
        """Let through what clients say, and hold back every answer: commits happen that nobody learns of."""
        self._hearing.clear()

    def lead_to(self, target: str) -> None:
        """Lead new connections to another server, as an address does that moves; those that are open stay where they are."""
        self.target = target

    def cut(self) -> None:
        """End every connection and refuse new ones."""
        self._refuses = True
        for writer in self._writers:
            writer.transport.abort()

    def mend(self) -> None:
        """Accept connections again."""
        self._refuses = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
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
                # A message is a letter, its length with that of the length itself, and the rest.
                head = await reader.readexactly(5)
                message = head + await reader.readexactly(int.from_bytes(head[1:]) - 4)
                await self._hearing.wait()
                await self._pass()
                if not (self.swallows_notifications and head[:1] == _NOTIFICATION):
                    writer.write(message)
                    await writer.drain()
        writer.close()

    async def _pass(self) -> None:
        await self._flowing.wait()
        if self.delay:
            await asyncio.sleep(self.delay + random.uniform(-self.jitter, self.jitter))  # noqa: S311  # A network.

    async def close(self) -> None:
        """End whatever is left."""
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def proxied(target: str, *, swallows_notifications: bool = False) -> AsyncIterator[Proxy]:
    """Open a proxy in front of this database; connections through it are not encrypted."""
    proxy = Proxy(target, swallows_notifications)
    proxy.resume()
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = make_url(target).set(host="127.0.0.1", port=port).update_query_dict({"ssl": "disable"})
    proxy.url = url.render_as_string(hide_password=False)
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
