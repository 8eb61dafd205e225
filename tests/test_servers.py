"""Servers that run the application: `app serve` as the tests use it, and the other servers of docs/servers.md."""

import asyncio
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from httpx2 import AsyncClient, Response
from sqlalchemy import text

from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from tests.conftest import ROOT, make_settings
from tests.factories import PASSWORD, make_user
from tests.listings import listings
from tests.servers import Server, real_server, server_by
from tests.test_workers import until

# Arguments for a busy machine. The last one of gunicorn prevents a file in the home directory.
TEST_ARGUMENTS = {
    "uvicorn": ("--timeout-worker-healthcheck", "60"),
    "fastapi": (),
    "gunicorn": ("--timeout", "120", "--no-control-socket"),
    "granian": (),
}
SERVERS = tuple(TEST_ARGUMENTS)


async def test_a_server_becomes_ready_logs_requests_and_stops(clone_url: str) -> None:
    async with real_server(clone_url) as server, AsyncClient(base_url=server.base_url) as client:
        response = await client.get("/livez")

        assert response.status_code == 200
        await server.wait_for_line(response.headers["X-Request-ID"])
        assert {"/livez", "/readyz"} == {record["route"] for record in server.records("request")}
        code = await server.stop()

    assert code in {0, -signal.SIGTERM}


async def test_a_server_that_does_not_stop_is_killed(clone_url: str) -> None:
    async with real_server(clone_url) as server:
        server.process.send_signal(signal.SIGSTOP)

        code = await server.stop(within=0.1)

    assert code == -signal.SIGKILL


async def test_the_error_of_a_server_that_does_not_start_has_its_output(clone_url: str) -> None:
    with pytest.raises(RuntimeError, match="exited with code 1") as failure:
        async with real_server(clone_url, APP_SERVER__PORT="many"):
            pytest.fail("the server has started")

    assert "APP_SERVER__PORT" in str(failure.value.__notes__)


def command_of(program: str) -> tuple[str, ...]:
    """Return the command of a server from docs/servers.md, with the port of the test."""
    [line] = [
        listing.text
        for listing in listings(ROOT / "docs" / "servers.md")
        if listing.language == "bash" and listing.text.startswith(f"{program} ")
    ]
    path = Path(sys.executable).with_name(program)
    arguments = shlex.split(line)[1:]
    return str(path), *(argument.replace("8000", "{port}") for argument in arguments), *TEST_ARGUMENTS[program]


@asynccontextmanager
async def blocked(client: AsyncClient, path: str, headers: dict[str, str], database: Database) -> AsyncIterator[None]:
    """Block a request in the database while the block runs, and check that it gets its response afterwards."""
    blocked_statements = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with database.begin() as session:
        await session.execute(text("LOCK TABLE users IN ACCESS EXCLUSIVE MODE"))
        request = asyncio.create_task(client.get(path, headers=headers))
        async with asyncio.timeout(30), database.read_sessions() as observer:
            while not await observer.scalar(blocked_statements):
                await observer.rollback()
        yield
    response: Response = await request
    assert response.status_code == 200


async def wait_until_no_process_is_left(server: Server) -> None:
    await until(lambda: not server.processes())


@pytest.mark.slow
@pytest.mark.parametrize("program", SERVERS)
async def test_each_server_runs_the_application_and_responds_to_a_request_before_it_stops(
    hasher: PasswordHasher, clone_url: str, program: str
) -> None:
    database = Database(make_settings(clone_url, database={"lock_timeout": "60s", "statement_timeout": "60s"}).database)
    async with database.begin() as session:
        email = (await make_user(session, hasher)).email
    settings = {"APP_DATABASE__LOCK_TIMEOUT": "60s", "APP_DATABASE__STATEMENT_TIMEOUT": "60s"}

    async with (
        server_by(command_of(program), clone_url, settings) as server,
        AsyncClient(base_url=server.base_url, timeout=60) as client,
    ):
        # Each worker process listens for revocations.
        await until(lambda: len(server.records("revocations loaded")) >= 2)
        workers = server.records("revocations loaded")
        assert len(workers) == 2

        form = {"grant_type": "password", "username": email, "password": PASSWORD}
        login = await client.post("/api/v1/auth/token", data=form, headers={"X-Forwarded-For": "203.0.113.9"})
        headers = {"Authorization": f"Bearer {login.json()['access_token']}"}
        me = await client.get("/api/v1/users/me", headers=headers)
        refusals = await client.get("/nothing"), await client.post("/api/v1/auth/password/forgot", json={})

        assert me.json()["email"] == email
        assert [(response.status_code, response.headers["content-type"]) for response in refusals] == [
            (404, "application/problem+json"),
            (422, "application/problem+json"),
        ]
        assert all(response.json()["request_id"] == response.headers["X-Request-ID"] for response in refusals)
        # The server has not replaced the address of the client by the one in the header.
        await server.wait_for_line("forwarded headers from 127.0.0.1 are ignored")
        await server.wait_for_line(me.headers["X-Request-ID"])

        async with blocked(client, "/api/v1/users/me", headers, database):
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(1)
            assert server.process.returncode is None
        await client.aclose()

        assert await asyncio.wait_for(server.process.wait(), 60) == 0
        await wait_until_no_process_is_left(server)
    await database.dispose()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "exit_code"), [("uvicorn", 3), ("fastapi", 3), ("gunicorn", 3), ("granian", 1)], ids=SERVERS
)
async def test_each_server_prints_the_message_about_invalid_settings(program: str, exit_code: int) -> None:
    command = [argument if argument != "2" else "1" for argument in command_of(program)]

    with pytest.raises(RuntimeError, match=f"exited with code {exit_code} ") as failure:
        async with server_by(
            tuple(command), "postgresql://nobody@127.0.0.1:1/nothing", {"APP_AUTH__BCRYPT_COST": "many"}
        ):
            pytest.fail("the server has started")

    [output] = failure.value.__notes__
    assert "app: The settings cannot be used:\n  - APP_AUTH__BCRYPT_COST: " in output
    assert "Traceback" not in output
