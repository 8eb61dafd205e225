"""`app serve --workers`: several processes on one port, which are replaced and drained under load."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from httpx2 import AsyncClient, Limits

from tests.servers import Server, real_server

RESTARTS = int(os.environ.get("RESTARTS", "2"))
STARTS = int(os.environ.get("STARTS", "20"))
CLIENTS = 8
# Long enough for each client to get a response that closes its connection.
DRAIN = {"APP_SERVER__DRAIN_DELAY": "500ms", "APP_LOG__LEVEL": "info"}


@dataclass
class Load:
    """The counts of clients that send requests continuously over persistent connections. Each status except 200 is a failure."""

    answered: int = 0
    failures: list[str] = field(default_factory=list)


@asynccontextmanager
async def load(base_url: str) -> AsyncIterator[Load]:
    """Send requests until the block ends."""
    counts = Load()
    is_over = asyncio.Event()

    async def send_requests() -> None:
        async with AsyncClient(base_url=base_url, limits=Limits(max_connections=1)) as client:
            while not is_over.is_set():
                try:
                    response = await client.get("/livez")
                    if response.status_code != 200:
                        counts.failures.append(str(response.status_code))
                except Exception as error:  # noqa: BLE001  # Any error is a failed request.
                    counts.failures.append(repr(error))
                counts.answered += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(send_requests())
        try:
            yield counts
        finally:
            is_over.set()


def workers_of(server: Server) -> set[int]:
    """Return the ids of the running worker processes of the supervisor."""
    tasks = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    with suppress(FileNotFoundError):
        return {pid for pid in map(int, tasks.read_text().split()) if is_running(pid)}
    return set()


def is_running(pid: int) -> bool:
    try:
        # A process that has exited stays in /proc as a zombie until its parent waits for it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


async def until(condition: Callable[[], bool], *, within: float = 60) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110  # Other processes change.
            await asyncio.sleep(0.02)


@pytest.fixture
async def server(clone_url: str) -> AsyncIterator[Server]:
    async with real_server(clone_url, "--workers", "2", **DRAIN) as server:
        yield server


async def test_two_workers_share_a_port_and_stop_on_sigterm(server: Server) -> None:
    workers = workers_of(server)

    async with AsyncClient(base_url=server.base_url) as client:
        assert (await client.get("/readyz")).status_code == 200
    code = await server.stop()

    assert len(workers) == 2
    assert code == 0
    assert not any(map(is_running, workers))


async def test_a_killed_worker_is_replaced_while_the_other_one_responds(server: Server) -> None:
    before = workers_of(server)
    victim = min(before)

    os.kill(victim, signal.SIGKILL)
    await until(lambda: len(workers_of(server) - before) == 1)

    async with AsyncClient(base_url=server.base_url) as client:
        statuses = {(await client.get("/livez")).status_code for _ in range(20)}
    assert statuses == {200}
    assert [line["exit_code"] for line in server.records("worker exited unexpectedly")] == [-9]


async def test_replacing_the_workers_under_load_fails_no_request(server: Server) -> None:
    async with load(server.base_url) as counts:
        for _ in range(RESTARTS):
            before = workers_of(server)
            os.kill(server.process.pid, signal.SIGHUP)
            await until(lambda: len(workers_of(server)) == 2 and not before & workers_of(server))  # noqa: B023  # Called here.
            answered = counts.answered
            # The new workers respond too.
            await until(lambda: counts.answered > answered + CLIENTS)  # noqa: B023  # As above.

    assert counts.failures == []


async def test_sigterm_to_a_starting_worker_stops_only_this_worker(server: Server) -> None:
    before = workers_of(server)

    for _ in range(STARTS):
        os.kill(server.process.pid, signal.SIGHUP)
        victim = _wait_for_new_worker(server, before)
        os.kill(victim, signal.SIGTERM)
        await until(lambda: not is_running(victim), within=5)  # noqa: B023  # Called here.

    await until(lambda: len(server.records("worker not renewed; the old workers continue")) == STARTS)
    assert workers_of(server) == before
    assert server.records("draining") == []
    assert await server.stop() == 0


def _wait_for_new_worker(server: Server, before: set[int]) -> int:
    """Return the id of the next worker process as soon as it exists."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if born := workers_of(server) - before:
            return born.pop()
    raise TimeoutError


async def test_no_worker_outlives_a_killed_supervisor(server: Server) -> None:
    workers = workers_of(server)

    server.process.kill()
    await server.process.wait()

    await until(lambda: not any(map(is_running, workers)))


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
async def test_after_sigterm_the_server_is_not_ready_and_still_responds(
    clone_url: str, arguments: tuple[str, ...]
) -> None:
    # Longer than the test takes on any machine.
    async with real_server(clone_url, *arguments, **DRAIN | {"APP_SERVER__DRAIN_DELAY": "60s"}) as server:
        async with AsyncClient(base_url=server.base_url) as client:
            server.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(30):
                while (ready := await client.get("/readyz")).status_code == 200:
                    pass
            live = await client.get("/livez")

        assert server.process.returncode is None
        os.killpg(server.process.pid, signal.SIGKILL)

    assert (ready.status_code, ready.json()["code"]) == (503, "not_ready")
    assert live.status_code == 200
    assert live.headers["connection"] == "close"


async def test_connections_are_refused_after_the_last_worker_stops_accepting(clone_url: str) -> None:
    slow = b"POST /api/v1/auth/token HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
    slow += b"Content-Type: application/x-www-form-urlencoded\r\n\r\n"
    async with real_server(clone_url, "--workers", "2", **DRAIN | {"APP_SERVER__SHUTDOWN_GRACE": "10s"}) as server:
        address = urlsplit(server.base_url)
        # This request keeps one worker, and so the supervisor, running.
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(slow)
        await writer.drain()
        await asyncio.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)

        await until_refused(address.hostname, address.port)

        assert server.process.returncode is None
        writer.close()
        await writer.wait_closed()
        assert await asyncio.wait_for(server.process.wait(), 20) == 0


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
async def test_open_connections_get_a_response_during_shutdown(clone_url: str, arguments: tuple[str, ...]) -> None:
    clients, answered, lost = 16, 0, 0

    async def request_until_refused(host: str | None, port: int | None) -> None:
        nonlocal answered, lost
        while True:
            try:
                reader, writer = await asyncio.open_connection(host, port)
            except OSError:
                # Refused or reset before the connection was open: no request was sent.
                return
            try:
                writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                is_answered = (await reader.read()).startswith(b"HTTP/1.1 200 ")
            except OSError:
                is_answered = False
            finally:
                writer.close()
            answered += is_answered
            lost += not is_answered

    async with real_server(clone_url, *arguments, **DRAIN) as server:
        address = urlsplit(server.base_url)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(request_until_refused(address.hostname, address.port))
            await until(lambda: answered > clients)
            server.process.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(server.process.wait(), 20)

    assert code == 0
    # A few connections may arrive between the last accept and the close of the socket. Without the last accept, nearly all are lost.
    assert lost <= clients // 2


async def until_refused(host: str | None, port: int | None) -> None:
    async with asyncio.timeout(8):
        while await _is_connected(host, port):  # noqa: ASYNC110  # There is no event to wait for.
            await asyncio.sleep(0.02)


async def _is_connected(host: str | None, port: int | None) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True


async def test_invalid_settings_are_reported_once_with_several_workers(clone_url: str) -> None:
    with pytest.raises(RuntimeError) as failed:
        async with real_server(clone_url, "--workers", "2", APP_AUTH__SIGNING_KEYS="{}"):
            pass

    output = "\n".join(failed.value.__notes__)
    assert output.count("this is not a private key set") == 1
