"""A listening server in the test process, with a small ASGI application and bare TCP clients."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

from app.core.config import ServerSettings
from app.core.http.middleware import RequestMiddleware
from app.server.connections import Connections
from app.server.requests import Connection

HOST = b"Host: test\r\n"
GET = b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n"
LAST_GET = b"GET /last HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
LARGE = 8_000_000


@dataclass
class Application:
    """Responds with the path and the size of the body.

    `/wait` waits for `may_respond` before it reads, and `/halting` between two parts of its response. `/early` and `/halting` do
    not read the body. `/large` has a large response, and `/injecting` a header with a line break.
    """

    requests: list[tuple[str, bytes]] = field(default_factory=list)
    scopes: list[Scope] = field(default_factory=list)
    may_respond: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["path"] == "/wait":
            await self.may_respond.wait()
        body, more = b"", scope["path"] not in {"/early", "/halting"}
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.requests.append((scope["path"], body))
        content = b"x" * LARGE if scope["path"] == "/large" else b"%b %d" % (scope["path"].encode(), len(body))
        headers = [(b"content-length", str(len(content)).encode())]
        if scope["path"] == "/injecting":
            headers.append((b"location", b"/a\r\nset-cookie: b=c"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["path"] == "/halting":
            await send({"type": "http.response.body", "body": content[:1], "more_body": True})
            await self.may_respond.wait()
            content = content[1:]
        await send({"type": "http.response.body", "body": content})


@dataclass
class Response:
    """One response, as the client received it."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str | None:
        """The code of a problem document."""
        return json.loads(self.body)["code"] if "problem" in self.headers.get("content-type", "") else None


class Client:
    """A bare TCP connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def receive(self) -> Response:
        """Read one response."""
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().splitlines()
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Response(int(head[0].split(" ")[1]), headers, body)

    async def is_closed(self) -> bool:
        """Wait until the server closes the connection. Returns False if it sends anything before."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read() == b""
            except ConnectionResetError:
                return True


@dataclass
class LocalServer:
    """A listening server in this process. The test decides what time its timeouts see."""

    application: Application
    connections: Connections
    address: tuple[str, int]

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            yield Client(reader, writer)
        finally:
            writer.close()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110  # The server sends no event when its state changes.
                await asyncio.sleep(0.001)

    async def wait_for_state(self, state: Callable[[Connection], bool]) -> None:
        """Wait until there is a connection, and every connection is in this state."""
        await self.wait_until(lambda: bool(self.open_connections) and all(map(state, self.open_connections)))

    @property
    def open_connections(self) -> list[Connection]:
        return [one for one in self.connections.connections if isinstance(one, Connection)]

    def enforce_timeouts_in(self, seconds: float) -> None:
        """Enforce the timeouts as if this time had passed."""
        self.connections.enforce_timeouts(asyncio.get_running_loop().time() + seconds)


@asynccontextmanager
async def local_server(
    *, limit: int = 100, app: Any = None, state: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[LocalServer]:
    application = Application()
    wrapped = RequestMiddleware(application, max_body_size=1_048_576, hsts=False)
    config = uvicorn.Config(app or wrapped, http=Connection, ws="none", log_config=None, access_log=False)
    config.load()
    connections = Connections(ServerSettings(**settings), limit=limit)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: Connection(config, connections, state or {}, loop), "127.0.0.1", 0)
    server = LocalServer(application, connections, listener.sockets[0].getsockname())
    try:
        yield server
    finally:
        application.may_respond.set()
        # asyncio leaks a connection that is accepted at the moment in which the listener is closed.
        await asyncio.sleep(0.02)
        listener.close()
        for connection in server.open_connections:
            connection.transport.abort()
        await server.wait_until(lambda: not connections.connections and not connections.tasks)
