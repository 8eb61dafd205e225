"""`app serve` as a real process: its signals, its port, malformed requests, and what it imports."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from httpx2 import AsyncClient
from sqlalchemy import make_url

from tests.conftest import KEY_SET
from tests.servers import Server, real_server

# Packages that only other commands or settings need. To import one costs `app serve` between 10 and 180 ms.
NOT_NEEDED_TO_SERVE = (
    *("alembic", "mako", "procrastinate", "psycopg", "psycopg_pool", "jinja2", "aiosmtplib", "dateutil", "croniter"),
    "opentelemetry.sdk",
)


async def count_connections(url: str) -> int:
    """Count the connections to a database, without the one that counts."""
    administration = make_url(url).set(drivername="postgresql", database="postgres")
    connection = await asyncpg.connect(administration.render_as_string(hide_password=False))
    try:
        count: int = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = $1", make_url(url).database
        )
    finally:
        await connection.close()
    return count


@pytest.mark.parametrize("received", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_process_with_exit_code_0(clone_url: str, received: signal.Signals) -> None:
    async with real_server(clone_url) as process, AsyncClient(base_url=process.base_url) as client:
        assert (await client.get("/readyz")).status_code == 200
        before = await count_connections(clone_url)
        process.process.send_signal(received)
        code = await asyncio.wait_for(process.process.wait(), 10)
        lines = process.lines()

    assert before > 0
    assert code == 0
    assert await count_connections(clone_url) == 0
    assert not any("Traceback" in line or "KeyboardInterrupt" in line for line in lines)


async def test_a_second_process_on_the_same_port_names_the_first(clone_url: str) -> None:
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
        _, stderr = await asyncio.wait_for(second.communicate(), 20)

    assert second.returncode == 1
    assert stderr.decode().startswith(f"app: port {port} is in use by ")
    assert f"(pid {first.process.pid})" in stderr.decode()


@pytest.fixture(scope="module")
async def process(database_url: str) -> AsyncIterator[Server]:
    """A server that the tests below share. None of them changes its state."""
    async with real_server(database_url) as running:
        yield running


async def exchange(process: Server, request: bytes) -> tuple[bytes, bytes]:
    """Send bytes, read until the server closes the connection, and return the status line and the rest."""
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
        pytest.param(b"GET\r\n\r\n", id="only a method"),
        pytest.param(b"GET /livez HTTP/9.9\r\n" + HOST + b"\r\n", id="an unknown version"),
        pytest.param(b"GET /li vez HTTP/1.1\r\n" + HOST + b"\r\n", id="a space in the target"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(b"GET /livez HTTP/1.1\r\nno colon\r\n\r\n", id="a header without a colon"),
        pytest.param(b"GET /livez HTTP/1.1\r\n" + HOST + b"A B: c\r\n\r\n", id="a header name with a space"),
        pytest.param(b"GET /livez HTTP/1.1\r\n" + HOST + b"A: b\0c\r\n\r\n", id="NUL in a header"),
        pytest.param(b"POST /livez HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", id="a negative length"),
        pytest.param(
            b"POST /livez HTTP/1.1\r\n" + HOST + b"Content-Length: 1e3\r\n\r\n", id="a length in floating point"
        ),
        pytest.param(
            b"POST /livez HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            id="two lengths",
        ),
        pytest.param(
            b"POST /livez HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
            id="a chunk without a size",
        ),
    ],
)
async def test_a_malformed_request_is_refused_and_the_connection_closed(process: Server, request_bytes: bytes) -> None:
    status, rest = await exchange(process, request_bytes)

    assert status == b"HTTP/1.1 400 Bad Request"
    assert b'"code":"malformed_request"' in rest


async def test_the_server_continues_after_a_malformed_request(process: Server) -> None:
    await exchange(process, b"\0" * 1000)

    status, rest = await exchange(process, b"GET /livez HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")

    assert status == b"HTTP/1.1 200 OK"
    assert rest.endswith(b'{"status":"ok"}')


async def test_no_response_names_the_server(process: Server) -> None:
    async with AsyncClient(base_url=process.base_url) as client:
        response = await client.get("/livez")

    assert "server" not in response.headers


async def test_forwarded_headers_are_ignored(process: Server) -> None:
    forwarded = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "javascript", "Forwarded": "host=evil.example"}

    async with AsyncClient(base_url=process.base_url) as client:
        response = await client.get("/api/v1/users/me", headers=forwarded)
        await process.wait_for_line(response.headers["X-Request-ID"])

    assert response.status_code == 401
    assert "evil.example" not in response.text
    assert not any("203.0.113.9" in line for line in process.lines())


async def test_pipelined_requests_get_separate_responses(process: Server) -> None:
    first = b"POST /api/v1/auth/token HTTP/1.1\r\n" + HOST
    first += b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    second = b"GET /livez HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"

    status, rest = await exchange(process, first + second)

    assert status.startswith(b"HTTP/1.1 415")
    assert rest.count(b"HTTP/1.1 200 OK") == 1
    assert rest.endswith(b'{"status":"ok"}')


def ports(records: list[dict[str, Any]]) -> list[int]:
    return [record["port"] for record in records]


async def test_the_log_names_the_port(process: Server) -> None:
    assert ports(process.records("listening")) == [int(process.base_url.rpartition(":")[2])]


def test_app_serve_does_not_import_packages_of_other_commands() -> None:
    program = """
import json, sys
from app.loading import loading
with loading():
    import app.cli, app.server.serve
json.dump(sorted(sys.modules), sys.stdout)
"""

    imported = json.loads(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout)

    assert set(NOT_NEEDED_TO_SERVE).isdisjoint(imported), (
        "import it where it is used: see the imports in src/app/cli.py"
    )
