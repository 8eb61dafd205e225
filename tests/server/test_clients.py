"""Clients that misbehave, over real sockets: what is refused, how long it may take, and how a connection ends."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from app.core.config import ServerSettings
from app.core.http.middleware import RequestMiddleware
from app.server import clients
from app.server.clients import Connection, Connections

HOST = b"Host: test\r\n"
GET = b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n"
LAST = b"GET /last HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
LARGE = 8_000_000


@dataclass
class Application:
    """Says what it was asked; `/wait` first waits, `/halting` within, `/early` does not read, `/large` is large.

    `/injecting` has a header with a line break in it.
    """

    seen: list[tuple[str, bytes]] = field(default_factory=list)
    scopes: list[Scope] = field(default_factory=list)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["path"] == "/wait":
            await self.may_answer.wait()
        body, more = b"", scope["path"] not in {"/early", "/halting"}
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.seen.append((scope["path"], body))
        answer = b"x" * LARGE if scope["path"] == "/large" else b"%b %d" % (scope["path"].encode(), len(body))
        headers = [(b"content-length", str(len(answer)).encode())]
        if scope["path"] == "/injecting":
            headers.append((b"location", b"/a\r\nset-cookie: b=c"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["path"] == "/halting":
            await send({"type": "http.response.body", "body": answer[:1], "more_body": True})
            await self.may_answer.wait()
            answer = answer[1:]
        await send({"type": "http.response.body", "body": answer})


@dataclass
class Answer:
    """One answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str | None:
        """The code of a problem document."""
        return json.loads(self.body)["code"] if "problem" in self.headers.get("content-type", "") else None


class Client:
    """A bare socket that speaks and listens as it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def hear(self) -> Answer:
        """Read one answer."""
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().splitlines()
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(head[0].split(" ")[1]), headers, body)

    async def is_closed(self) -> bool:
        """Wait for the end of what the server sends; whatever still comes is not expected."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read() == b""
            except ConnectionResetError:
                return True


@dataclass
class Place:
    """A listening server in this process, with its clock in our hands."""

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

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110  # What changes is the server's, which tells nobody.
                await asyncio.sleep(0.001)

    async def has(self, state: Callable[[Connection], bool]) -> None:
        """Wait until every connection, and at least one, is in this state."""
        await self.until(lambda: bool(self.all) and all(map(state, self.all)))

    @property
    def all(self) -> list[Connection]:
        return [one for one in self.connections.connections if isinstance(one, Connection)]

    def later(self, seconds: float) -> None:
        """Judge as if it were so much later."""
        self.connections.enforce(asyncio.get_running_loop().time() + seconds)


@asynccontextmanager
async def open_place(*, limit: int = 100, **settings: Any) -> AsyncIterator[Place]:
    application = Application()
    wrapped = RequestMiddleware(application, max_body_size=1_048_576, hsts=False)
    config = uvicorn.Config(wrapped, http=Connection, ws="none", log_config=None, access_log=False)
    config.load()
    connections = Connections(ServerSettings(**settings), limit=limit)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: Connection(config, connections, {}, loop), "127.0.0.1", 0)
    place = Place(application, connections, listener.sockets[0].getsockname())
    try:
        yield place
    finally:
        application.may_answer.set()
        listener.close()
        for connection in place.all:
            connection.transport.abort()
        await place.until(lambda: not connections.connections and not connections.tasks)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with open_place() as place:
        yield place


MALFORMED = {
    "a length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "the same length twice": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": POST + b"Content-Length: 5, 5\r\n\r\nhello",
    "a signed length": POST + b"Content-Length: +5\r\n\r\nhello",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "a length in floating point": POST + b"Content-Length: 1e3\r\n\r\n",
    "a length without end": POST + b"Content-Length: 99999999999999999999\r\n\r\n",
    "an empty length": POST + b"Content-Length: \r\n\r\n",
    "a space before the colon": POST + b"Content-Length : 5\r\n\r\nhello",
    "chunked twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked in two headers": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "not quite chunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "another coding": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "identity": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "chunks in HTTP/1.0": b"POST /a HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded header": b"GET /a HTTP/1.1\r\n" + HOST + b"A: b\r\n c\r\n\r\n",
    "bare LF": b"GET /a HTTP/1.1\nHost: test\n\n",
    "bare LF after a header": b"GET /a HTTP/1.1\r\n" + HOST + b"A: b\nC: d\r\n\r\n",
    "bare CR": b"GET /a HTTP/1.1\r\n" + HOST + b"A: b\rC: d\r\n\r\n",
    "NUL": b"GET /a HTTP/1.1\r\n" + HOST + b"A: b\0c\r\n\r\n",
    "a header without a name": b"GET /a HTTP/1.1\r\n" + HOST + b": b\r\n\r\n",
    "a header without a colon": b"GET /a HTTP/1.1\r\n" + HOST + b"b\r\n\r\n",
    "an absolute target": b"GET http://evil.example/a HTTP/1.1\r\n" + HOST + b"\r\n",
    "an authority for a target": b"GET evil.example:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "CONNECT": b"CONNECT evil.example:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "CONNECT to a path": b"CONNECT /a HTTP/1.1\r\n" + HOST + b"\r\n",
    "the whole server": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "a fragment": b"GET /a#b HTTP/1.1\r\n" + HOST + b"\r\n",
    "letters beyond ASCII in the target": b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n",
    "no host": b"GET /a HTTP/1.1\r\n\r\n",
    "an empty host": b"GET /a HTTP/1.1\r\nHost: \r\n\r\n",
    "two hosts": b"GET /a HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    "two hosts in HTTP/1.0": b"GET /a HTTP/1.0\r\n" + HOST + HOST + b"\r\n",
    "a host with a user": b"GET /a HTTP/1.1\r\nHost: x@test\r\n\r\n",
    "a host with a path": b"GET /a HTTP/1.1\r\nHost: test/admin?\r\n\r\n",
    "a host with a space": b"GET /a HTTP/1.1\r\nHost: te st\r\n\r\n",
    "a list of hosts": b"GET /a HTTP/1.1\r\nHost: test, other\r\n\r\n",
    "HTTP/0.9": b"GET /a\r\n\r\n",
    "HTTP/0.9 by name": b"GET /a HTTP/0.9\r\n" + HOST + b"\r\n",
    "HTTP/2 by name": b"GET /a HTTP/2.0\r\n" + HOST + b"\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "NULs": b"\0" * 1000,
    "a small method": b"get /a HTTP/1.1\r\n" + HOST + b"\r\n",
}
BROKEN_BODIES = {
    "no size": CHUNKED + b"xyz\r\n" + GET,
    "a space before the size": CHUNKED + b" 5\r\nhello\r\n0\r\n\r\n" + GET,
    "a prefix of the size": CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n" + GET,
    "a size without end": CHUNKED + b"fffffffffffffffff\r\n" + GET,
    "bare LF after the size": CHUNKED + b"5\nhello\r\n0\r\n\r\n" + GET,
    "more than the size says": CHUNKED + b"5\r\nhello world\r\n0\r\n\r\n" + GET,
    "an extension without end": CHUNKED + b"5;" + b"a" * 300_000,
    "trailers without end": CHUNKED + b"5\r\nhello\r\n0\r\n" + b"A: b\r\n" * 50_000,
    "more trailers than headers": CHUNKED + b"5\r\nhello\r\n0\r\n" + b"A: b\r\n" * 129 + b"\r\n",
    "chunks without end": CHUNKED + b"1\r\na\r\n" * 20_000,
}
TOO_LARGE = {
    "a long target": (b"GET /" + b"a" * 16_384 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414, "uri_too_long"),
    "a target without end": (b"GET /" + b"a" * 1_000_000, 414, "uri_too_long"),
    "many headers": (b"GET /a HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 1_000 + b"\r\n", 431, "headers_too_large"),
    "a long header": (b"GET /a HTTP/1.1\r\n" + HOST + b"A: " + b"b" * 65_536 + b"\r\n\r\n", 431, "headers_too_large"),
    "a header without end": (b"GET /a HTTP/1.1\r\n" + HOST + b"A: " + b"b" * 1_000_000, 431, "headers_too_large"),
    "headers without end": (b"GET /a HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 200_000, 431, "headers_too_large"),
    "line ends without end": (b"\r\n" * 200_000, 431, "headers_too_large"),
    "an unknown expectation": (POST + b"Expect: x\r\nContent-Length: 1\r\n\r\na", 417, "expectation_failed"),
}


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED.keys())
async def test_what_is_no_sound_request_is_refused_and_nothing_after_it_read(
    place: Place, request_bytes: bytes
) -> None:
    async with place.client() as client:
        await client.say(request_bytes + GET)
        answer = await client.hear()

        assert (answer.status, answer.code) == (400, "malformed_request")
        assert answer.headers["connection"] == "close"
        assert answer.headers["x-request-id"]
        assert await client.is_closed()
    assert place.application.scopes == []


@pytest.mark.parametrize("request_bytes", BROKEN_BODIES.values(), ids=BROKEN_BODIES.keys())
async def test_a_broken_body_is_refused_and_nothing_after_it_read(place: Place, request_bytes: bytes) -> None:
    async with place.client() as client:
        await client.say(request_bytes)
        answer = await client.hear()

        assert (answer.status, answer.code) == (400, "malformed_request")
        assert await client.is_closed()
    assert place.application.seen == []


@pytest.mark.parametrize(("request_bytes", "status", "code"), TOO_LARGE.values(), ids=TOO_LARGE.keys())
async def test_what_is_too_large_is_refused(place: Place, request_bytes: bytes, status: int, code: str) -> None:
    async with place.client() as client:
        await client.say(request_bytes)
        answer = await client.hear()

        assert (answer.status, answer.code) == (status, code)
        assert await client.is_closed()
    assert place.application.scopes == []


@pytest.mark.parametrize(
    ("request_bytes", "body"),
    [
        pytest.param(GET, b"", id="plain"),
        pytest.param(b"\r\n\r\n" + GET, b"", id="after empty lines"),
        pytest.param(b"GET /a HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n", b"", id="an address for a host"),
        pytest.param(b"GET /a HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 100 + b"\r\n", b"", id="a hundred headers"),
        pytest.param(b"GET /a HTTP/1.1\r\n" + HOST + b"A: " + b"b" * 60_000 + b"\r\n\r\n", b"", id="a long header"),
        pytest.param(POST + b"Content-Length: 5\r\n\r\nhello", b"hello", id="a body"),
        pytest.param(CHUNKED + b"5;a=b\r\nhello\r\n0\r\n\r\n", b"hello", id="chunks"),
        pytest.param(CHUNKED + b"1\r\na\r\n" * 4_000 + b"0\r\n\r\n", b"a" * 4_000, id="small chunks"),
        pytest.param(POST + b"Content-Length: 300000\r\n\r\n" + b"a" * 300_000, b"a" * 300_000, id="a large body"),
    ],
)
async def test_a_sound_request_is_answered_and_the_connection_kept(
    place: Place, request_bytes: bytes, body: bytes
) -> None:
    async with place.client() as client:
        for _ in range(2):
            await client.say(request_bytes)
            assert (await client.hear()).status == 200
        await client.say(LAST)
        assert (await client.hear()).status == 200
        assert await client.is_closed()

    assert place.application.seen == [("/a", body), ("/a", body), ("/last", b"")]


async def test_a_large_body_may_have_more_chunks(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_MAX_CHUNKS", 10)
    large, small = [CHUNKED + b"%x\r\n%b\r\n" % (size, b"a" * size) * 100 + b"0\r\n\r\n" for size in (1024, 900)]

    async with place.client() as client:
        await client.say(large)
        assert (await client.hear()).status == 200
        await client.say(small)
        assert (await client.hear()).status == 400


@pytest.mark.parametrize("host", [b"", HOST])
async def test_http_1_0_needs_no_host_and_is_answered_once(place: Place, host: bytes) -> None:
    async with place.client() as client:
        await client.say(b"GET /a HTTP/1.0\r\n" + host + b"\r\n")
        assert (await client.hear()).status == 200
        assert await client.is_closed()


async def test_an_answer_with_a_line_break_in_a_header_is_not_sent(place: Place) -> None:
    async with place.client() as client:
        await client.say(GET.replace(b"/a", b"/injecting"))

        assert await client.is_closed()


async def test_trailers_do_not_pass_for_headers(place: Place) -> None:
    async with place.client() as client:
        await client.say(CHUNKED + b"5\r\nhello\r\n0\r\nAuthorization: Bearer x\r\n\r\n")
        assert (await client.hear()).status == 200

    assert b"authorization" not in dict(place.application.scopes[0]["headers"])


async def test_a_request_in_pieces_is_put_together(place: Place) -> None:
    async with place.client() as client:
        for byte in POST + b"Content-Length: 5\r\n\r\nhello":
            await client.say(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.hear()).body == b"/a 5"


UPGRADE = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"


async def test_who_wishes_for_another_protocol_is_answered_in_this_one(place: Place) -> None:
    async with place.client() as client:
        await client.say(b"GET /a HTTP/1.1\r\n" + HOST + UPGRADE + b"\r\n" + GET + LAST)
        answers = [await client.hear() for _ in range(3)]

        assert [answer.status for answer in answers] == [200, 200, 200]
        assert await client.is_closed()


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("framing", [b"Content-Length: %d\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n%x\r\n"])
async def test_the_body_of_such_a_wish_is_no_request(place: Place, framing: bytes, *, is_split: bool) -> None:
    head, body = POST + UPGRADE + framing % len(GET), GET + b"\r\n0\r\n\r\n" * (b"chunked" in framing)

    async with place.client() as client:
        await client.say(head if is_split else head + body)
        if is_split:
            await place.has(lambda connection: connection._body_since is not None)
            await client.say(body)
        answer = await client.hear()

        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await client.is_closed()
    assert place.application.seen == [("/a", GET)]


async def test_a_client_that_waits_to_be_asked_for_the_body_is_asked(place: Place) -> None:
    async with place.client() as client:
        await client.say(POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert (await client.hear()).status == 100
        await client.say(b"hello")
        assert (await client.hear()).body == b"/a 5"


async def test_a_client_is_not_asked_for_a_body_that_is_too_large(place: Place) -> None:
    async with place.client() as client:
        await client.say(POST + b"Expect: 100-continue\r\nContent-Length: 10000000\r\n\r\n")
        answer = await client.hear()

        assert (answer.status, answer.code) == (413, "payload_too_large")
        assert await client.is_closed()


async def test_an_early_refusal_reaches_a_client_that_is_still_sending(place: Place) -> None:
    async with place.client() as client:
        await client.say(POST + b"Content-Length: 4000000\r\n\r\n" + b"a" * 3_000_000)
        answer = await client.hear()

        assert (answer.status, answer.code) == (413, "payload_too_large")
        assert await client.is_closed()
        # However often it is told to.
        place.all[0].leave()
        place.later(1.5)
        assert place.all
        place.later(2.5)
        await place.until(lambda: not place.all)


async def test_garbage_after_a_request_does_not_change_its_answer(place: Place) -> None:
    async with place.client() as client:
        await client.say(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n" + GET + b"garbage\r\n\r\n")
        await place.has(lambda connection: connection._is_deaf)
        # It is we who take long now.
        place.later(1_000)
        place.application.may_answer.set()
        answers = [await client.hear(), await client.hear()]

        assert [answer.body for answer in answers] == [b"/wait 0", b"/a 0"]
        assert answers[1].headers["connection"] == "close"
        assert await client.is_closed()


async def test_a_body_that_breaks_after_its_answer_ends_the_connection(place: Place) -> None:
    async with place.client() as client:
        await client.say(b"POST /early HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
        assert (await client.hear()).status == 200
        await client.say(b"garbage\r\n" + GET)

        assert await client.is_closed()


async def test_a_body_that_breaks_during_its_answer_ends_the_connection(place: Place) -> None:
    async with place.client() as client:
        await client.say(b"POST /halting HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
        assert (await client.reader.readuntil(b"\r\n\r\n/")).startswith(b"HTTP/1.1 200")
        await client.say(b"garbage\r\n")

        assert await client.is_closed()


# Time


@pytest.mark.parametrize(
    ("said", "patience", "status"),
    [
        pytest.param(b"", 10, None, id="nothing"),
        pytest.param(b"\r\n\r\n", 10, None, id="empty lines"),
        pytest.param(b"GET /a HTT", 10, 408, id="a part of the first line"),
        pytest.param(b"GET /a\n", 10, 408, id="the first line in an old way"),
        pytest.param(b"GET /a HTTP/1.1\r\nHo", 10, 408, id="a part of the head"),
        pytest.param(POST + b"Content-Length: 5\r\n\r\nhell", 10, 408, id="a part of the body"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n", 10, 408, id="a part of the chunks"),
    ],
)
async def test_a_client_that_falls_silent_is_given_up(
    place: Place, said: bytes, patience: float, status: int | None
) -> None:
    async with place.client() as client:
        await client.say(said)
        await place.has(lambda connection: connection._size == len(said) or connection._body_since is not None)

        place.later(patience - 0.5)
        await asyncio.sleep(0.01)
        assert not client.reader.at_eof()
        place.later(patience + 0.5)

        if status:
            answer = await client.hear()
            assert (answer.status, answer.code) == (status, "request_timeout")
        assert await client.is_closed()
    assert place.application.seen == []


@pytest.mark.parametrize(
    ("head", "patience"),
    [
        pytest.param(b"GET /a HTTP/1.1\r\nA: ", 10, id="head"),
        pytest.param(POST + b"Content-Length: 500\r\n\r\n", 30, id="body"),
    ],
)
async def test_a_client_that_goes_on_slowly_is_given_up_too(place: Place, head: bytes, patience: float) -> None:
    async with place.client() as client:
        await client.say(head)
        await place.has(lambda connection: connection._heard_at > 0 and connection.quiet_since is None)
        (connection,) = place.all
        now = asyncio.get_running_loop().time()
        for second in range(int(patience)):
            connection._heard_at = now + second
            place.connections.enforce(now + second)
        assert not connection._is_deaf

        connection._heard_at = now + patience + 1
        place.connections.enforce(now + patience + 1)

        assert (await client.hear()).code == "request_timeout"
        assert await client.is_closed()


async def test_a_body_that_falls_silent_after_its_answer_ends_the_connection(place: Place) -> None:
    async with place.client() as client:
        await client.say(b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\n")
        assert (await client.hear()).status == 200
        place.later(11)

        assert await client.is_closed()


async def test_a_client_is_not_blamed_when_it_is_we_who_do_not_read(place: Place) -> None:
    async with place.client() as client:
        await client.say(b"POST /wait HTTP/1.1\r\n" + HOST + b"Content-Length: 500000\r\n\r\n")
        client.writer.write(b"a" * 500_000)
        await place.has(lambda connection: bool(connection.flow.read_paused))
        place.later(100)
        place.application.may_answer.set()

        assert (await client.hear()).body == b"/wait 500000"


@pytest.mark.parametrize("is_silent", [False, True])
async def test_the_time_of_a_body_begins_again_when_we_read_on(place: Place, *, is_silent: bool) -> None:
    async with place.client() as client:
        await client.say(b"POST /wait HTTP/1.1\r\n" + HOST + b"Content-Length: 500001\r\n\r\n")
        client.writer.write(b"a" * 500_000)
        await place.has(lambda connection: bool(connection.flow.read_paused))
        place.later(100)
        place.application.may_answer.set()
        await place.has(lambda connection: connection._content == 500_000 and not connection.flow.read_paused)
        (connection,) = place.all
        # By the clock of the pause: what came meanwhile is noted by the real one.
        connection._heard_at += 100

        place.later(109)
        assert not connection._is_deaf
        if is_silent:
            place.later(111)
        else:
            await client.say(b"a")

        answer = await client.hear()
    assert (answer.code, answer.body) == (None, b"/wait 500001") if not is_silent else answer.code == "request_timeout"


async def test_the_head_of_the_next_request_has_its_time_when_this_one_is_answered(place: Place) -> None:
    async with place.client() as client:
        await client.say(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n" + GET + b"GET /last HT")
        await place.has(lambda connection: bool(connection.flow.read_paused) and connection._head_since is not None)
        place.later(100)
        place.application.may_answer.set()
        for path in (b"/wait 0", b"/a 0"):
            assert (await client.hear()).body == path

        await client.say(b"TP/1.1\r\n" + HOST + b"\r\n")

        assert (await client.hear()).body == b"/last 0"


async def test_a_client_that_has_not_been_asked_for_the_body_yet_is_not_blamed(place: Place) -> None:
    async with place.client() as client:
        await client.say(b"POST /wait HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        await place.has(lambda connection: connection._body_since is not None)
        place.later(100)
        place.application.may_answer.set()

        assert (await client.hear()).status == 100
        await client.say(b"hello")
        assert (await client.hear()).body == b"/wait 5"


async def test_a_client_that_was_answered_instead_of_asked_is_given_up(place: Place) -> None:
    async with place.client() as client:
        await client.say(b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert (await client.hear()).status == 200
        place.later(11)

        assert await client.is_closed()


async def test_a_client_that_does_not_read_is_cut_off(place: Place) -> None:
    async with place.client() as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # Typed as one that only writes.
        await client.say(b"GET /large HTTP/1.1\r\n" + HOST + b"\r\n")
        await place.has(lambda connection: connection._unread_since is not None)

        place.later(29)
        assert place.all
        place.later(31)
        await place.until(lambda: not place.all)


async def test_a_client_that_reads_slowly_gets_everything(place: Place) -> None:
    async with place.client() as client:
        await client.say(b"GET /large HTTP/1.1\r\n" + HOST + b"\r\n")
        await place.has(lambda connection: connection._unread_since is not None)

        assert len((await client.hear()).body) == LARGE
        await place.has(lambda connection: connection._unread_since is None)


async def test_an_answer_that_is_still_on_its_way_is_given_up_in_the_end(place: Place) -> None:
    async with place.client() as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # As above.
        await client.say(b"GET /large HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        await place.has(lambda connection: connection.transport.is_closing())
        # The time to read was long over before it was closed.
        (connection,) = place.all
        connection._unread_since = None

        place.later(0)
        place.later(29)
        assert place.all
        place.later(31)
        await place.until(lambda: not place.all)


async def test_a_kept_connection_is_closed_when_it_is_silent_for_long(place: Place) -> None:
    async with place.client() as client:
        await client.say(GET)
        await client.hear()
        await place.has(lambda connection: connection.quiet_since is not None)

        place.later(74)
        assert not place.all[0].transport.is_closing()
        place.later(76)
        assert await client.is_closed()


# The end


@pytest.mark.parametrize("ending", ["shutdown", "close_quiet"])
async def test_a_connection_is_not_closed_under_a_request_that_has_just_arrived(place: Place, ending: str) -> None:
    async with place.client() as client:
        await client.say(GET)
        await client.hear()
        await place.has(lambda connection: connection.quiet_since is not None)
        (connection,) = place.all

        # Sent, and not yet read: the event loop has had no turn.
        client.writer.write(GET)
        getattr(connection, ending)()

        assert (await client.hear()).status == 200
        await place.has(lambda connection: connection.quiet_since is not None)
        getattr(connection, ending)()
        assert await client.is_closed()


async def test_a_request_that_is_being_answered_is_the_last_of_a_connection_that_ends(place: Place) -> None:
    async with place.client() as client:
        await client.say(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
        await place.has(lambda connection: connection._is_answering)
        place.all[0].shutdown()
        place.application.may_answer.set()
        answer = await client.hear()

        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await client.is_closed()


@pytest.mark.parametrize("does_speak", [True, False])
async def test_a_connection_that_is_new_may_speak_before_it_ends(place: Place, *, does_speak: bool) -> None:
    async with place.client() as client:
        await place.has(lambda connection: connection.quiet_since is not None)
        place.all[0].shutdown()
        if does_speak:
            await asyncio.sleep(0.01)
            await client.say(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
            await asyncio.sleep(1.1)
            place.application.may_answer.set()
            assert (await client.hear()).status == 200
        else:
            assert await client.is_closed()


async def test_a_connection_that_is_closing_is_not_closed_again(place: Place) -> None:
    async with place.client():
        await place.has(lambda connection: connection.quiet_since is not None)
        (connection,) = place.all

        assert connection.close_quiet() is True
        assert connection.close_quiet() is False


# Number


async def test_the_connection_that_is_silent_longest_makes_room_for_a_new_one() -> None:
    async with open_place(limit=2) as place, place.client() as first, place.client() as second:
        for client in (first, second):
            await client.say(GET)
            await client.hear()
        async with place.client() as third:
            await third.say(GET)

            assert (await third.hear()).status == 200
            assert await first.is_closed()
            await second.say(GET)
            assert (await second.hear()).status == 200


async def test_without_a_silent_one_a_new_connection_is_refused() -> None:
    async with open_place(limit=1) as place, place.client() as first:
        await first.say(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
        await place.has(lambda connection: connection._is_answering)
        async with place.client() as second:
            answer = await second.hear()

            assert (answer.status, answer.code) == (503, "too_many_connections")
            assert await second.is_closed()
        place.application.may_answer.set()
        assert (await first.hear()).status == 200


async def test_of_many_for_whom_there_is_no_room_some_are_told_and_the_others_take_none() -> None:
    async with open_place(limit=1) as place, place.client() as first, AsyncExitStack() as stack:
        await first.say(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
        await place.has(lambda connection: connection._is_answering)
        told = [await stack.enter_async_context(place.client()) for _ in range(clients._TOLD)]
        assert {(await one.hear()).code for one in told} == {"too_many_connections"}

        async with place.client() as surplus:
            assert await surplus.is_closed()

        assert len(place.all) == 1 + clients._TOLD
        place.application.may_answer.set()
        assert (await first.hear()).status == 200


@pytest.mark.parametrize(
    "said", [b"", b"GET /a", POST + b"Content-Length: 5\r\n\r\nh", b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n"]
)
async def test_a_client_that_hangs_up_leaves_nothing_behind(place: Place, said: bytes) -> None:
    async with place.client() as client:
        await client.say(said)
        await place.has(lambda connection: not said or connection.quiet_since is None)
    place.application.may_answer.set()

    await place.until(lambda: not place.connections.connections and not place.connections.tasks)
