"""WebSockets over real sockets: malformed handshakes and frames, floods, and clients that stop reading or answering."""

import asyncio
import base64
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from hashlib import sha1
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from app.core.http.middleware import RequestMiddleware
from app.server import sockets
from app.server.sockets import ClientGoneError, SocketConnection
from tests.server.local_server import GET, HOST, Client, LocalServer, local_server

KEY = base64.b64encode(b"0123456789abcdef")
UPGRADE = b"Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
VERSION = b"Sec-WebSocket-Version: 13\r\n"
KEYED = b"Sec-WebSocket-Key: " + KEY + b"\r\n"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def handshake(path: bytes = b"/echo", more: bytes = b"") -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\n" + HOST + UPGRADE + VERSION + KEYED + more + b"\r\n"


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    head = bytes([fin << 7 | rsv << 4 | opcode])
    size = len(payload)
    short = size if size < 126 else 126 if size < 65_536 else 127
    head += bytes([masked << 7 | short]) + (b"" if size < 126 else struct.pack("!H" if size < 65_536 else "!Q", size))
    return head + (bytes(4) if masked else b"") + payload


class Application:
    """Sends each message back, and keeps what it got. Its paths do something else before or after the accept."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.may_continue = asyncio.Event()
        self.scope: Scope = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
            await send({"type": "http.response.body", "body": b"HTTP"})
            return
        self.scope = scope
        assert await receive() == {"type": "websocket.connect"}
        await self._before(scope["path"], receive, send)

    async def _before(self, path: str, receive: Receive, send: Send) -> None:
        if path == "/wait":
            await self.may_continue.wait()
        if path == "/impatient":
            self.messages.append(await receive())
            await send({"type": "websocket.accept"})
        elif path == "/closing":
            await send({"type": "websocket.close"})
        elif path == "/injecting":
            await send({"type": "websocket.accept", "headers": [(b"a", b"b\r\nc: d")]})
        else:
            await send({"type": "websocket.accept", "headers": [(b"a", b"b")], "subprotocol": "chat"})
            await self._after(path, receive, send)

    async def _after(self, path: str, receive: Receive, send: Send) -> None:
        if path == "/flood":
            while True:
                await send({"type": "websocket.send", "bytes": bytes(65_536)})
        if path == "/deaf":
            await self.may_continue.wait()
        while (message := await receive())["type"] != "websocket.disconnect":
            self.messages.append(message.get("text", message.get("bytes")))
            with suppress(ClientGoneError):
                await send({**message, "type": "websocket.send"})
        self.messages.append(message["code"])


@pytest.fixture
def application() -> Application:
    return Application()


@pytest.fixture
async def server(application: Application) -> AsyncIterator[LocalServer]:
    wrapped = RequestMiddleware(application, max_body_size=1000, hsts=False)
    async with local_server(
        app=wrapped, max_message_size=1000, max_frames_per_second=20, write_timeout="30s"
    ) as server:
        yield server
        application.may_continue.set()
        for one in server.connections.connections:
            one.transport.abort()


@asynccontextmanager
async def opened(server: LocalServer, path: bytes = b"/echo") -> AsyncIterator[Client]:
    async with server.client() as client:
        await client.send(handshake(path))
        assert (await client.receive()).status == 101
        yield client


async def receive(client: Client) -> tuple[int, bytes]:
    """Read one frame: its opcode and payload. An opcode of -1 is the end of the connection."""
    async with asyncio.timeout(10):
        try:
            first, second = await client.reader.readexactly(2)
            size = second & 127
            if size == 126:
                (size,) = struct.unpack("!H", await client.reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await client.reader.readexactly(8))
            return first & 15, await client.reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return -1, b""


async def code(client: Client) -> int:
    """Read until the close frame, and return its code."""
    while (received := await receive(client))[0] != CLOSE:
        assert received[0] != -1, "the connection is lost without a close frame"
    return int.from_bytes(received[1][:2])


def connection(server: LocalServer) -> SocketConnection:
    (found,) = [one for one in server.connections.connections if isinstance(one, SocketConnection)]
    return found


def pass_time(server: LocalServer, seconds: float) -> None:
    server.connections.enforce_timeouts(asyncio.get_running_loop().time() + seconds)


async def test_a_handshake_is_accepted(server: LocalServer, application: Application) -> None:
    async with server.client() as client:
        await client.send(handshake(b"/echo/%C3%A4?a=b", b"Sec-WebSocket-Protocol: chat , other\r\n"))
        response = await client.receive()
        await client.send(frame(TEXT, "ä".encode()) + frame(BINARY, b"\0"))

        expected = base64.b64encode(sha1(KEY + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()  # noqa: S324  # RFC 6455.
        assert response.status == 101
        assert response.headers["sec-websocket-accept"].lower() == expected.lower()
        assert response.headers["sec-websocket-protocol"] == "chat"
        assert response.headers["a"] == "b"
        assert "sec-websocket-extensions" not in response.headers
        assert [await receive(client) for _ in range(2)] == [(TEXT, "ä".encode()), (BINARY, b"\0")]
        await client.send(frame(CLOSE, b"\x03\xe9bye"))
        assert await receive(client) == (CLOSE, b"\x03\xe9bye")
        assert await client.is_closed()
    assert application.messages == ["ä", b"\0", 1001]
    scope = application.scope
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/echo/ä", b"/echo/%C3%A4", b"a=b")
    assert (scope["scheme"], scope["subprotocols"]) == ("ws", ["chat", "other"])
    await server.wait_until(lambda: not server.connections.connections and not server.connections.tasks)


async def test_compression_is_not_negotiated(server: LocalServer) -> None:
    async with server.client() as client:
        await client.send(handshake(more=b"Sec-WebSocket-Extensions: permessage-deflate\r\n"))
        assert "sec-websocket-extensions" not in (await client.receive()).headers
        # A bomb: it would expand a thousandfold.
        await client.send(frame(TEXT, b"\xec\xc1\x01\x01\x00\x00\x00\x80\x90\xfe\xaf\xee\x08\n", rsv=4))

        assert await code(client) == 1002


HEAD = b"GET /echo HTTP/1.1\r\n" + HOST
REFUSED = {
    "no key": (HEAD + UPGRADE + VERSION, 400),
    "a short key": (HEAD + UPGRADE + VERSION + b"Sec-WebSocket-Key: " + KEY[4:] + b"\r\n", 400),
    "a key that is not base64": (HEAD + UPGRADE + VERSION + b"Sec-WebSocket-Key: !!!!\r\n", 400),
    "two keys": (HEAD + UPGRADE + VERSION + KEYED * 2, 400),
    "no version": (HEAD + UPGRADE + KEYED, 426),
    "an old version": (HEAD + UPGRADE + KEYED + b"Sec-WebSocket-Version: 8\r\n", 426),
    "two versions": (HEAD + UPGRADE + KEYED + VERSION * 2, 426),
    "an invalid subprotocol": (HEAD + UPGRADE + KEYED + VERSION + b"Sec-WebSocket-Protocol: a b\r\n", 400),
    "two hosts": (HEAD + HOST + UPGRADE + KEYED + VERSION, 400),
    "an absolute target": (b"GET ws://test/echo HTTP/1.1\r\n" + HOST + UPGRADE + KEYED + VERSION, 400),
    "a long target": (b"GET /echo?" + b"a" * 20_000 + b" HTTP/1.1\r\n" + HOST + UPGRADE + KEYED + VERSION, 414),
    "many headers": (HEAD + UPGRADE + KEYED + VERSION + b"a: b\r\n" * 200, 431),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_an_invalid_handshake_is_refused_before_the_application(
    server: LocalServer, application: Application, name: str
) -> None:
    head, status = REFUSED[name]

    async with server.client() as client:
        await client.send(head + b"\r\n" + GET)
        response = await client.receive()

        assert (response.status, response.headers["connection"]) == (status, "close")
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers.get("sec-websocket-version") == ("13" if status == 426 else None)
        assert await client.is_closed()
    assert application.scope == {}


NO_HANDSHAKE = {
    "another protocol": HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + VERSION + KEYED + b"\r\n",
    "two protocols": HEAD + b"Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n" + VERSION + KEYED + b"\r\n",
    "two headers": HEAD + UPGRADE + b"Upgrade: h2c\r\n" + VERSION + KEYED + b"\r\n",
    "no connection option": HEAD + b"Connection: close\r\nUpgrade: websocket\r\n" + VERSION + KEYED + b"\r\n",
    "a body": HEAD + UPGRADE + VERSION + KEYED + b"Content-Length: 2\r\n\r\nhi",
    "POST": b"POST /echo HTTP/1.1\r\n" + HOST + UPGRADE + VERSION + KEYED + b"\r\n",
    "HTTP/1.0": b"GET /echo HTTP/1.0\r\n" + HOST + UPGRADE + VERSION + KEYED + b"\r\n",
}


@pytest.mark.parametrize("name", NO_HANDSHAKE)
async def test_an_upgrade_that_is_no_handshake_is_ignored(server: LocalServer, name: str) -> None:
    async with server.client() as client:
        await client.send(NO_HANDSHAKE[name])

        assert (await client.receive()).body == b"HTTP"


@pytest.mark.parametrize(("path", "status"), [(b"/closing", 403), (b"/injecting", 500)])
async def test_the_response_to_a_refused_handshake_is_the_last(server: LocalServer, path: bytes, status: int) -> None:
    async with server.client() as client:
        # A proxy that believes in the handshake would pass the second request on unseen.
        await client.send(handshake(path) + GET)
        response = await client.receive()

        assert (response.status, response.headers["connection"]) == (status, "close")
        assert await client.is_closed()


async def test_a_handshake_behind_a_request_in_progress_is_refused(
    server: LocalServer, application: Application
) -> None:
    async with server.client() as client:
        await client.send(GET + handshake())

        assert (await client.receive()).body == b"HTTP"
        assert await client.is_closed()
    assert application.scope == {}


async def test_frames_that_arrive_before_the_accept_wait_for_it(server: LocalServer, application: Application) -> None:
    async with server.client() as client:
        await client.send(handshake(b"/wait") + frame(TEXT, b"early"))
        await server.wait_until(lambda: application.scope != {})
        pass_time(server, 1)
        application.may_continue.set()

        assert (await client.receive()).status == 101
        assert await receive(client) == (TEXT, b"early")


async def test_a_client_that_leaves_before_the_accept_ends_the_handshake(
    server: LocalServer, application: Application
) -> None:
    async with server.client() as client:
        await client.send(handshake(b"/impatient"))
        await server.wait_until(lambda: application.scope != {})
        (one,) = server.connections.connections
        one.transport.abort()

        await server.wait_until(lambda: not server.connections.tasks)
    assert application.messages == [{"type": "websocket.disconnect", "code": 1006}]


BROKEN = {
    "no mask": (frame(TEXT, b"a", masked=False), 1002),
    "reserved bit 2": (frame(TEXT, b"a", rsv=2), 1002),
    "a reserved opcode": (frame(3, b"a"), 1002),
    "a reserved control opcode": (frame(11), 1002),
    "a part without a beginning": (frame(0, b"a"), 1002),
    "a message within a message": (frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 1002),
    "a ping in parts": (frame(PING, b"a", fin=False), 1002),
    "a large ping": (frame(PING, b"a" * 126), 1002),
    "a close code that is not allowed": (frame(CLOSE, b"\x03\xed"), 1002),
    "half a close code": (frame(CLOSE, b"\x03"), 1002),
    "a close within a message": (frame(TEXT, b"a", fin=False) + frame(CLOSE, b"\x03\xe8"), 1002),
    "a reason that is not UTF-8": (frame(CLOSE, b"\x03\xe8\xff"), 1007),
    "text that is not UTF-8": (frame(TEXT, b"\xff"), 1007),
    "text that ends within a character": (frame(TEXT, b"\xc3", fin=False) + frame(0, b""), 1007),
    "a surrogate": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "a large message": (frame(TEXT, b"a" * 1001), 1009),
    "a large message in parts": (frame(BINARY, bytes(600), fin=False) + frame(0, bytes(600)), 1009),
    "the largest length": (b"\x82\xff" + b"\x7f" + b"\xff" * 7 + bytes(4), 1009),
    "a length of 2**63": (b"\x82\xff\x80" + bytes(11), 1009),
    "an HTTP request": (GET, 1002),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_frame_closes_the_socket(server: LocalServer, application: Application, name: str) -> None:
    frames, expected = BROKEN[name]

    async with opened(server) as client:
        await client.send(frame(TEXT, b"before") + frames + frame(TEXT, b"after"))

        await server.wait_until(lambda: expected in application.messages)
    assert application.messages == ["before", expected]


@pytest.mark.parametrize("name", ["no mask", "a large message"])
async def test_the_client_learns_why_its_socket_is_closed(server: LocalServer, name: str) -> None:
    frames, expected = BROKEN[name]

    async with opened(server) as client:
        # The rest is larger than all buffers: closing at once would reset the connection, and the code would be lost.
        client.writer.write(frames + bytes(500_000))

        assert await code(client) == expected
        client.writer.close()
        await server.wait_until(lambda: not server.connections.connections)


async def test_random_bytes_close_the_socket(server: LocalServer) -> None:
    for seed in range(20):
        async with opened(server) as client:
            await client.send(sha1(bytes([seed])).digest() * 60)  # noqa: S324  # Only random bytes.
            for number in range(6):
                await asyncio.sleep(0.002)
                pass_time(server, 600 * number)
            await server.wait_until(lambda: not server.connections.connections)


async def test_a_ping_is_answered(server: LocalServer) -> None:
    async with opened(server) as client:
        await client.send(frame(PING, b"abc") + frame(PONG, b"unasked"))

        assert await receive(client) == (PONG, b"abc")


async def test_pings_are_answered_only_so_often(server: LocalServer) -> None:
    async with opened(server) as client:
        client.writer.write(frame(PING) * 100_000)
        # A portion is parsed as a whole.
        most = 20 + sockets._PORTION // 6

        await server.wait_until(lambda: connection(server)._frames_left <= 0)
        assert -connection(server)._frames_left <= most
        assert not connection(server).transport.is_reading()
        unread = len(connection(server)._unread)
        await asyncio.sleep(0.05)
        assert len(connection(server)._unread) == unread <= 300_000

        pass_time(server, 1)
        assert -connection(server)._frames_left <= most


async def test_parts_without_an_end_take_no_memory(server: LocalServer) -> None:
    async with opened(server) as client:
        await client.send(frame(TEXT, b"a" * 900, fin=False) + frame(0, fin=False) * 1000)
        await server.wait_until(lambda: bool(connection(server)._unread))
        for _ in range(20):
            pass_time(server, 1)
        assert bytes(connection(server)._content) == b"a" * 900
        await client.send(frame(0, b"b" * 101, fin=False))
        pass_time(server, 1)

        await server.wait_until(lambda: connection(server)._disconnected is not None)
        assert await code(client) == 1009


async def test_an_endpoint_that_does_not_receive_holds_back_its_client(
    server: LocalServer, application: Application
) -> None:
    async with opened(server, b"/deaf") as client:
        client.writer.write(frame(TEXT, b"a" * 900) * 5000)
        await server.wait_until(
            lambda: bool(connection(server)._messages) and not connection(server).transport.is_reading()
        )
        assert len(connection(server)._messages) <= 2
        assert len(connection(server)._unread) <= 300_000
        for _ in range(3):
            pass_time(server, 600)

        # It was the server that did not read, so the client has not missed a ping.
        assert connection(server)._disconnected is None
        application.may_continue.set()
        await server.wait_until(lambda: len(application.messages) > 5)


async def test_a_client_that_does_not_read_loses_its_socket(server: LocalServer) -> None:
    async with opened(server, b"/flood"):
        await server.wait_until(lambda: connection(server)._write_paused_since is not None)
        # Its pings are not answered in the meantime.
        socket = connection(server)
        socket.data_received(frame(PING) * 100)
        assert socket._unread
        pass_time(server, 29)
        assert server.connections.connections
        pass_time(server, 31)

        await server.wait_until(lambda: not server.connections.connections and not server.connections.tasks)


async def test_a_slow_reader_gets_everything(server: LocalServer) -> None:
    async with opened(server, b"/flood") as client:
        await server.wait_until(lambda: connection(server)._write_paused_since is not None)

        for _ in range(200):
            assert await receive(client) == (BINARY, bytes(65_536))


async def test_a_client_that_does_not_answer_pings_loses_its_socket(
    server: LocalServer, application: Application
) -> None:
    async with opened(server) as client:
        pass_time(server, 10)
        pass_time(server, 21)
        assert await receive(client) == (PING, b"")
        pass_time(server, 30)
        pass_time(server, 42)

        assert await code(client) == 1011
    await server.wait_until(lambda: application.messages == [1011])


async def test_a_client_that_answers_pings_keeps_its_socket(server: LocalServer) -> None:
    async with opened(server) as client:
        connection(server)._pinged_at -= 30
        pass_time(server, 0)
        assert await receive(client) == (PING, b"")
        await client.send(frame(PONG))
        await server.wait_until(lambda: connection(server)._heard_at > connection(server)._pinged_at)
        pass_time(server, 25)

        assert await receive(client) == (PING, b"")


@pytest.mark.parametrize("answers", [False, True])
async def test_the_server_does_not_wait_for_ever_for_the_answer_to_its_close(
    server: LocalServer, *, answers: bool
) -> None:
    async with opened(server) as client:
        socket = connection(server)
        socket.shutdown()
        socket.close(1000)
        assert await code(client) == 1012
        if answers:
            await client.send(frame(TEXT, b"ignored") + frame(CLOSE, b"\x03\xf4"))
            assert await client.is_closed()
            client.writer.close()
        else:
            pass_time(server, 1)
            assert server.connections.connections
            pass_time(server, 3)

        await server.wait_until(lambda: not server.connections.connections)


async def test_sockets_count_as_connections_and_never_make_room(server: LocalServer) -> None:
    server.connections.limit = 2
    async with opened(server), AsyncExitStack() as stack:
        server.connections.limit = 1
        client = await stack.enter_async_context(server.client())
        assert not connection(server).close_idle()
        await client.send(GET)

        assert (await client.receive()).code == "too_many_connections"


async def test_hundreds_of_sockets(server: LocalServer, application: Application) -> None:
    server.connections.limit = 1000
    clients = []
    async with asyncio.TaskGroup() as group:

        async def stay(done: asyncio.Event) -> None:
            async with opened(server) as client:
                await client.send(frame(TEXT, b"a"))
                clients.append(await receive(client))
                await done.wait()

        finished = asyncio.Event()
        for _ in range(300):
            group.create_task(stay(finished))
        await server.wait_until(lambda: len(clients) == 300)
        assert len(server.connections.connections) == 300
        finished.set()

    await server.wait_until(lambda: not server.connections.connections and not server.connections.tasks)
    assert application.messages.count("a") == 300


async def test_half_of_the_connections_are_left_to_requests(server: LocalServer) -> None:
    server.connections.limit = 4
    async with opened(server), opened(server), server.client() as client:
        await client.send(handshake())

        assert (await client.receive()).code == "too_many_connections"


async def test_messages_that_have_arrived_are_received_after_the_connection_is_lost(
    server: LocalServer, application: Application
) -> None:
    async with opened(server, b"/deaf") as client:
        await client.send(frame(TEXT, b"first") + frame(TEXT, b"second"))
        await server.wait_until(lambda: len(connection(server)._messages) == 2)
        connection(server).transport.abort()
        await server.wait_until(lambda: not server.connections.connections)
        application.may_continue.set()

        await server.wait_until(lambda: len(application.messages) == 3)
    assert application.messages == ["first", "second", 1006]
