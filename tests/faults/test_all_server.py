"""Worker processes killed and renewed under load, and clients that hang up or never finish, in numbers."""

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
# Closing with it resets the connection: nothing that is under way is waited for.
_BUSY = """
    SELECT FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND state <> 'idle'
"""
_RESET = struct.pack("ii", 1, 0)


async def test_nothing_acknowledged_is_lost_however_often_a_worker_is_killed(postgres: PrivatePostgres) -> None:
    ledger = Ledger()
    async with site_on(postgres, arguments=_TWO, APP_LOG__LEVEL="info") as site:
        (server,) = [worker.server for worker in site.workers]
        took: list[float] = []
        async with writing(ledger, site.create_account, clients=8):
            for _ in range(KILLS):
                await ledger.acknowledges(100, within=60)
                took.append(await _kill_one(server))
        transactions = await site.left_in_transactions()
        tracebacks = [line for line in server.lines() if "Traceback" in line]

    differing = await discrepancies(postgres, ledger)
    _tell(f"{KILLS} kills, {len(ledger.sent)} sent, {len(ledger.acknowledged)} acknowledged; {dict(ledger.answers)}")
    _tell(f"replaced within {max(took):.2f} s, median {statistics.median(took):.2f} s")
    assert differing == {}
    assert transactions == 0
    assert max(took) < 2
    assert tracebacks == []


async def _kill_one(server: Server) -> float:
    """Kill a worker, and give the seconds until another serves in its place."""
    before, began = len(server.records("worker serves")), perf_counter()
    os.kill(random.choice(sorted(workers_of(server))), signal.SIGKILL)  # noqa: S311  # Of two.
    await until(lambda: len(server.records("worker serves")) > before)
    return perf_counter() - began


async def test_renewing_the_workers_often_under_load_fails_no_request(postgres: PrivatePostgres) -> None:
    async with site_on(postgres, processes=1, arguments=_TWO, **DRAIN) as site:
        (server,) = [worker.server for worker in site.workers]
        async with load(server.base_url) as counts:
            for _ in range(RESTARTS):
                before = workers_of(server)
                os.kill(server.process.pid, signal.SIGHUP)
                await until(lambda: len(workers_of(server)) == 2 and not before & workers_of(server))  # noqa: B023  # Called here.
            await until(lambda: counts.answered >= REQUESTS, within=600)

    _tell(f"{RESTARTS} restarts, {counts.answered} requests, {len(counts.failures)} failed")
    assert counts.failures == []


async def test_clients_that_hang_up_leave_nothing_behind(postgres: PrivatePostgres) -> None:
    ledger = Ledger()
    async with site_on(postgres) as site:
        turns = iter(range(ABORTED))

        async def hang_up_often() -> None:
            for turn in turns:
                await _hang_up(site, ledger, turn)

        await asyncio.gather(*(hang_up_often() for _ in range(32)))
        ended = perf_counter()
        # What was read whole is still worked off.
        async with asyncio.timeout(20):
            while await postgres.fetch(_BUSY):  # noqa: ASYNC110  # What changes is the database's.
                await asyncio.sleep(0.1)
        quiet_after = perf_counter() - ended
        # Twice as many as there are connections to be had, all at once.
        answers = await asyncio.gather(*(site.request("GET", ME) for _ in range(40)))
        complaints = site.complaints()

    differing = await discrepancies(postgres, ledger)
    applied = (await postgres.fetch("SELECT count(*) FROM users WHERE role = 'user'"))[0][0]
    _tell(f"{ABORTED} aborted, half of them writes, {applied} applied; nothing left {quiet_after:.1f} s later")
    assert {answer.status for answer in answers} == {200}
    assert differing == {}
    assert complaints == []


async def _hang_up(site: Site, ledger: Ledger, turn: int) -> None:
    """Send a part of a request, or all of it, and reset the connection, at once or a moment later."""
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
        client.setblocking(False)  # noqa: FBT003  # The one argument it has.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        await loop.sock_connect(client, (address.hostname, address.port))
        ends = random.choice([len(whole), len(whole), len(head), random.randrange(len(whole))])  # noqa: S311  # Any.
        await loop.sock_sendall(client, whole[:ends])
        await asyncio.sleep(random.choice([0, 0, 0.001, 0.005]))  # noqa: S311  # Any.


async def test_slow_clients_do_not_slow_down_the_others(postgres: PrivatePostgres) -> None:
    async with site_on(postgres, APP_LOG__SAMPLE_EVERY="1000") as site:
        alone, together = [], []
        for _ in range(ROUNDS):
            alone.append(await _p99(site))
            async with _slow_clients(site):
                together.append(await _p99(site))
        complaints = site.complaints()

    ratio = statistics.median(together) / statistics.median(alone)
    _tell(f"p99 of {ME} in ms, alone {_ms(alone)}, beside {SLOW} slow clients {_ms(together)}: ratio {ratio:.2f}")
    assert ratio < 2
    assert complaints == []


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


def _tell(figures: str) -> None:
    print(f"\n{figures}")  # noqa: T201  # What a long run is for.
