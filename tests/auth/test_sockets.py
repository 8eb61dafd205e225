"""WebSockets open with a ticket, and end with the login session of their caller."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, Response, WebSocket, WebSocketDisconnect
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Scope
from starlette.websockets import WebSocketDisconnected
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app.auth.access import session_watch
from app.auth.dependencies import ticket
from app.auth.errors import InsufficientScopeError
from app.core.errors import AppError, InternalError, RequestTimeoutError
from app.core.http.error_handlers import add_error_handlers
from app.core.http.mounts import mount_public
from app.core.http.sockets import exchange
from app.core.security.hashing import PasswordHasher
from app.server import sockets as server_sockets
from app.users.errors import EmailTakenError
from tests.auth.login_sessions import REVOKE, Pair
from tests.auth.socket_routes import ADMIN, ECHO, NEWS
from tests.auth.sockets import PATIENCE, Site, site
from tests.auth.test_token_status import ENDS, MODES
from tests.conftest import cloned
from tests.jobs.conftest import eventually

DENIAL: dict[str, Any] = {"websocket.http.response": {}}
ROOM = "0192f0c1-a2b3-7c4d-8e5f-60718293a4b5"


class PlainError(Exception):
    """An error whose handler of the application answers in plain text."""


class ListError(Exception):
    """An error whose handler of the application answers in JSON that is not a problem document."""


@pytest.fixture(scope="module")
async def shared_url(template_url: str) -> AsyncIterator[str]:
    async with cloned(template_url) as url:
        yield url


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoints that do not return are cancelled soon."""
    for module in (exchange, server_sockets):
        monkeypatch.setattr(module, "FINISH_TIME", 0.2)


@pytest.fixture(scope="module")
async def running(shared_url: str, hasher: PasswordHasher) -> AsyncIterator[Site]:
    async with site(shared_url, hasher) as running:
        yield running


async def closed(socket: ClientConnection) -> tuple[int, str]:
    """Wait for the end of a socket, and return its code and reason."""
    async with asyncio.timeout(PATIENCE):
        with suppress(ConnectionClosed):
            while True:
                await socket.recv()
    # 1006 if the connection was lost without a close frame.
    assert socket.close_code is not None
    return socket.close_code, socket.close_reason or ""


async def refused(running: Site, tokens: Pair | str, path: str = ECHO, **options: Any) -> tuple[int, str]:
    """Return the status and the code of a refused handshake."""
    with pytest.raises(InvalidStatus) as refusal:
        async with running.open(tokens, path, **options):
            pass
    response = refusal.value.response
    problem = json.loads(response.body)
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["status"] == response.status_code
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["connection"] == "close"
    return response.status_code, problem["code"]


async def test_a_ticket_opens_a_socket_as_the_caller(running: Site) -> None:
    tokens = await running.log_in()

    async with running.open(tokens) as socket:
        assert socket.subprotocol == "ticket"
        assert socket.response
        assert socket.response.headers["x-request-id"]
        await socket.send("hello")
        assert await socket.recv() == "hello"
        await socket.send("who")
        assert "@" in str(await socket.recv())
        await socket.send("bytes")
        assert await socket.recv() == b"\0\xff"
        # Nothing is held while the socket is open.
        taken = [getattr(running.database, name).pool.checkedout() for name in ("engine", "read_engine")]
        assert taken == [0, 0]

    await eventually(running.is_at_rest)


async def test_a_ticket_opens_one_socket(running: Site) -> None:
    ticket = await running.ticket(await running.log_in())
    async with running.open(ticket):
        pass

    assert await refused(running, ticket) == (401, "invalid_ticket")


async def test_a_socket_has_parameters_scopes_and_subprotocols_like_an_operation(running: Site) -> None:
    admin = await running.log_in("admin")
    path = f"{ADMIN}/{ROOM}"

    async with running.open(admin, f"{path}?size=3", more=["chat"]) as socket:
        assert socket.subprotocol == "chat"
        assert str(await socket.recv()).startswith(f"{ROOM} 3 127.0.0.")
    assert await refused(running, await running.log_in(), path) == (403, "insufficient_scope")
    assert await refused(running, admin, f"{path}?size=11") == (422, "validation_error")
    assert await refused(running, admin, f"{path}?other=1") == (422, "validation_error")
    assert await refused(running, admin, f"{ADMIN}/no-id") == (404, "not_found")
    assert await refused(running, admin, "/sockets/none") == (404, "not_found")


@pytest.mark.parametrize("path", ["/sockets/refusing", "/sockets/silent"])
async def test_an_endpoint_that_does_not_accept_refuses(running: Site, path: str) -> None:
    assert await refused(running, await running.log_in(), path) == (403, "forbidden")


@MODES
@pytest.mark.parametrize("kind", ENDS)
async def test_a_socket_ends_when_its_session_is_revoked_elsewhere(
    shared_url: str, hasher: PasswordHasher, access_check: str, kind: str
) -> None:
    async with site(shared_url, hasher, access_check=access_check) as running:
        tokens, other = await running.log_in(), await running.log_in()
        async with (
            running.open(tokens) as reading,
            running.open(tokens, NEWS) as writing,
            running.open(other) as staying,
        ):
            await running.run(ENDS[kind], tokens)

            assert await closed(reading) == (4401, "invalid_token")
            assert await closed(writing) == (4401, "invalid_token")

            await staying.send("still here")
            assert await staying.recv() == "still here"


async def test_a_logout_ends_its_sockets_without_waiting_for_the_next_check(
    running: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_watch, "CHECK_INTERVAL", 600)
    tokens = await running.log_in()
    async with running.open(tokens) as socket:
        await asyncio.sleep(1.1)

        await running.client.post(REVOKE, data={"token": tokens.refresh})

        assert await closed(socket) == (4401, "invalid_token")


async def test_a_socket_ends_when_its_token_expires(shared_url: str, hasher: PasswordHasher) -> None:
    async with site(shared_url, hasher, access_token_ttl="4s") as running:
        tokens = await running.log_in()
        async with running.open(tokens) as socket:
            assert await closed(socket) == (4401, "invalid_token")

        assert 0 <= time.time() - tokens.claims["exp"] < PATIENCE


async def test_sockets_end_when_the_server_shuts_down(shared_url: str, hasher: PasswordHasher) -> None:
    async with site(shared_url, hasher) as running:
        tokens = await running.log_in()
        ticket = await running.ticket(tokens)
        async with running.open(tokens) as socket, running.open(tokens, NEWS) as other:
            running.shutdown.begin()

            assert await closed(socket) == await closed(other) == (1012, "shutting_down")

        assert await refused(running, ticket) == (503, "shutting_down")


async def test_the_server_closes_sockets_that_the_application_does_not_end(running: Site) -> None:
    async with running.open(await running.log_in()) as socket:
        for connection in list(running.connections.connections):
            connection.shutdown()

        assert (await closed(socket))[0] == 1012


async def test_an_endpoint_that_does_not_return_is_cancelled(running: Site) -> None:
    tokens = await running.log_in()
    async with running.open(tokens) as socket:
        await socket.send("sleep")
        await running.run(ENDS["session"], tokens)

        assert await closed(socket) == (4401, "invalid_token")

    await eventually(running.is_at_rest)


async def test_messages_keep_their_order(running: Site) -> None:
    async with running.open(await running.log_in()) as socket:
        for number in range(50):
            await socket.send(str(number))

        assert [await socket.recv() for _ in range(50)] == [str(number) for number in range(50)]


async def test_messages_before_the_end_are_handled(running: Site) -> None:
    async with running.open(await running.log_in()) as socket:
        await socket.send("who")
        await socket.send("bye")
        assert "@" in str(await socket.recv())
        assert await closed(socket) == (1000, "")


@pytest.mark.parametrize(
    ("message", "end"), [("missing", (4404, "user_not_found")), ("bug", (1011, "internal_error")), ("bye", (1000, ""))]
)
async def test_the_end_of_an_endpoint_closes_the_socket(
    running: Site, message: str, end: tuple[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    async with running.open(await running.log_in()) as socket:
        await socket.send(message)

        assert await closed(socket) == end
    assert ("unhandled error" in caplog.text) == (message == "bug")


async def test_an_account_has_a_limit_of_sockets(shared_url: str, hasher: PasswordHasher) -> None:
    async with site(shared_url, hasher, streams_per_account=2) as running:
        tokens, other = await running.log_in(), await running.log_in()
        async with running.open(tokens):
            async with running.open(tokens), running.open(other):
                assert await refused(running, tokens) == (429, "too_many_streams")

            await eventually(lambda: opens(running, tokens))


async def opens(running: Site, tokens: Pair) -> bool:
    try:
        async with running.open(tokens):
            return True
    except InvalidStatus:
        return False


async def test_a_process_has_a_limit_of_sockets(shared_url: str, hasher: PasswordHasher) -> None:
    async with site(shared_url, hasher, server={"max_sockets": 2}) as running:
        tokens = await running.log_in()
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(running.open(tokens))

            ticket = await running.ticket(tokens)
            assert await refused(running, ticket) == (503, "too_many_sockets")

        # A refusal for this reason does not use the ticket up.
        await eventually(lambda: opens_with(running, ticket))


async def opens_with(running: Site, ticket: str) -> bool:
    try:
        async with running.open(ticket):
            return True
    except InvalidStatus:
        return False


async def test_news_reach_all_sockets(running: Site) -> None:
    tokens = await running.log_in()
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(running.open(tokens, NEWS)) for _ in range(10)]
        assert [await socket.recv() for socket in sockets] == ["subscribed"] * 10

        await running.publish("first")

        assert [await socket.recv() for socket in sockets] == ["first"] * 10
    # The endpoint does not receive, and so does not notice that the client has gone.
    await eventually(running.is_at_rest)


# Servers that send other messages than `app serve`


@asynccontextmanager
async def conversation(
    running: Site,
    *received: Message,
    subprotocols: list[str],
    extensions: dict[str, Any] | None = None,
    path: str = ECHO,
    headers: Sequence[tuple[bytes, bytes]] = (),
    refusal: AppError | None = None,
) -> AsyncIterator[list[Message]]:
    """Give the application these messages of a client, as a server without our limits would, and collect its own messages."""
    sent: list[Message] = []
    waiting = [{"type": "websocket.connect"}, *received, {"type": "websocket.disconnect", "code": 1001}]

    async def receive() -> Message:
        return waiting.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    async with running.app.router.lifespan_context(running.app) as state:
        scope: Scope = {
            "type": "websocket",
            "path": path,
            "query_string": b"",
            "headers": list(headers),
            "subprotocols": subprotocols,
            "state": dict(state or {}) | ({"refusal": refusal} if refusal else {}),
        }
        await running.app({**scope, **({} if extensions is None else {"extensions": extensions})}, receive, send)
    yield sent


async def test_a_server_without_denial_responses_closes_before_the_accept(running: Site) -> None:
    async with conversation(running, subprotocols=["ticket", "st1.unknown"]) as sent:
        assert [(message["type"], message["code"]) for message in sent] == [("websocket.close", 4403)]


async def test_a_message_that_another_server_accepts_is_too_large(running: Site) -> None:
    ticket = await running.ticket(await running.log_in())
    large = {"type": "websocket.receive", "text": "ä" * 40_000}

    async with conversation(running, large, subprotocols=["ticket", ticket]) as sent:
        assert [message["type"] for message in sent] == ["websocket.accept", "websocket.close"]
        assert (sent[1]["code"], sent[1]["reason"]) == (1009, "payload_too_large")


async def test_a_refusal_of_the_server_is_the_response(running: Site) -> None:
    late = RequestTimeoutError()

    async with conversation(running, subprotocols=[], extensions=DENIAL, refusal=late) as sent:
        assert [message["type"] for message in sent] == [
            "websocket.http.response.start",
            "websocket.http.response.body",
        ]
        assert json.loads(sent[1]["body"])["code"] == "request_timeout"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (HTTPException(404), (4404, "not_found")),
        (HTTPException(503), (1013, "service_unavailable")),
        (PlainError(), (4418, "")),
        (ListError(), (4418, "")),
        (ExceptionGroup("tasks", [WebSocketDisconnect(), ExceptionGroup("more", [WebSocketDisconnect()])]), (1000, "")),
        (TimeoutError(), (1011, "internal_error")),
        (ExceptionGroup("tasks", [EmailTakenError()]), (4409, "email_taken")),
        (ExceptionGroup("tasks", [EmailTakenError(), EmailTakenError()]), (1011, "internal_error")),
        (EmailTakenError(), (4409, "email_taken")),
    ],
)
async def test_an_error_after_the_accept_closes_the_socket_with_a_code_that_follows_from_its_status(
    error: Exception, code: tuple[int, str]
) -> None:
    async def fail(socket: WebSocket) -> None:
        await socket.accept()
        raise error

    assert await end_of(fail) == code


async def test_an_endpoint_may_close_the_socket_itself() -> None:
    async def close(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close(4000, "done" * 100)
        with pytest.raises(WebSocketDisconnected):
            await socket.send_text("more")

    code, reason = await end_of(close)

    assert (code, len(reason)) == (4000, 123)


async def test_a_cancelled_socket_closes_as_at_a_shutdown() -> None:
    async def wait(socket: WebSocket) -> None:
        await socket.accept()
        raise asyncio.CancelledError

    assert await end_of(wait) == (1012, "shutting_down")


async def test_a_timeout_while_receiving_is_an_error_of_the_server() -> None:
    async def receive(socket: WebSocket) -> None:
        await socket.accept()
        await socket.receive()

    assert await end_of(receive, TimeoutError()) == (1011, "internal_error")


async def test_an_error_after_a_refusal_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def refuse(socket: WebSocket) -> None:
        await socket.close()
        raise LookupError

    sent = await messages_of(refuse, {"extensions": DENIAL})

    assert [message.get("status") for message in sent] == [403, None]
    assert "unhandled error" in caplog.text


async def end_of(
    endpoint: Callable[[WebSocket], Awaitable[object]], failure: Exception | None = None
) -> tuple[int, str]:
    """Return the code and the reason of the close frame that an endpoint leads to."""
    sent = await messages_of(endpoint, {}, failure)
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.close"]
    return sent[1]["code"], sent[1]["reason"]


async def messages_of(
    endpoint: Callable[[WebSocket], Awaitable[object]], more: Scope, failure: Exception | None = None
) -> list[Message]:
    """Run an endpoint without a caller, and return what it sends."""
    app = FastAPI()
    add_error_handlers(app)
    app.websocket("/")(endpoint)

    async def on_plain(_connection: object, error: Exception) -> Response:
        return Response(b"[]" if isinstance(error, ListError) else b"plain", 418)

    for kind in (PlainError, ListError):
        app.add_exception_handler(kind, on_plain)
    middleware = exchange.SocketMiddleware(app, origins=("*",), max_sockets=1, max_message_size=1, hsts=False)
    sent: list[Message] = []
    waiting: list[Message] = [{"type": "websocket.connect"}]

    async def receive() -> Message:
        if not waiting and failure:
            raise failure
        return waiting.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "websocket", "path": "/", "query_string": b"", "headers": [(b"origin", b"https://any")]}
    await middleware({**scope, "app": app, **more}, receive, send)
    return sent


async def test_a_mounted_application_has_no_socket(running: Site, tmp_path: Path) -> None:
    mount_public(running.app, "/files", StaticFiles(directory=tmp_path))
    try:
        assert await refused(running, await running.log_in(), "/files/a.txt") == (404, "not_found")
    finally:
        running.app.router.routes.pop()


async def test_only_the_first_end_counts() -> None:
    ended: list[str] = []

    async def endpoint(socket: WebSocket) -> None:
        await socket.accept()
        exchange.end_socket(socket.scope, EmailTakenError())
        exchange.end_socket(socket.scope, InternalError())
        with pytest.raises(WebSocketDisconnect):
            await socket.send_text("too late")
        ended.append("ended")

    assert await end_of(endpoint) == (4409, "email_taken")
    assert ended == ["ended"]


async def test_other_scopes_pass() -> None:
    seen: list[str] = []

    async def app(scope: Scope, _receive: object, _send: object) -> None:
        seen.append(scope["type"])

    middleware = exchange.SocketMiddleware(app, origins=(), max_sockets=1, max_message_size=1, hsts=False)

    async def nothing(*_arguments: object) -> Any: ...

    await middleware({"type": "lifespan"}, nothing, nothing)

    assert seen == ["lifespan"]


def test_the_guard_of_tickets_names_its_errors() -> None:
    assert InsufficientScopeError in ticket.errors(["users:read"])
    assert InsufficientScopeError not in ticket.errors([])
