"""The server of one process: its signals, its shutdown, and its commands from the supervisor."""

import asyncio
import http.client
import json
import os
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from fastapi import FastAPI
from httpx2 import AsyncClient
from sqlalchemy import make_url

from app.core.config import ServerSettings
from app.core.db.database import Database
from app.core.errors import ConfigurationError
from app.core.listening import listen
from app.core.security.hashing import PasswordHasher
from app.server import serve
from app.server.serve import _Server
from app.server.supervisor import DRAIN, QUIT, READY, RETIRE
from tests.conftest import make_settings
from tests.factories import PASSWORD, make_user
from tests.servers import real_server

UNFINISHED_BODY = (
    b"POST /api/v1/auth/token HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\n\r\ngrant"
)


@pytest.fixture
def used_port() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port: int = holder.getsockname()[1]
        yield port


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize("received", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_server_without_an_error(
    clone_url: str, capsys: pytest.CaptureFixture[str], received: signal.Signals
) -> None:
    statuses: list[int] = []
    ports: list[int] = []

    def on_ready() -> None:
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        ports.extend(line["port"] for line in lines if line["event"] == "listening")
        connection = http.client.HTTPConnection("127.0.0.1", ports[0], timeout=5)
        connection.request("GET", "/readyz")
        statuses.append(connection.getresponse().status)
        connection.close()
        os.kill(os.getpid(), received)

    serve.serve(make_settings(clone_url, server={"port": 0}), announce=on_ready)

    assert statuses == [200]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports[0]))


@pytest.mark.usefixtures("restored_logging")
def test_a_client_in_the_backlog_gets_a_response_during_shutdown(
    clone_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients: list[socket.socket] = []

    async def fill_the_backlog(_server: object) -> None:
        # The event loop does not run in between, so the server accepts none of them before shutdown.
        for _ in range(3):
            client = socket.create_connection(address, timeout=5)
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            clients.append(client)

    monkeypatch.setattr(serve._Server, "main_loop", fill_the_backlog)
    with listen("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        serve._Server(make_settings(clone_url), None, lambda: None).run(sockets=[listener])

    responses = [client.recv(65536) for client in clients]
    for client in clients:
        client.close()
    assert [response[:13] for response in responses] == [b"HTTP/1.1 200 "] * 3
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


@pytest.mark.usefixtures("restored_logging")
def test_a_worker_stops_if_its_supervisor_was_killed_before_it_read_ready(clone_url: str) -> None:
    ours, theirs = socket.socketpair()

    def on_ready() -> None:
        theirs.sendall(READY)
        ours.close()

    began = time.monotonic()
    with listen("127.0.0.1", 0) as listener, theirs:
        serve._Server(make_settings(clone_url), None, on_ready, theirs).run(sockets=[listener])

    assert time.monotonic() - began < 20


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        pytest.param(DRAIN, (503, "close"), id="drain"),
        pytest.param(RETIRE, (503, "close"), id="retire"),
        pytest.param(QUIT, None, id="quit"),
        pytest.param(b"", None, id="the supervisor has exited"),
    ],
)
def test_a_worker_follows_the_commands_of_its_supervisor(
    clone_url: str, command: bytes, expected: tuple[int, str] | None
) -> None:
    ours, theirs = socket.socketpair()
    responses: list[tuple[int, str | None]] = []

    def on_ready() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=5)
        connection.connect()
        # Ctrl-C reaches the whole process group, so a worker ignores SIGINT.
        os.kill(os.getpid(), signal.SIGINT)
        if command:
            ours.sendall(command)
        ours.shutdown(socket.SHUT_WR)
        if expected:
            time.sleep(0.2)
            connection.request("GET", "/readyz")
            response = connection.getresponse()
            responses.append((response.status, response.getheader("connection")))
        connection.close()

    with ours, theirs, listen("127.0.0.1", 0) as listener:
        settings = make_settings(clone_url, server={"drain_delay": "1s"})
        serve._Server(settings, None, on_ready, theirs).run(sockets=[listener])

    assert responses == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("soft", "hard", "allowed", "connections"),
    [
        pytest.param(1024, 524_288, 4296, 4096, id="low soft limit"),
        pytest.param(1024, resource.RLIM_INFINITY, 4296, 4096, id="low soft limit, no hard limit"),
        pytest.param(1024, 2048, 2048, 1848, id="low hard limit"),
        pytest.param(256, 256, 256, 128, id="very low hard limit"),
        pytest.param(100_000, 100_000, 100_000, 4096, id="high limit"),
        pytest.param(*[resource.RLIM_INFINITY] * 3, 4096, id="no limit"),
    ],
)
def test_the_connection_limit_depends_on_the_file_limit(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, allowed: int, connections: int
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, given: limits.append(given))

    serve._raise_file_limit(4296)

    assert limits[-1] == (allowed, hard)
    assert serve._connection_limit(ServerSettings()) == connections


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
async def test_a_request_that_exceeds_the_shutdown_grace_gets_503_and_is_rolled_back(
    clone_url: str, hasher: PasswordHasher, arguments: tuple[str, ...]
) -> None:
    long_timeouts = {"APP_DATABASE__LOCK_TIMEOUT": "60s", "APP_DATABASE__STATEMENT_TIMEOUT": "60s"}
    plain = make_url(clone_url).set(drivername="postgresql").render_as_string(hide_password=False)
    database = Database(make_settings(clone_url).database)
    async with database.begin() as session:
        user = await make_user(session, hasher)
    await database.dispose()
    async with (
        real_server(clone_url, *arguments, APP_SERVER__SHUTDOWN_GRACE="1s", **long_timeouts) as running,
        AsyncClient(base_url=running.base_url, timeout=30) as client,
    ):
        holder = await asyncpg.connect(plain)
        await holder.execute("BEGIN")
        await holder.execute("SELECT FROM users WHERE id = $1 FOR UPDATE", user.id)
        form = {"grant_type": "password", "username": user.email, "password": PASSWORD}
        waiting = asyncio.create_task(client.post("/api/v1/auth/token", data=form))
        while not await holder.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            pass

        running.process.send_signal(signal.SIGTERM)
        response = await waiting
        code = await asyncio.wait_for(running.process.wait(), 20)
        await holder.execute("ROLLBACK")

        assert response.status_code == 503
        assert (response.json()["code"], response.headers["retry-after"]) == ("shutting_down", "1")
        assert code == 0
        assert await holder.fetchval("SELECT count(*) FROM sessions") == 0
        await holder.close()


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
@pytest.mark.parametrize(
    "sent", [b"GET /live", UNFINISHED_BODY], ids=["a part of the request line", "a part of the body"]
)
async def test_timeouts_apply_during_shutdown(clone_url: str, sent: bytes, arguments: tuple[str, ...]) -> None:
    limits = {"APP_SERVER__HEADER_TIMEOUT": "2s", "APP_SERVER__READ_TIMEOUT": "2s", "APP_SERVER__SHUTDOWN_GRACE": "30s"}
    async with real_server(clone_url, *arguments, **limits) as running:
        address = urlsplit(running.base_url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(sent)
        await writer.drain()
        # The server reads these bytes before its shutdown begins.
        await asyncio.sleep(0.5)
        running.process.send_signal(signal.SIGTERM)
        began = time.monotonic()

        async with asyncio.timeout(25):
            response = await reader.read()
            code = await running.process.wait()
        writer.close()

    assert response.startswith(b"HTTP/1.1 408 ")
    assert code == 0
    assert time.monotonic() - began < 20


@pytest.mark.usefixtures("restored_logging")
def test_an_application_that_does_not_start_ends_the_process_with_an_error(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        message = "a defect"
        raise RuntimeError(message)
        yield

    monkeypatch.setattr(serve, "create_app", lambda _, **__: FastAPI(lifespan=lifespan))

    with pytest.raises(SystemExit) as ended:
        serve.serve(make_settings(database_url, server={"port": 0}))

    assert ended.value.code not in {0, None}
    assert "a defect" in capsys.readouterr().out


@pytest.mark.usefixtures("restored_logging")
def test_invalid_keys_are_an_error_before_the_server_listens(database_url: str, used_port: int) -> None:
    settings = make_settings(database_url, server={"port": used_port}, auth={"signing_keys": "{}"})

    with pytest.raises(ConfigurationError, match=r"^APP_AUTH__SIGNING_KEYS: this is not a private key set"):
        serve.serve(settings)


@pytest.mark.usefixtures("restored_logging")
def test_a_missing_file_of_breached_passwords_is_an_error_before_the_server_listens(
    database_url: str, used_port: int, tmp_path: Path
) -> None:
    auth = {"breached_passwords_file": tmp_path / "missing.txt"}
    settings = make_settings(database_url, server={"port": used_port}, auth=auth)

    with pytest.raises(ConfigurationError, match=r"^APP_AUTH__BREACHED_PASSWORDS_FILE: .*: No such file or directory$"):
        serve.serve(settings)


def test_a_second_ctrl_c_ends_the_server_without_a_drain() -> None:
    server: Any = SimpleNamespace(_control=None, started=True, _is_draining=False, should_exit=False, force_exit=False)
    _Server.handle_exit(server, signal.SIGINT, None)
    first = (server.should_exit, server.force_exit)

    _Server.handle_exit(server, signal.SIGINT, None)

    assert first == (True, False)
    assert server.force_exit
