"""A server that has no file descriptor left: a real process, a real limit, and more clients than it has files for."""

import asyncio
import os
import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from httpx2 import AsyncClient, Limits

from tests.auth.post import log_in
from tests.servers import SERVE, Server, real_server, server_by
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
