"""A server that has no file descriptor left: a real process, a real limit, and more clients than it has files for."""

import asyncio
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from httpx2 import AsyncClient, Limits, Response

from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from tests import conftest
from tests.access import NEW_PASSWORD
from tests.auth.post import AUTH, log_in
from tests.core.security.test_breaches import write
from tests.factories import make_user
from tests.servers import SERVE, Server, real_server, server_by
from tests.test_access import ACCESS
from tests.test_workers import until

FILES = 256
# Half of the files are for connections where there are that few.
ROOM = FILES // 2
CROWD = 400
_LIMITED = ("sh", "-c", f'ulimit -n {FILES} && exec "$@"', "sh", *SERVE)
_BEGUN = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
# What a process that tries again and again would need in a second of waiting.
_BUSY = 0.5


@asynccontextmanager
async def crowd(server: Server) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Have many clients begin a request and not end it; they hang up when the block ends."""
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
    """Give a client with one connection, which it keeps."""
    async with AsyncClient(base_url=server.base_url, limits=Limits(max_connections=1), timeout=10) as client:
        assert (await client.get("/livez")).status_code == 200
        yield client


@asynccontextmanager
async def clients_of(server: Server, count: int) -> AsyncIterator[list[AsyncClient]]:
    """Give several such clients."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(client_of(server)) for _ in range(count)]


def files_of(server: Server) -> int:
    return sum(1 for _ in Path(f"/proc/{server.process.pid}/fd").iterdir())


def cpu_of(server: Server) -> float:
    """Give the seconds of CPU that a server has used."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def complaints(server: Server) -> list[str]:
    return [line for line in server.lines() if "Traceback" in line or '"level": "error"' in line]


@contextmanager
def without_free_files(server: Server) -> Iterator[None]:
    """Let a server open no file until the block ends."""
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)


async def register(client: AsyncClient) -> Response:
    return await client.post(f"{AUTH}/register", json={"email": "new@example.com", "password": NEW_PASSWORD})


async def first_line(reader: asyncio.StreamReader) -> bytes:
    with suppress(ConnectionResetError):
        return await reader.readline()
    return b""


async def test_without_a_file_left_those_connected_are_answered_and_the_others_wait(clone_url: str) -> None:
    async with real_server(clone_url) as server, clients_of(server, 8) as early:
        # By now it has reckoned with thousands.
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

        # Logins at once need more connections to the database than are open, and each is a file as well.
        answers = {(login.status_code, login.json()["code"]) for login in logins}
        assert (503, "database_unavailable") in answers
        assert answers <= {(503, "database_unavailable"), (400, "invalid_grant")}
        assert live.status_code == 200
        assert used < _BUSY
        assert (after.status_code, after.json()["error"]) == (400, "invalid_grant")
        assert complaints(server) == []


async def test_with_few_files_the_surplus_is_told_and_some_are_left_for_the_rest(clone_url: str) -> None:
    async with server_by(_LIMITED, clone_url, {}) as server:
        async with crowd(server) as readers:
            told = [asyncio.create_task(first_line(reader)) for reader in readers]
            taken = 0
            async with asyncio.timeout(10):
                while sum(task.done() for task in told) < CROWD - ROOM:
                    taken = max(taken, files_of(server))
                    await asyncio.sleep(0.001)

        async with client_of(server) as late:
            after = await log_in(late, "nobody@example.com")

        # Nothing is told those who waited until the end, or were closed before they had said anything.
        assert set(await asyncio.gather(*told)) == {b"", b"HTTP/1.1 503 Service Unavailable\r\n"}
        assert taken < FILES
        assert (after.status_code, after.json()["error"]) == (400, "invalid_grant")
        assert complaints(server) == []


@pytest.mark.parametrize("has_breached_passwords", [False, True])
async def test_a_request_that_needs_a_file_is_told_to_come_back(
    clone_url: str, tmp_path: Path, has_breached_passwords: bool
) -> None:
    file = write(tmp_path / "breached.txt", ["another password"])
    settings = {"APP_AUTH__BREACHED_PASSWORDS_FILE": str(file)} if has_breached_passwords else {}
    async with real_server(clone_url, **settings) as server, client_of(server) as client:
        # The lists of common passwords are read by the first registration, those of breached ones by each.
        if has_breached_passwords:
            assert (await register(client)).status_code == 202

        with without_free_files(server):
            refused = await register(client)
        accepted = await register(client)

        assert (refused.status_code, refused.json()["code"]) == (503, "service_unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        assert "no file descriptor is free" in server.log_file.read_text()
        assert accepted.status_code == 202
        assert complaints(server) == []


async def test_no_operation_fails_for_want_of_a_file(clone_url: str, hasher: PasswordHasher) -> None:
    database = Database(conftest.make_settings(clone_url).database)
    async with database.begin() as session:
        target = await make_user(session, hasher, email="target@example.com")
        callers = [(await make_user(session, hasher, role="admin")).email for _ in ACCESS]
    await database.dispose()
    async with real_server(clone_url, APP_RATE_LIMIT__ENABLED="false") as server, client_of(server) as client:
        headers = [await conftest.log_in(client, email) for email in callers]
        answers: dict[str, Response] = {}

        with without_free_files(server):
            for (operation, access), header in zip(ACCESS.items(), headers, strict=True):
                method, _, template = operation.partition(" ")
                path = template.format(**{"user_id": target.id, **access.path})
                given = {} if access.scopes is None else header
                answers[operation] = await client.request(
                    method, path, json=access.json, data=access.form, headers=given
                )

        defects = [operation for operation, answer in answers.items() if answer.status_code == 500]
        refused = [answer for answer in answers.values() if answer.status_code == 503]
        assert defects == []
        assert refused
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert complaints(server) == []
