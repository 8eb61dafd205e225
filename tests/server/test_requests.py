"""Malformed and oversized requests over real sockets, and requests that are valid."""

import asyncio

import pytest

from app.server import requests
from tests.server.local_server import CHUNKED, GET, HOST, LAST_GET, POST, LocalServer

MALFORMED = {
    "Content-Length and Transfer-Encoding": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding and Content-Length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two different lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "the same length twice": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": POST + b"Content-Length: 5, 5\r\n\r\nhello",
    "a signed length": POST + b"Content-Length: +5\r\n\r\nhello",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "a length in floating point": POST + b"Content-Length: 1e3\r\n\r\n",
    "a length of 20 digits": POST + b"Content-Length: 99999999999999999999\r\n\r\n",
    "an empty length": POST + b"Content-Length: \r\n\r\n",
    "a space before the colon": POST + b"Content-Length : 5\r\n\r\nhello",
    "chunked twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked in two headers": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "xchunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "gzip and chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "the coding identity": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "chunks in HTTP/1.0": b"POST /a HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a header over two lines": b"GET /a HTTP/1.1\r\n" + HOST + b"A: b\r\n c\r\n\r\n",
    "bare LF": b"GET /a HTTP/1.1\nHost: test\n\n",
    "bare LF after a header": b"GET /a HTTP/1.1\r\n" + HOST + b"A: b\nC: d\r\n\r\n",
    "bare CR": b"GET /a HTTP/1.1\r\n" + HOST + b"A: b\rC: d\r\n\r\n",
    "NUL": b"GET /a HTTP/1.1\r\n" + HOST + b"A: b\0c\r\n\r\n",
    "a header without a name": b"GET /a HTTP/1.1\r\n" + HOST + b": b\r\n\r\n",
    "a header without a colon": b"GET /a HTTP/1.1\r\n" + HOST + b"b\r\n\r\n",
    "an absolute target": b"GET http://evil.example/a HTTP/1.1\r\n" + HOST + b"\r\n",
    "an authority as target": b"GET evil.example:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "CONNECT": b"CONNECT evil.example:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "CONNECT to a path": b"CONNECT /a HTTP/1.1\r\n" + HOST + b"\r\n",
    "an asterisk as target": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "a fragment": b"GET /a#b HTTP/1.1\r\n" + HOST + b"\r\n",
    "a target that is not ASCII": b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n",
    "no host": b"GET /a HTTP/1.1\r\n\r\n",
    "an empty host": b"GET /a HTTP/1.1\r\nHost: \r\n\r\n",
    "two hosts": b"GET /a HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    "two hosts in HTTP/1.0": b"GET /a HTTP/1.0\r\n" + HOST + HOST + b"\r\n",
    "a host with a user name": b"GET /a HTTP/1.1\r\nHost: x@test\r\n\r\n",
    "a host with a path": b"GET /a HTTP/1.1\r\nHost: test/admin?\r\n\r\n",
    "a host with a space": b"GET /a HTTP/1.1\r\nHost: te st\r\n\r\n",
    "two hosts in one header": b"GET /a HTTP/1.1\r\nHost: test, other\r\n\r\n",
    "no version": b"GET /a\r\n\r\n",
    "the version HTTP/0.9": b"GET /a HTTP/0.9\r\n" + HOST + b"\r\n",
    "the version HTTP/2.0": b"GET /a HTTP/2.0\r\n" + HOST + b"\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "NUL bytes": b"\0" * 1000,
    "a method in lower case": b"get /a HTTP/1.1\r\n" + HOST + b"\r\n",
}
MALFORMED_BODIES = {
    "a chunk without a size": CHUNKED + b"xyz\r\n" + GET,
    "a space before the chunk size": CHUNKED + b" 5\r\nhello\r\n0\r\n\r\n" + GET,
    "a chunk size with 0x": CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n" + GET,
    "a chunk size of 17 digits": CHUNKED + b"fffffffffffffffff\r\n" + GET,
    "bare LF after the chunk size": CHUNKED + b"5\nhello\r\n0\r\n\r\n" + GET,
    "a chunk longer than its size": CHUNKED + b"5\r\nhello world\r\n0\r\n\r\n" + GET,
    "an endless chunk extension": CHUNKED + b"5;" + b"a" * 300_000,
    "endless trailers": CHUNKED + b"5\r\nhello\r\n0\r\n" + b"A: b\r\n" * 50_000,
    "more than 128 trailers": CHUNKED + b"5\r\nhello\r\n0\r\n" + b"A: b\r\n" * 129 + b"\r\n",
    "endless small chunks": CHUNKED + b"1\r\na\r\n" * 20_000,
}
OVERSIZED = {
    "a long target": (b"GET /" + b"a" * 16_384 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414, "uri_too_long"),
    "an endless target": (b"GET /" + b"a" * 1_000_000, 414, "uri_too_long"),
    "many headers": (b"GET /a HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 1_000 + b"\r\n", 431, "headers_too_large"),
    "a long header": (b"GET /a HTTP/1.1\r\n" + HOST + b"A: " + b"b" * 65_536 + b"\r\n\r\n", 431, "headers_too_large"),
    "an endless header": (b"GET /a HTTP/1.1\r\n" + HOST + b"A: " + b"b" * 1_000_000, 431, "headers_too_large"),
    "endless headers": (b"GET /a HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 200_000, 431, "headers_too_large"),
    "endless empty lines": (b"\r\n" * 200_000, 431, "headers_too_large"),
    "an unknown expectation": (POST + b"Expect: x\r\nContent-Length: 1\r\n\r\na", 417, "expectation_failed"),
}


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_malformed_request_is_refused_and_the_rest_of_the_input_ignored(
    server: LocalServer, request_bytes: bytes
) -> None:
    async with server.client() as client:
        await client.send(request_bytes + GET)
        response = await client.receive()

        assert (response.status, response.code) == (400, "malformed_request")
        assert response.headers["connection"] == "close"
        assert response.headers["x-request-id"]
        assert await client.is_closed()
    assert server.application.scopes == []


@pytest.mark.parametrize("request_bytes", MALFORMED_BODIES.values(), ids=MALFORMED_BODIES.keys())
async def test_a_malformed_body_is_refused_and_the_rest_of_the_input_ignored(
    server: LocalServer, request_bytes: bytes
) -> None:
    async with server.client() as client:
        await client.send(request_bytes)
        response = await client.receive()

        assert (response.status, response.code) == (400, "malformed_request")
        assert await client.is_closed()
    assert server.application.requests == []


@pytest.mark.parametrize(("request_bytes", "status", "code"), OVERSIZED.values(), ids=OVERSIZED.keys())
async def test_an_oversized_request_is_refused(
    server: LocalServer, request_bytes: bytes, status: int, code: str
) -> None:
    async with server.client() as client:
        await client.send(request_bytes)
        response = await client.receive()

        assert (response.status, response.code) == (status, code)
        assert await client.is_closed()
    assert server.application.scopes == []


@pytest.mark.parametrize(
    ("request_bytes", "body"),
    [
        pytest.param(GET, b"", id="plain"),
        pytest.param(b"\r\n\r\n" + GET, b"", id="after empty lines"),
        pytest.param(b"GET /a HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n", b"", id="an IPv6 address as host"),
        pytest.param(b"GET /a HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 100 + b"\r\n", b"", id="a hundred headers"),
        pytest.param(b"GET /a HTTP/1.1\r\n" + HOST + b"A: " + b"b" * 60_000 + b"\r\n\r\n", b"", id="a long header"),
        pytest.param(POST + b"Content-Length: 5\r\n\r\nhello", b"hello", id="a body"),
        pytest.param(CHUNKED + b"5;a=b\r\nhello\r\n0\r\n\r\n", b"hello", id="chunks"),
        pytest.param(CHUNKED + b"1\r\na\r\n" * 4_000 + b"0\r\n\r\n", b"a" * 4_000, id="small chunks"),
        pytest.param(POST + b"Content-Length: 300000\r\n\r\n" + b"a" * 300_000, b"a" * 300_000, id="a large body"),
    ],
)
async def test_a_valid_request_gets_a_response_and_the_connection_stays_open(
    server: LocalServer, request_bytes: bytes, body: bytes
) -> None:
    async with server.client() as client:
        for _ in range(2):
            await client.send(request_bytes)
            assert (await client.receive()).status == 200
        await client.send(LAST_GET)
        assert (await client.receive()).status == 200
        assert await client.is_closed()

    assert server.application.requests == [("/a", body), ("/a", body), ("/last", b"")]


async def test_a_large_body_may_have_more_chunks(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_MAX_CHUNKS", 10)
    large, small = [CHUNKED + b"%x\r\n%b\r\n" % (size, b"a" * size) * 100 + b"0\r\n\r\n" for size in (1024, 900)]

    async with server.client() as client:
        await client.send(large)
        assert (await client.receive()).status == 200
        await client.send(small)
        assert (await client.receive()).status == 400


@pytest.mark.parametrize("host", [b"", HOST])
async def test_http_1_0_needs_no_host_and_closes_the_connection(server: LocalServer, host: bytes) -> None:
    async with server.client() as client:
        await client.send(b"GET /a HTTP/1.0\r\n" + host + b"\r\n")
        assert (await client.receive()).status == 200
        assert await client.is_closed()


async def test_a_response_with_a_line_break_in_a_header_is_not_sent(server: LocalServer) -> None:
    async with server.client() as client:
        await client.send(GET.replace(b"/a", b"/injecting"))

        assert await client.is_closed()


async def test_trailers_are_not_added_to_the_headers(server: LocalServer) -> None:
    async with server.client() as client:
        await client.send(CHUNKED + b"5\r\nhello\r\n0\r\nAuthorization: Bearer x\r\n\r\n")
        assert (await client.receive()).status == 200

    assert b"authorization" not in dict(server.application.scopes[0]["headers"])


async def test_a_request_may_arrive_byte_by_byte(server: LocalServer) -> None:
    async with server.client() as client:
        for byte in POST + b"Content-Length: 5\r\n\r\nhello":
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.receive()).body == b"/a 5"


UPGRADE = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"


async def test_a_request_with_an_upgrade_header_gets_a_response_in_http_1_1(server: LocalServer) -> None:
    async with server.client() as client:
        await client.send(b"GET /a HTTP/1.1\r\n" + HOST + UPGRADE + b"\r\n" + GET + LAST_GET)
        responses = [await client.receive() for _ in range(3)]

        assert [response.status for response in responses] == [200, 200, 200]
        assert await client.is_closed()


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("framing", [b"Content-Length: %d\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n%x\r\n"])
async def test_the_body_of_a_request_with_an_upgrade_header_is_not_read_as_a_request(
    server: LocalServer, framing: bytes, *, is_split: bool
) -> None:
    head, body = POST + UPGRADE + framing % len(GET), GET + b"\r\n0\r\n\r\n" * (b"chunked" in framing)

    async with server.client() as client:
        await client.send(head if is_split else head + body)
        if is_split:
            await server.wait_for_state(lambda connection: connection._body_since is not None)
            await client.send(body)
        response = await client.receive()

        assert (response.status, response.headers["connection"]) == (200, "close")
        assert await client.is_closed()
    assert server.application.requests == [("/a", GET)]


async def test_a_client_that_expects_100_continue_gets_it(server: LocalServer) -> None:
    async with server.client() as client:
        await client.send(POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert (await client.receive()).status == 100
        await client.send(b"hello")
        assert (await client.receive()).body == b"/a 5"


async def test_a_client_that_expects_100_continue_gets_413_for_an_oversized_body(server: LocalServer) -> None:
    async with server.client() as client:
        await client.send(POST + b"Expect: 100-continue\r\nContent-Length: 10000000\r\n\r\n")
        response = await client.receive()

        assert (response.status, response.code) == (413, "payload_too_large")
        assert await client.is_closed()


async def test_an_early_refusal_reaches_a_client_that_is_still_sending(server: LocalServer) -> None:
    async with server.client() as client:
        await client.send(POST + b"Content-Length: 4000000\r\n\r\n" + b"a" * 3_000_000)
        response = await client.receive()

        assert (response.status, response.code) == (413, "payload_too_large")
        assert await client.is_closed()
        # A second call does not extend the time.
        server.open_connections[0].close_lingering()
        server.enforce_timeouts_in(1.5)
        assert server.open_connections
        server.enforce_timeouts_in(2.5)
        await server.wait_until(lambda: not server.open_connections)


async def test_garbage_after_a_request_does_not_change_its_response(server: LocalServer) -> None:
    async with server.client() as client:
        await client.send(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n" + GET + b"garbage\r\n\r\n")
        await server.wait_for_state(lambda connection: connection._discards_input)
        # Only the response is late, so no timeout applies.
        server.enforce_timeouts_in(1_000)
        server.application.may_respond.set()
        responses = [await client.receive(), await client.receive()]

        assert [response.body for response in responses] == [b"/wait 0", b"/a 0"]
        assert responses[1].headers["connection"] == "close"
        assert await client.is_closed()


async def test_a_malformed_body_after_an_early_response_closes_the_connection(server: LocalServer) -> None:
    async with server.client() as client:
        await client.send(b"POST /early HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
        assert (await client.receive()).status == 200
        await client.send(b"garbage\r\n" + GET)

        assert await client.is_closed()


async def test_a_malformed_body_during_the_response_closes_the_connection(server: LocalServer) -> None:
    async with server.client() as client:
        await client.send(b"POST /halting HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
        assert (await client.reader.readuntil(b"\r\n\r\n/")).startswith(b"HTTP/1.1 200")
        await client.send(b"garbage\r\n")

        assert await client.is_closed()
