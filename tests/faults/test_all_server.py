"""Worker processes are killed and replaced under load, and many clients disconnect or never complete a request."""

import asyncio
import json
import os
import random
import signal
import socket
import statistics
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter
from urllib.parse import urlsplit

from tests.faults.load import Ledger, writing
from tests.faults.postgres import PrivatePostgres
from tests.faults.site import ME, USERS, Site, discrepancies, site_on
from tests.servers import Server
from tests.test_workers import DRAIN, load, until, workers_of

KILLS = int(os.environ.get("KILLS", "50"))
RESTARTS = int(os.environ.get("RESTARTS", "20"))
REQUESTS = int(os.environ.get("REQUESTS", "30000"))
ABORTED = int(os.environ.get("ABORTED", "100000"))
SLOW = int(os.environ.get("SLOW", "2000"))
ROUNDS = int(os.environ.get("ROUNDS", "5"))
_SECONDS = 5.0
_TWO = ("--workers", "2")
_BUSY = """
    SELECT FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND state <> 'idle'
"""
# Value of SO_LINGER with which close() resets the connection.
_RESET = struct.pack("ii", 1, 0)


async def test_no_acknowledged_write_is_lost_when_workers_are_killed_repeatedly(postgres: PrivatePostgres) -> None:
    ledger = Ledger()
    async with site_on(postgres, arguments=_TWO, APP_LOG__LEVEL="info") as site:
        (server,) = [worker.server for worker in site.workers]
        took: list[float] = []
        async with writing(ledger, site.create_account, clients=8):
            for _ in range(KILLS):
                await ledger.wait_for_writes(100, within=60)
                took.append(await _kill_one(server))
        transactions = await site.left_in_transactions()
        tracebacks = [line for line in server.lines() if "Traceback" in line]

    differing = await discrepancies(postgres, ledger)
    _report(
        f"{KILLS} kills, {len(ledger.sent)} sent, {len(ledger.acknowledged)} acknowledged; {dict(ledger.responses)}"
    )
    _report(f"replaced within {max(took):.2f} s, median {statistics.median(took):.2f} s")
    assert differing == {}
    assert transactions == 0
    assert max(took) < 2
    assert tracebacks == []


async def _kill_one(server: Server) -> float:
    """Kill a worker process. Return the seconds until its replacement serves."""
    before, began = len(server.records("worker ready")), perf_counter()
    os.kill(random.choice(sorted(workers_of(server))), signal.SIGKILL)  # noqa: S311  # Not a secret.
    await until(lambda: len(server.records("worker ready")) > before)
    return perf_counter() - began


async def test_no_request_fails_when_the_workers_are_replaced_repeatedly(postgres: PrivatePostgres) -> None:
    async with site_on(postgres, processes=1, arguments=_TWO, **DRAIN) as site:
        (server,) = [worker.server for worker in site.workers]
        async with load(server.base_url) as counts:
            for _ in range(RESTARTS):
                before = workers_of(server)
                os.kill(server.process.pid, signal.SIGHUP)
                await until(lambda: len(workers_of(server)) == 2 and not before & workers_of(server))  # noqa: B023  # Called in this iteration.
            await until(lambda: counts.answered >= REQUESTS, within=600)

    _report(f"{RESTARTS} restarts, {counts.answered} requests, {len(counts.failures)} failed")
    assert counts.failures == []


async def test_clients_that_disconnect_leave_no_transactions_and_no_errors(postgres: PrivatePostgres) -> None:
    ledger = Ledger()
    async with site_on(postgres) as site:
        turns = iter(range(ABORTED))

        async def disconnect_often() -> None:
            for turn in turns:
                await _disconnect(site, ledger, turn)

        await asyncio.gather(*(disconnect_often() for _ in range(32)))
        ended = perf_counter()
        # The server still processes the requests that it has read completely.
        async with asyncio.timeout(20):
            while await postgres.fetch(_BUSY):  # noqa: ASYNC110  # The database sends no event.
                await asyncio.sleep(0.1)
        quiet_after = perf_counter() - ended
        # Twice as many concurrent requests as connections in the pool.
        responses = await asyncio.gather(*(site.request("GET", ME) for _ in range(40)))
        errors = site.errors()

    differing = await discrepancies(postgres, ledger)
    applied = (await postgres.fetch("SELECT count(*) FROM users WHERE role = 'user'"))[0][0]
    _report(f"{ABORTED} aborted, half of them writes, {applied} applied; nothing left {quiet_after:.1f} s later")
    assert {response.status for response in responses} == {200}
    assert differing == {}
    assert errors == []


async def _disconnect(site: Site, ledger: Ledger, turn: int) -> None:
    """Send a request or a part of it, and reset the connection immediately or a moment later."""
    name = f"{turn:032x}"
    ledger.sent[name] = 0.0
    body = json.dumps({"email": f"{name}@example.com"}).encode()
    method, path, body = ("POST", USERS, body) if turn % 2 else ("GET", ME, b"")
    kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {site.token}\r\n{kind}\r\n"
    whole = head.encode() + body
    address = urlsplit(site.workers[0].server.base_url)
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)  # noqa: FBT003  # Its only parameter is positional.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        await loop.sock_connect(client, (address.hostname, address.port))
        ends = random.choice([len(whole), len(whole), len(head), random.randrange(len(whole))])  # noqa: S311  # Not a secret.
        await loop.sock_sendall(client, whole[:ends])
        await asyncio.sleep(random.choice([0, 0, 0.001, 0.005]))  # noqa: S311  # Not a secret.


async def test_slow_clients_do_not_slow_down_other_clients(postgres: PrivatePostgres) -> None:
    async with site_on(postgres, APP_LOG__SAMPLE_EVERY="1000") as site:
        alone, together = [], []
        for _ in range(ROUNDS):
            alone.append(await _p99(site))
            async with _slow_clients(site):
                together.append(await _p99(site))
        errors = site.errors()

    ratio = statistics.median(together) / statistics.median(alone)
    _report(f"p99 of {ME} in ms, alone {_ms(alone)}, beside {SLOW} slow clients {_ms(together)}: ratio {ratio:.2f}")
    assert ratio < 2
    assert errors == []


async def _p99(site: Site) -> float:
    took: list[float] = []
    end = perf_counter() + _SECONDS

    async def ask() -> None:
        while (began := perf_counter()) < end:
            assert (await site.request("GET", ME)).status == 200
            took.append(perf_counter() - began)

    await asyncio.gather(*(ask() for _ in range(4)))
    return sorted(took)[int(len(took) * 0.99)]


@asynccontextmanager
async def _slow_clients(site: Site) -> AsyncIterator[None]:
    port = urlsplit(site.workers[0].server.base_url).port
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.slow", str(port), str(SLOW)), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout
        async with asyncio.timeout(30):
            await process.stdout.readline()
        yield
    finally:
        process.kill()
        await process.wait()


def _ms(values: list[float]) -> str:
    return " ".join(f"{value * 1000:.1f}" for value in values)


def _report(figures: str) -> None:
    print(f"\n{figures}")  # noqa: T201  # The result of the measurement.
