"""An instance that records the requests of a proxy. It can break off instead of responding, and report that it is not ready."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_NOT_READY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
# The requests of health checks, and of the test that waits for the proxy.
_READINESS = b"/readyz"
_PROBES = (_READINESS, b"/livez")


@dataclass
class Recorder:
    """The requests that arrived, and what happens to them."""

    requests: list[str] = field(default_factory=list)
    # Whether it closes the connection after each request, as a process does that is killed.
    breaks_off: bool = False
    is_ready: bool = True
    port: int = 0
    _server: asyncio.Server = field(init=False)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self._writers.add(writer)
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                path = head.split(b" ")[1]
                if path not in _PROBES:
                    self.requests.append(head.decode().lower())
                    if self.breaks_off:
                        break
                writer.write(_OK if self.is_ready or path != _READINESS else _NOT_READY)
                await writer.drain()
        writer.close()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections, and abort the open ones."""
        # asyncio leaks a connection that is accepted at the moment in which the listener is closed.
        await asyncio.sleep(0.02)
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def recorder() -> AsyncIterator[Recorder]:
    """Run it on a free port until the block ends."""
    instance = Recorder()
    await instance.start()
    try:
        yield instance
    finally:
        await instance.stop()
