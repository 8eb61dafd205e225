"""A server without free file descriptors: the process has a low limit and more clients than files."""

import asyncio
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from httpx2 import AsyncClient, Limits, Response

from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from tests import conftest
from tests.access import NEW_PASSWORD
from tests.auth.post import ME, bearer, log_in, pair_of
from tests.core.security.test_breaches import write
from tests.factories import PASSWORD, make_user
from tests.servers import SERVE, Server, real_server, server_by
from tests.test_access import ACCESS
from tests.test_workers import until

FILES = 256
# With so few files, half of them are for connections.
ROOM = FILES // 2
CROWD = 400
_LIMITED = ("sh", "-c", f'ulimit -n {FILES} && exec "$@"', "sh", *SERVE)
_BEGUN = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
# CPU seconds that a busy loop would exceed in one second of waiting.
_BUSY = 0.5


@asynccontextmanager
async def crowd(server: Server) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Let many clients send an incomplete request. They disconnect at the end of the context."""
    address = urlsplit(server.base_url)
    clients = []
    try:
        for _ in range(CROWD):
            clients.append(await asyncio.open_connection(address.hostname, address.port))
            clients[-1][1].write(_BEGUN)
        yield [reader for reader, _ in clients]
    finally:
        for _, writer in clients:
            writer.close()


@asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[AsyncClient]:
    """Provide a client that keeps one connection."""
    async with AsyncClient(base_url=server.base_url, limits=Limits(max_connections=1), timeout=10) as client:
        assert (await client.get("/livez")).status_code == 200
        yield client


@asynccontextmanager
async def clients_of(server: Server, count: int) -> AsyncIterator[list[AsyncClient]]:
    """Provide several clients that keep one connection each."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(client_of(server)) for _ in range(count)]


def files_of(server: Server) -> int:
    return sum(1 for _ in Path(f"/proc/{server.process.pid}/fd").iterdir())


def cpu_of(server: Server) -> float:
    """Return the CPU seconds that a server has used."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def errors_of(server: Server) -> list[str]:
    return [line for line in server.lines() if "Traceback" in line or '"level": "error"' in line]


@contextmanager
def without_free_files(server: Server) -> Iterator[None]:
    """Prevent a server from opening files while the context lasts."""
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)


async def change_password(client: AsyncClient, pair: dict[str, Any], old: str, new: str) -> Response:
    body = {"current_password": old, "new_password": new}
    return await client.put(f"{ME}/password", json=body, headers=bearer(pair))


async def first_line(reader: asyncio.StreamReader) -> bytes:
    with suppress(ConnectionResetError):
        return await reader.readline()
    return b""


async def test_without_free_files_connected_clients_are_served_and_new_ones_wait(clone_url: str) -> None:
    async with real_server(clone_url) as server, clients_of(server, 8) as early:
        # The server has calculated its limits from the higher number of files.
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
        async with crowd(server):
            await until(lambda: files_of(server) == FILES)
            used = cpu_of(server)
            logins = await asyncio.gather(*(log_in(client, "nobody@example.com") for client in early))
            live = await early[0].get("/livez")
            await asyncio.sleep(1)
            used = cpu_of(server) - used

        async with client_of(server) as late:
            after = await log_in(late, "nobody@example.com")

        # Concurrent logins need more connections to the database than are open, and each connection is a file.
        responses = {(login.status_code, login.json()["code"]) for login in logins}
        assert (503, "database_unavailable") in responses
        assert responses <= {(503, "database_unavailable"), (400, "invalid_grant")}
        assert live.status_code == 200
        assert used < _BUSY
        assert (after.status_code, after.json()["error"]) == (400, "invalid_grant")
        assert errors_of(server) == []


async def test_with_few_files_clients_over_the_limit_get_503_and_some_files_stay_free(clone_url: str) -> None:
    async with server_by(_LIMITED, clone_url, {}) as server:
        async with crowd(server) as readers:
            responses = [asyncio.create_task(first_line(reader)) for reader in readers]
            taken = 0
            async with asyncio.timeout(10):
                while sum(task.done() for task in responses) < CROWD - ROOM:
                    taken = max(taken, files_of(server))
                    await asyncio.sleep(0.001)

        async with client_of(server) as late:
            after = await log_in(late, "nobody@example.com")

        # Clients that waited until the end, and those closed before they sent anything, get no response.
        assert set(await asyncio.gather(*responses)) == {b"", b"HTTP/1.1 503 Service Unavailable\r\n"}
        assert taken < FILES
        assert (after.status_code, after.json()["error"]) == (400, "invalid_grant")
        assert errors_of(server) == []


@pytest.mark.parametrize("has_breached_passwords", [False, True])
async def test_a_request_that_needs_a_file_gets_503_with_retry_after(
    clone_url: str, tmp_path: Path, hasher: PasswordHasher, has_breached_passwords: bool
) -> None:
    database = Database(conftest.make_settings(clone_url).database)
    async with database.begin() as session:
        emails = [(await make_user(session, hasher)).email for _ in range(2)]
    await database.dispose()
    file = write(tmp_path / "breached.txt", ["another password"])
    settings = {"APP_AUTH__BREACHED_PASSWORDS_FILE": str(file)} if has_breached_passwords else {}
    async with real_server(clone_url, **settings) as server, client_of(server) as client:
        pair, other = [await pair_of(client, email) for email in emails]
        # The first new password reads the list of common passwords; each one reads the list of breached passwords.
        if has_breached_passwords:
            assert (await change_password(client, other, PASSWORD, NEW_PASSWORD)).status_code == 204

        with without_free_files(server):
            refused = await change_password(client, pair, PASSWORD, NEW_PASSWORD)
        accepted = await change_password(client, pair, PASSWORD, NEW_PASSWORD)

        assert (refused.status_code, refused.json()["code"]) == (503, "service_unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        assert "no file descriptor is free" in server.log_file.read_text()
        assert accepted.status_code == 204
        assert errors_of(server) == []


async def test_no_operation_returns_500_without_free_files(clone_url: str, hasher: PasswordHasher) -> None:
    database = Database(conftest.make_settings(clone_url).database)
    async with database.begin() as session:
        target = await make_user(session, hasher, email="target@example.com")
        callers = [(await make_user(session, hasher, role="admin")).email for _ in ACCESS]
    await database.dispose()
    async with real_server(clone_url, APP_RATE_LIMIT__ENABLED="false") as server, client_of(server) as client:
        headers = [await conftest.log_in(client, email) for email in callers]
        responses: dict[str, Response] = {}

        with without_free_files(server):
            for (operation, access), header in zip(ACCESS.items(), headers, strict=True):
                credentials = {} if access.scopes is None else header
                request = access.request(operation, target.id, target.id, headers=credentials)
                responses[operation] = await client.request(**request)

        defects = [operation for operation, response in responses.items() if response.status_code == 500]
        refused = [response for response in responses.values() if response.status_code == 503]
        assert defects == []
        assert refused
        assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
        assert errors_of(server) == []
