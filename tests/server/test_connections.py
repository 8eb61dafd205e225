"""Timeouts, shutdown and the connection limit, over real sockets."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from app.server import connections
from tests.server.local_server import CHUNKED, GET, HOST, LARGE, POST, LocalServer, local_server

# Timeouts


@pytest.mark.parametrize(
    ("sent", "limit", "status"),
    [
        pytest.param(b"", 10, None, id="nothing"),
        pytest.param(b"\r\n\r\n", 10, None, id="empty lines"),
        pytest.param(b"GET /a HTT", 10, 408, id="a part of the request line"),
        pytest.param(b"GET /a\n", 10, 408, id="the first line with a bare LF"),
        pytest.param(b"GET /a HTTP/1.1\r\nHo", 10, 408, id="a part of the head"),
        pytest.param(POST + b"Content-Length: 5\r\n\r\nhell", 10, 408, id="a part of the body"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n", 10, 408, id="a part of the chunks"),
    ],
)
async def test_a_client_that_stops_sending_runs_into_a_timeout(
    server: LocalServer, sent: bytes, limit: float, status: int | None
) -> None:
    async with server.client() as client:
        await client.send(sent)
        await server.wait_for_state(
            lambda connection: connection._received_size == len(sent) or connection._body_since is not None
        )

        server.enforce_timeouts_in(limit - 0.5)
        await asyncio.sleep(0.01)
        assert not client.reader.at_eof()
        server.enforce_timeouts_in(limit + 0.5)

        if status:
            response = await client.receive()
            assert (response.status, response.code) == (status, "request_timeout")
        assert await client.is_closed()
    assert server.application.requests == []


@pytest.mark.parametrize(
    ("head", "limit"),
    [
        pytest.param(b"GET /a HTTP/1.1\r\nA: ", 10, id="head"),
        pytest.param(POST + b"Content-Length: 500\r\n\r\n", 30, id="body"),
    ],
)
async def test_a_client_that_sends_slowly_runs_into_a_timeout(server: LocalServer, head: bytes, limit: float) -> None:
    async with server.client() as client:
        await client.send(head)
        await server.wait_for_state(lambda connection: connection._last_read_at > 0 and connection.idle_since is None)
        [connection] = server.open_connections
        now = asyncio.get_running_loop().time()
        for second in range(int(limit)):
            connection._last_read_at = now + second
            server.connections.enforce_timeouts(now + second)
        assert not connection._discards_input

        connection._last_read_at = now + limit + 1
        server.connections.enforce_timeouts(now + limit + 1)

        assert (await client.receive()).code == "request_timeout"
        assert await client.is_closed()


async def test_a_body_that_stops_after_an_early_response_closes_the_connection(server: LocalServer) -> None:
    async with server.client() as client:
        await client.send(b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\n")
        assert (await client.receive()).status == 200
        server.enforce_timeouts_in(11)

        assert await client.is_closed()


async def test_no_timeout_applies_while_the_server_has_paused_reading(server: LocalServer) -> None:
    async with server.client() as client:
        await client.send(b"POST /wait HTTP/1.1\r\n" + HOST + b"Content-Length: 500000\r\n\r\n")
        client.writer.write(b"a" * 500_000)
        await server.wait_for_state(lambda connection: bool(connection.flow.read_paused))
        server.enforce_timeouts_in(100)
        server.application.may_respond.set()

        assert (await client.receive()).body == b"/wait 500000"


@pytest.mark.parametrize("is_silent", [False, True])
async def test_the_timeout_of_a_body_starts_again_when_the_server_resumes_reading(
    server: LocalServer, *, is_silent: bool
) -> None:
    async with server.client() as client:
        await client.send(b"POST /wait HTTP/1.1\r\n" + HOST + b"Content-Length: 500001\r\n\r\n")
        client.writer.write(b"a" * 500_000)
        await server.wait_for_state(lambda connection: bool(connection.flow.read_paused))
        server.enforce_timeouts_in(100)
        server.application.may_respond.set()
        await server.wait_for_state(
            lambda connection: connection._body_size == 500_000 and not connection.flow.read_paused
        )
        [connection] = server.open_connections
        # The pause above is simulated, but this time was taken from the real clock.
        connection._last_read_at += 100

        server.enforce_timeouts_in(109)
        assert not connection._discards_input
        if is_silent:
            server.enforce_timeouts_in(111)
        else:
            await client.send(b"a")

        response = await client.receive()
    assert (
        (response.code, response.body) == (None, b"/wait 500001")
        if not is_silent
        else response.code == "request_timeout"
    )


async def test_the_timeout_of_the_next_head_starts_when_the_current_request_has_its_response(
    server: LocalServer,
) -> None:
    async with server.client() as client:
        await client.send(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n" + GET + b"GET /last HT")
        await server.wait_for_state(
            lambda connection: bool(connection.flow.read_paused) and connection._head_since is not None
        )
        server.enforce_timeouts_in(100)
        server.application.may_respond.set()
        for path in (b"/wait 0", b"/a 0"):
            assert (await client.receive()).body == path

        await client.send(b"TP/1.1\r\n" + HOST + b"\r\n")

        assert (await client.receive()).body == b"/last 0"


async def test_no_timeout_applies_to_a_body_before_100_continue_is_sent(server: LocalServer) -> None:
    async with server.client() as client:
        await client.send(b"POST /wait HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        await server.wait_for_state(lambda connection: connection._body_since is not None)
        server.enforce_timeouts_in(100)
        server.application.may_respond.set()

        assert (await client.receive()).status == 100
        await client.send(b"hello")
        assert (await client.receive()).body == b"/wait 5"


async def test_a_timeout_applies_to_a_body_that_is_missing_after_an_early_response(server: LocalServer) -> None:
    async with server.client() as client:
        await client.send(b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert (await client.receive()).status == 200
        server.enforce_timeouts_in(11)

        assert await client.is_closed()


async def test_a_client_that_does_not_read_its_response_is_disconnected(server: LocalServer) -> None:
    async with server.client() as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # Its type has only methods for writing.
        await client.send(b"GET /large HTTP/1.1\r\n" + HOST + b"\r\n")
        await server.wait_for_state(lambda connection: connection._write_paused_since is not None)

        server.enforce_timeouts_in(29)
        assert server.open_connections
        server.enforce_timeouts_in(31)
        await server.wait_until(lambda: not server.open_connections)


async def test_a_client_that_reads_slowly_gets_the_whole_response(server: LocalServer) -> None:
    async with server.client() as client:
        await client.send(b"GET /large HTTP/1.1\r\n" + HOST + b"\r\n")
        await server.wait_for_state(lambda connection: connection._write_paused_since is not None)

        assert len((await client.receive()).body) == LARGE
        await server.wait_for_state(lambda connection: connection._write_paused_since is None)


async def test_a_closing_connection_is_aborted_if_its_response_is_not_read(server: LocalServer) -> None:
    async with server.client() as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # As above.
        await client.send(b"GET /large HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        await server.wait_for_state(lambda connection: connection.transport.is_closing())
        # Without the timeout for writing, only the one for closing is left.
        [connection] = server.open_connections
        connection._write_paused_since = None

        server.enforce_timeouts_in(0)
        server.enforce_timeouts_in(29)
        assert server.open_connections
        server.enforce_timeouts_in(31)
        await server.wait_until(lambda: not server.open_connections)


async def test_an_idle_connection_is_closed_after_the_keep_alive_timeout(server: LocalServer) -> None:
    async with server.client() as client:
        await client.send(GET)
        await client.receive()
        await server.wait_for_state(lambda connection: connection.idle_since is not None)

        server.enforce_timeouts_in(74)
        assert not server.open_connections[0].transport.is_closing()
        server.enforce_timeouts_in(76)
        assert await client.is_closed()


# Shutdown


@pytest.mark.parametrize("method", ["shutdown", "close_idle"])
async def test_a_connection_is_not_closed_if_a_request_has_just_arrived(server: LocalServer, method: str) -> None:
    async with server.client() as client:
        await client.send(GET)
        await client.receive()
        await server.wait_for_state(lambda connection: connection.idle_since is not None)
        [connection] = server.open_connections

        # The server has not read this yet: the event loop has not run since.
        client.writer.write(GET)
        getattr(connection, method)()

        assert (await client.receive()).status == 200
        await server.wait_for_state(lambda connection: connection.idle_since is not None)
        getattr(connection, method)()
        assert await client.is_closed()


async def test_shutdown_makes_the_response_in_progress_the_last_of_its_connection(server: LocalServer) -> None:
    async with server.client() as client:
        await client.send(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
        await server.wait_for_state(lambda connection: connection._is_responding)
        server.open_connections[0].shutdown()
        server.application.may_respond.set()
        response = await client.receive()

        assert (response.status, response.headers["connection"]) == (200, "close")
        assert await client.is_closed()


@pytest.mark.parametrize("sends_request", [True, False])
async def test_a_new_connection_may_send_a_request_during_shutdown(server: LocalServer, *, sends_request: bool) -> None:
    async with server.client() as client:
        await server.wait_for_state(lambda connection: connection.idle_since is not None)
        server.open_connections[0].shutdown()
        if sends_request:
            await asyncio.sleep(0.01)
            await client.send(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
            await asyncio.sleep(1.1)
            server.application.may_respond.set()
            assert (await client.receive()).status == 200
        else:
            assert await client.is_closed()


async def test_a_closing_connection_is_not_closed_again(server: LocalServer) -> None:
    async with server.client():
        await server.wait_for_state(lambda connection: connection.idle_since is not None)
        [connection] = server.open_connections

        assert connection.close_idle() is True
        assert connection.close_idle() is False


# The connection limit


async def test_the_longest_idle_connection_is_closed_for_a_new_one() -> None:
    async with local_server(limit=2) as server, server.client() as first, server.client() as second:
        for client in (first, second):
            await client.send(GET)
            await client.receive()
        async with server.client() as third:
            await third.send(GET)

            assert (await third.receive()).status == 200
            assert await first.is_closed()
            await second.send(GET)
            assert (await second.receive()).status == 200


async def test_a_new_connection_is_refused_if_none_is_idle() -> None:
    async with local_server(limit=1) as server, server.client() as first:
        await first.send(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
        await server.wait_for_state(lambda connection: connection._is_responding)
        async with server.client() as second:
            response = await second.receive()

            assert (response.status, response.code) == (503, "too_many_connections")
            assert await second.is_closed()
        server.application.may_respond.set()
        assert (await first.receive()).status == 200


async def test_of_many_connections_over_the_limit_only_some_get_a_response() -> None:
    async with local_server(limit=1) as server, server.client() as first, AsyncExitStack() as stack:
        await first.send(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
        await server.wait_for_state(lambda connection: connection._is_responding)
        refused = [await stack.enter_async_context(server.client()) for _ in range(connections._MAX_REFUSED)]
        assert {(await client.receive()).code for client in refused} == {"too_many_connections"}

        async with server.client() as further:
            assert await further.is_closed()

        assert len(server.open_connections) == 1 + connections._MAX_REFUSED
        server.application.may_respond.set()
        assert (await first.receive()).status == 200


@pytest.mark.parametrize(
    "sent", [b"", b"GET /a", POST + b"Content-Length: 5\r\n\r\nh", b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n"]
)
async def test_a_client_that_disconnects_leaves_no_connection_and_no_task(server: LocalServer, sent: bytes) -> None:
    async with server.client() as client:
        await client.send(sent)
        await server.wait_for_state(lambda connection: not sent or connection.idle_since is None)
    server.application.may_respond.set()

    await server.wait_until(lambda: not server.connections.connections and not server.connections.tasks)
