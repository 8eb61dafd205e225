"""The server process: its port, its signals, and what it makes of requests that are none."""

import asyncio
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
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
from app.core.listening import PortInUseError, listen
from app.core.security.hashing import PasswordHasher
from app.server import serve as server
from app.server.supervisor import DRAIN, QUIT, READY, RETIRE
from tests.conftest import KEY_SET, make_settings
from tests.factories import PASSWORD, make_user
from tests.servers import Server, real_server

# What only other commands and other settings need. Each costs every start of `app serve` between 10 and 180 ms.
NOT_FOR_SERVING = (
    *("alembic", "mako", "procrastinate", "psycopg", "psycopg_pool", "jinja2", "aiosmtplib", "dateutil", "croniter"),
    "opentelemetry.sdk",
)
UNFINISHED_BODY = (
    b"POST /api/v1/auth/token HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\n\r\ngrant"
)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that this process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port: int = holder.getsockname()[1]
        yield port


def test_a_taken_port_is_told_with_the_process_that_has_it(taken: int) -> None:
    name = Path("/proc/self/comm").read_text().strip()

    with pytest.raises(PortInUseError) as refused:
        listen("127.0.0.1", taken)

    assert str(refused.value) == (
        f"port {taken} is in use by {name} (pid {os.getpid()}); set PORT to another one, for example PORT={taken + 1}"
    )


def test_a_port_taken_on_the_other_protocol_is_told_as_well() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as holder:
        port = holder.getsockname()[1]

        with pytest.raises(PortInUseError, match=rf"port {port} is in use by .* \(pid {os.getpid()}\)"):
            listen("0.0.0.0", port)  # noqa: S104  # Nothing is served.


def test_a_port_taken_by_nobody_we_can_see_is_told_all_the_same() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]

        with pytest.raises(PortInUseError) as refused:
            listen("127.0.0.1", port)

    assert str(refused.value) == f"port {port} is in use; set PORT to another one, for example PORT={port + 1}"


def test_an_address_of_another_machine_is_told() -> None:
    with pytest.raises(PortInUseError) as refused:
        listen("192.0.2.1", 8000)

    assert str(refused.value) == "cannot listen on 192.0.2.1:8000: Cannot assign requested address"


def test_a_name_that_is_none_is_told() -> None:
    with pytest.raises(PortInUseError) as refused:
        listen("a..b", 8000)

    assert str(refused.value) == "cannot listen on a..b:8000: this is no name of a host"


def test_a_name_that_nobody_knows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)

    with pytest.raises(PortInUseError) as refused:
        listen("unknown", 8000)

    assert str(refused.value) == "cannot listen on unknown:8000: Name or service not known"


def test_port_zero_is_any_free_port() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        assert listener.getsockname()[1] > 0


def test_a_port_just_given_back_can_be_taken_at_once() -> None:
    first = listen("127.0.0.1", 0)
    port = first.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)):
        first.accept()[0].close()
    first.close()

    listen("127.0.0.1", port).close()


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_serving_ends_without_an_error_when_told(
    clone_url: str, capsys: pytest.CaptureFixture[str], told: signal.Signals
) -> None:
    answers: list[int] = []
    ports: list[int] = []

    def announced() -> None:
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        ports.extend(line["port"] for line in lines if line["event"] == "listening")
        connection = http.client.HTTPConnection("127.0.0.1", ports[0], timeout=5)
        connection.request("GET", "/readyz")
        answers.append(connection.getresponse().status)
        connection.close()
        os.kill(os.getpid(), told)

    server.serve(make_settings(clone_url, server={"port": 0}), announce=announced)

    assert answers == [200]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports[0]))


@pytest.mark.usefixtures("restored_logging")
def test_whoever_waits_in_the_queue_of_the_socket_at_the_end_is_answered(
    clone_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients: list[socket.socket] = []

    async def fill_the_queue(_server: object) -> None:
        # Without a turn of the event loop, in which they would be accepted: next comes the end.
        for _ in range(3):
            client = socket.create_connection(address, timeout=5)
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            clients.append(client)

    monkeypatch.setattr(server._Server, "main_loop", fill_the_queue)
    with listen("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        server._Server(make_settings(clone_url), None, lambda: None).run(sockets=[listener])

    answers = [client.recv(65536) for client in clients]
    for client in clients:
        client.close()
    assert [answer[:13] for answer in answers] == [b"HTTP/1.1 200 "] * 3
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


@pytest.mark.usefixtures("restored_logging")
def test_a_worker_ends_with_a_supervisor_that_was_killed_before_it_read_that_it_is_ready(clone_url: str) -> None:
    ours, theirs = socket.socketpair()

    def on_ready() -> None:
        theirs.sendall(READY)
        ours.close()

    began = time.monotonic()
    with listen("127.0.0.1", 0) as listener, theirs:
        server._Server(make_settings(clone_url), None, on_ready, theirs).run(sockets=[listener])

    assert time.monotonic() - began < 20


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize(
    ("told", "statuses"),
    [
        pytest.param(DRAIN, (503, "close"), id="drain"),
        pytest.param(RETIRE, (503, "close"), id="retire"),
        pytest.param(QUIT, None, id="quit"),
        pytest.param(b"", None, id="the supervisor has ended"),
    ],
)
def test_a_worker_obeys_its_supervisor(clone_url: str, told: bytes, statuses: tuple[int, str] | None) -> None:
    ours, theirs = socket.socketpair()
    answers: list[tuple[int, str | None]] = []

    def on_ready() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=5)
        connection.connect()
        # Ctrl-C reaches the whole group, and is the supervisor's business.
        os.kill(os.getpid(), signal.SIGINT)
        if told:
            ours.sendall(told)
        ours.shutdown(socket.SHUT_WR)
        if statuses:
            time.sleep(0.2)
            connection.request("GET", "/readyz")
            response = connection.getresponse()
            answers.append((response.status, response.getheader("connection")))
        connection.close()

    with ours, theirs, listen("127.0.0.1", 0) as listener:
        settings = make_settings(clone_url, server={"drain_delay": "1s"})
        server._Server(settings, None, on_ready, theirs).run(sockets=[listener])

    assert answers == ([statuses] if statuses else [])


@pytest.mark.parametrize(
    ("soft", "hard", "allowed", "connections"),
    [
        pytest.param(1024, 524_288, 4296, 4096, id="few, and more to be had"),
        pytest.param(1024, resource.RLIM_INFINITY, 4296, 4096, id="few, and any number to be had"),
        pytest.param(1024, 2048, 2048, 1848, id="few, and not enough to be had"),
        pytest.param(256, 256, 256, 128, id="very few"),
        pytest.param(100_000, 100_000, 100_000, 4096, id="many"),
        pytest.param(*[resource.RLIM_INFINITY] * 3, 4096, id="any number"),
    ],
)
def test_there_are_never_more_connections_than_files_for_them(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, allowed: int, connections: int
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, given: limits.append(given))

    server._allow_files(4296)

    assert limits[-1] == (allowed, hard)
    assert server._connection_limit(ServerSettings()) == connections


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
async def test_a_request_that_outlasts_the_grace_is_told_and_rolled_back(
    clone_url: str, hasher: PasswordHasher, arguments: tuple[str, ...]
) -> None:
    patient = {"APP_DATABASE__LOCK_TIMEOUT": "60s", "APP_DATABASE__STATEMENT_TIMEOUT": "60s"}
    plain = make_url(clone_url).set(drivername="postgresql").render_as_string(hide_password=False)
    database = Database(make_settings(clone_url).database)
    async with database.begin() as session:
        user = await make_user(session, hasher)
    await database.dispose()
    async with (
        real_server(clone_url, *arguments, APP_SERVER__SHUTDOWN_GRACE="1s", **patient) as running,
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
@pytest.mark.parametrize("sent", [b"GET /live", UNFINISHED_BODY], ids=["half a request line", "a body that is owed"])
async def test_time_outs_go_on_while_the_server_ends(clone_url: str, sent: bytes, arguments: tuple[str, ...]) -> None:
    limits = {"APP_SERVER__HEADER_TIMEOUT": "2s", "APP_SERVER__READ_TIMEOUT": "2s", "APP_SERVER__SHUTDOWN_GRACE": "30s"}
    async with real_server(clone_url, *arguments, **limits) as running:
        address = urlsplit(running.base_url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(sent)
        await writer.drain()
        # The bytes are read before the server begins to end.
        await asyncio.sleep(0.5)
        running.process.send_signal(signal.SIGTERM)
        began = time.monotonic()

        async with asyncio.timeout(25):
            answer = await reader.read()
            code = await running.process.wait()
        writer.close()

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert code == 0
    assert time.monotonic() - began < 20


@pytest.mark.usefixtures("restored_logging")
def test_an_application_that_does_not_start_is_a_failure(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        message = "a defect"
        raise RuntimeError(message)
        yield

    monkeypatch.setattr(server, "create_app", lambda _, **__: FastAPI(lifespan=lifespan))

    with pytest.raises(SystemExit) as ended:
        server.serve(make_settings(database_url, server={"port": 0}))

    assert ended.value.code not in {0, None}
    assert "a defect" in capsys.readouterr().out


@pytest.mark.usefixtures("restored_logging")
def test_broken_keys_are_told_before_anything_starts(database_url: str, taken: int) -> None:
    settings = make_settings(database_url, server={"port": taken}, auth={"signing_keys": "{}"})

    with pytest.raises(ConfigurationError, match=r"^APP_AUTH__SIGNING_KEYS: this is not a private key set"):
        server.serve(settings)


@pytest.mark.usefixtures("restored_logging")
def test_a_file_of_breached_passwords_that_is_none_is_told_before_anything_starts(
    database_url: str, taken: int, tmp_path: Path
) -> None:
    auth = {"breached_passwords_file": tmp_path / "missing.txt"}
    settings = make_settings(database_url, server={"port": taken}, auth=auth)

    with pytest.raises(ConfigurationError, match=r"^APP_AUTH__BREACHED_PASSWORDS_FILE: .*: No such file or directory$"):
        server.serve(settings)


async def connections(url: str) -> int:
    """Count who is connected to a database, besides the one who counts."""
    administration = make_url(url).set(drivername="postgresql", database="postgres")
    connection = await asyncpg.connect(administration.render_as_string(hide_password=False))
    try:
        count: int = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = $1", make_url(url).database
        )
    finally:
        await connection.close()
    return count


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
async def test_a_real_process_ends_in_order_when_told(clone_url: str, told: signal.Signals) -> None:
    async with real_server(clone_url) as process, AsyncClient(base_url=process.base_url) as client:
        assert (await client.get("/readyz")).status_code == 200
        before = await connections(clone_url)
        process.process.send_signal(told)
        code = await asyncio.wait_for(process.process.wait(), 10)
        said = process.lines()

    assert before > 0
    assert code == 0
    assert await connections(clone_url) == 0
    assert not any("Traceback" in line or "KeyboardInterrupt" in line for line in said)


async def test_a_second_process_on_the_port_names_the_first(clone_url: str) -> None:
    async with real_server(clone_url) as first:
        port = first.base_url.rpartition(":")[2]
        second = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app", "serve"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ
            | {
                "APP_ENVIRONMENT": "test",
                "APP_AUTH__SIGNING_KEYS": KEY_SET,
                "DATABASE_URL": clone_url,
                "PORT": port,
            },
        )
        _, said = await asyncio.wait_for(second.communicate(), 20)

    assert second.returncode == 1
    assert said.decode().startswith(f"app: port {port} is in use by ")
    assert f"(pid {first.process.pid})" in said.decode()


@pytest.fixture(scope="module")
async def process(database_url: str) -> AsyncIterator[Server]:
    """A server that the tests below share: none of them changes anything."""
    async with real_server(database_url) as running:
        yield running


async def exchange(process: Server, request: bytes) -> tuple[bytes, bytes]:
    """Send bytes and read until the server closes the connection: the status line and the rest."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(process.base_url.rpartition(":")[2]))
    try:
        async with asyncio.timeout(10):
            writer.write(request)
            status, _, rest = (await reader.read()).partition(b"\r\n")
    finally:
        writer.close()
    return status, rest


HOST = b"Host: test\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(b"GET\r\n\r\n", id="a method alone"),
        pytest.param(b"GET /livez HTTP/9.9\r\n" + HOST + b"\r\n", id="an unknown version"),
        pytest.param(b"GET /li vez HTTP/1.1\r\n" + HOST + b"\r\n", id="a space in the target"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(b"GET /livez HTTP/1.1\r\nno colon\r\n\r\n", id="a header without a colon"),
        pytest.param(b"GET /livez HTTP/1.1\r\n" + HOST + b"A B: c\r\n\r\n", id="a header name with a space"),
        pytest.param(b"GET /livez HTTP/1.1\r\n" + HOST + b"A: b\0c\r\n\r\n", id="NUL in a header"),
        pytest.param(b"POST /livez HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", id="a negative length"),
        pytest.param(b"POST /livez HTTP/1.1\r\n" + HOST + b"Content-Length: 1e3\r\n\r\n", id="a length that is none"),
        pytest.param(
            b"POST /livez HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            id="two lengths",
        ),
        pytest.param(
            b"POST /livez HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", id="a broken chunk"
        ),
    ],
)
async def test_a_malformed_request_is_refused_and_the_connection_closed(process: Server, request_bytes: bytes) -> None:
    status, rest = await exchange(process, request_bytes)

    assert status == b"HTTP/1.1 400 Bad Request"
    assert b'"code":"malformed_request"' in rest


async def test_a_malformed_request_leaves_the_server_serving(process: Server) -> None:
    await exchange(process, b"\0" * 1000)

    status, rest = await exchange(process, b"GET /livez HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")

    assert status == b"HTTP/1.1 200 OK"
    assert rest.endswith(b'{"status":"ok"}')


async def test_the_server_does_not_say_what_it_is(process: Server) -> None:
    async with AsyncClient(base_url=process.base_url) as client:
        response = await client.get("/livez")

    assert "server" not in response.headers


async def test_forwarded_headers_are_believed_from_nobody(process: Server) -> None:
    forwarded = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "javascript", "Forwarded": "host=evil.example"}

    async with AsyncClient(base_url=process.base_url) as client:
        response = await client.get("/api/v1/users/me", headers=forwarded)
        await process.wait_for_line(response.headers["X-Request-ID"])

    assert response.status_code == 401
    assert "evil.example" not in response.text
    assert not any("203.0.113.9" in line for line in process.lines())


async def test_requests_on_one_connection_do_not_mix(process: Server) -> None:
    first = b"POST /api/v1/auth/token HTTP/1.1\r\n" + HOST
    first += b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    second = b"GET /livez HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"

    status, rest = await exchange(process, first + second)

    assert status.startswith(b"HTTP/1.1 415")
    assert rest.count(b"HTTP/1.1 200 OK") == 1
    assert rest.endswith(b'{"status":"ok"}')


def ports_of(records: list[dict[str, Any]]) -> list[int]:
    return [record["port"] for record in records]


async def test_a_server_says_where_it_listens(process: Server) -> None:
    assert ports_of(process.records("listening")) == [int(process.base_url.rpartition(":")[2])]


def test_serving_loads_nothing_that_only_other_commands_need() -> None:
    program = """
import json, sys
from app.loading import loading
with loading():
    import app.cli, app.server.serve
json.dump(sorted(sys.modules), sys.stdout)
"""

    loaded = json.loads(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout)

    assert set(NOT_FOR_SERVING).isdisjoint(loaded), "load it where it is used: see the imports of src/app/cli.py"
