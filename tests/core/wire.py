"""A proxy before PostgreSQL that counts what the client sends, and can go silent."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from sqlalchemy import make_url

_SSL_REQUEST, _STARTUP = 80877103, 196608
_LENGTH = struct.Struct("!i")
_STARTUP_HEADER = struct.Struct("!ii")


class Wire:
    """What went over it: the type letters of the client's messages, and how often the client waited for an answer."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self.url = ""
        self.messages = ""
        self.flowing = asyncio.Event()
        self.flowing.set()

    @property
    def round_trips(self) -> int:
        """Sync, Query and Flush each make the client wait for the server."""
        return sum(self.messages.count(letter) for letter in "SQH")

    def forget(self) -> None:
        """Count from here."""
        self.messages = ""

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until either side ends it."""
        server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
        both = (self._upward(reader, server_writer), self._downward(server_reader, writer))
        tasks = [asyncio.ensure_future(one) for one in both]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # However this ends, both sides are closed before anything is waited for.
            for side in (writer, server_writer):
                side.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _upward(self, client: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        code = _SSL_REQUEST
        while code == _SSL_REQUEST:
            header = await client.readexactly(8)
            length, code = _STARTUP_HEADER.unpack(header)
            server.write(header + await client.readexactly(length - 8))
        while True:
            header = await client.readexactly(5)
            body = await client.readexactly(_LENGTH.unpack(header[1:])[0] - 4)
            self.messages += chr(header[0])
            await self.flowing.wait()
            server.write(header + body)

    async def _downward(self, server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while data := await server.read(65_536):
            await self.flowing.wait()
            client.write(data)


@asynccontextmanager
async def tapped(url: str) -> AsyncIterator[Wire]:
    """Put a wire before the server of this URL; its `url` leads through it."""
    target = make_url(url)
    wire = Wire(target.host or "", target.port or 5432)
    carried: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(wire.carry(reader, writer))
        carried.add(task)
        with suppress(asyncio.CancelledError):
            await task

    listener = await asyncio.start_server(carry, "127.0.0.1", 0)
    port: int = listener.sockets[0].getsockname()[1]
    wire.url = target.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
    try:
        yield wire
    finally:
        # asyncio leaks a connection whose listener is closed in the moment in which it is accepted: a driver that gives up a
        # statement opens one, to cancel it.
        await asyncio.sleep(0.02)
        listener.close()
        for task in carried:
            task.cancel()
        await asyncio.gather(*carried, return_exceptions=True)
