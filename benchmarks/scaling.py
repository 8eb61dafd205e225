"""`python -m benchmarks.scaling`: the figures of docs/scaling.md, with real servers, standbys and PgBouncer on this machine.

- `designs`: what each way to read your own writes from a standby costs a write.
- `standby`: reads from the primary and from a standby, with the CPU of each process.
- `law`: connections in use at several rates, counted and by Little's law.
- `pooler`: four instances with 200 client connections each, through PgBouncer.
- `standbys`: four instances, a primary and two standbys.
"""

import argparse
import asyncio
import os
import re
import statistics
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from time import perf_counter
from uuid import UUID

import asyncpg

from app.dev.ports import free_port
from benchmarks import seed
from benchmarks.cases import ADMINISTRATOR, PAGE, USERS, bearer
from benchmarks.lab import Site
from benchmarks.load import Load, LoadError, Plan, Sending, check_tools
from benchmarks.replication import Replication, cpu_seconds, replication
from benchmarks.servers import Command, Server
from tests.faults.pooler import pooled, program

_ROWS = 10_000
_CONNECTIONS = 16
_SAMPLE_PAUSE = 0.02
# Repetitions of one statement, and calls at the same time.
_REPETITIONS = 200
_ROUND_TRIPS = 50

# Seconds until the instances have opened their connections.
_OPENING, _OPENING_OF_MANY = 8, 20

type Section = Callable[[float], Awaitable[None]]


class Instance:
    """A running instance of the application, and the port of its metrics."""

    def __init__(self, server: Server, metrics_port: int) -> None:
        self.server = server
        self._metrics = f"http://127.0.0.1:{metrics_port}/metrics"

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples with this name and these labels."""
        with urllib.request.urlopen(self._metrics) as response:  # noqa: S310  # Of this machine.
            text = response.read().decode()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE)
        return sum(float(value) for given, value in lines if all(one in given for one in wanted))


@contextmanager
def instance(site: Site, **environment: str) -> Iterator[Instance]:
    """Run an instance with one worker process."""
    port = free_port()
    # Callers of the benchmark have no mail server, and their tokens must outlast it.
    variables = (
        site.environment() | {"APP_TELEMETRY__METRICS_PORT": str(port), "APP_LOG__LEVEL": "warning"} | environment
    )
    with tempfile.TemporaryDirectory(prefix="instance-") as directory:
        command = Command(("-m", "app", "serve"), variables)
        with Server(command, sorted(os.sched_getaffinity(0)), Path(directory) / "log") as server:
            yield Instance(server, port)


async def send(
    running: Instance, plan: Plan, *, seconds: float, connections: int = _CONNECTIONS, may_fail: bool = False
) -> Load:
    sending = Sending(running.server.port, plan, connections=connections, seconds=seconds)
    load = await asyncio.to_thread(sending.result)
    if load.failed and not may_fail:
        message = f"{load.failed} requests failed: {load.example}"
        raise LoadError(message)
    return load


async def token(site: Site) -> list[str]:
    callers = await asyncio.to_thread(site.callers, ADMINISTRATOR)
    return [caller.access_token for caller in callers]


async def page(site: Site) -> Plan:
    return bearer(f"{USERS}?limit={PAGE}", seed.email(PAGE - 1), await token(site))


async def account(site: Site) -> Plan:
    return bearer(f"{USERS}/{UUID(int=7)}", seed.email(7), await token(site))


async def until_in_use(running: Instance) -> None:
    async with asyncio.timeout(60):
        while not running.metric("standby_in_use"):  # noqa: ASYNC110  # Another process changes it.
            await asyncio.sleep(0.05)


# Designs


async def designs(_seconds: float) -> None:
    """Compare what the ways to read your own writes from a standby cost a write, and how reliable they are."""
    async with replication(rows=100, standbys=1) as servers:
        primary = servers.primary
        await primary.execute(
            "CREATE TABLE things (id int PRIMARY KEY, value int)",
            "INSERT INTO things SELECT generate_series(1, 100), 0",
            "CREATE TABLE marks (account int PRIMARY KEY, written_at timestamptz)",
        )
        async with connected(primary.url) as writer, connected(primary.url) as other:
            change = "UPDATE things SET value = value + 1 WHERE id = 1"
            mark = "INSERT INTO marks VALUES (1, now()) ON CONFLICT (account) DO UPDATE SET written_at = now()"
            ways = {
                "a write alone": [change],
                "with a row that marks the writer": [change, mark],
                "with a notification to all processes": [change, "NOTIFY marks, '1'"],
                "with synchronous_commit = remote_apply": ["SET LOCAL synchronous_commit = remote_apply", change],
            }
            await primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
            for way, statements in ways.items():
                first = "SET LOCAL synchronous_commit = local" if "remote" not in way else "SELECT 1"
                taken = [await timed(lambda: transaction(writer, [first, *statements])) for _ in range(_REPETITIONS)]  # noqa: B023  # Runs now.
                print(f"{way}: {milliseconds(taken)}")
            await _notification_race(writer, other)
            await _positions(writer)
            await servers.standbys[0].stop()
            try:
                await asyncio.wait_for(
                    transaction(writer, ["SET LOCAL synchronous_commit = remote_apply", change]), timeout=3
                )
                print("remote_apply without the standby: the write succeeds")
            except TimeoutError:
                print("remote_apply without the standby: the write waits for more than 3 s")


async def _notification_race(writer: asyncpg.Connection, listener: asyncpg.Connection) -> None:
    heard: list[str] = []
    await listener.add_listener("marks", lambda *arguments: heard.append(str(arguments[3])))
    missed = 0
    for number in range(_REPETITIONS):
        await transaction(writer, ["SET LOCAL synchronous_commit = local", f"NOTIFY marks, 'n{number}'"])
        # What another process would have read from its socket, if the next request reached it now.
        await asyncio.sleep(0)
        missed += f"n{number}" not in heard
    print(f"notifications that another process had not read when the write returned: {missed} of {_REPETITIONS}")


async def _positions(connection: asyncpg.Connection) -> None:
    statement = await connection.prepare("SELECT pg_walfile_name(lsn), lsn FROM pg_current_wal_flush_lsn() AS lsn")
    row = await connection.prepare("SELECT * FROM users WHERE id = $1")
    lsn = [await timed(statement.fetchrow) for _ in range(_REPETITIONS)]
    one = [await timed(lambda: row.fetchrow(UUID(int=7))) for _ in range(_REPETITIONS)]
    print(f"the position of the primary: {milliseconds(lsn)}; one account by its key: {milliseconds(one)}")


async def transaction(connection: asyncpg.Connection, statements: list[str]) -> None:
    async with connection.transaction():
        for statement in statements:
            await connection.execute(statement)


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    began = perf_counter()
    await work()
    return perf_counter() - began


def milliseconds(taken: list[float]) -> str:
    ordered = sorted(taken)
    return f"median {statistics.median(ordered) * 1e3:.2f} ms, p95 {ordered[int(0.95 * len(ordered))] * 1e3:.2f} ms"


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(seed.plain(url))
    try:
        yield connection
    finally:
        connection.terminate()


# Reads from a standby


async def standby(seconds: float) -> None:
    """Compare reads from the primary and from a standby, in turns, without and with writes beside them."""
    async with replication(rows=_ROWS, standbys=1) as servers:
        site, (follower,) = servers.site, servers.standbys
        with instance(site) as plain, instance(site, APP_DATABASE__READ_URL=follower.url) as reading:
            await until_in_use(reading)
            for writes in (0, 50):
                async with writing(servers, writes):
                    for name, plan in (("a page of 50", await page(site)), ("one account", await account(site))):
                        for where, running in (("primary", plain), ("standby", reading)) * 2:
                            await _measure_reads(f"{name}, {writes} writes/s, {where}", running, plan, servers, seconds)


async def _measure_reads(name: str, running: Instance, plan: Plan, servers: Replication, seconds: float) -> None:
    def cpu() -> tuple[float, float, float]:
        return running.server.cpu_seconds(), cpu_seconds(servers.primary), cpu_seconds(servers.standbys[0])

    before, on_standby = cpu(), running.metric("standby_reads_total", outcome="standby")
    load = await send(running, plan, seconds=seconds)
    used = [(after - start) / load.requests * 1e6 for start, after in zip(before, cpu(), strict=True)]
    share = (running.metric("standby_reads_total", outcome="standby") - on_standby) / load.requests
    print(
        f"{name}: {load.requests / load.seconds:.0f} requests/s, p50 {load.p50_ms:.1f} ms, p99 {load.p99_ms:.1f} ms; CPU per "
        f"request: process {used[0]:.0f} µs, primary {used[1]:.0f} µs, standby {used[2]:.0f} µs; on the standby {share:.0%}"
    )


@asynccontextmanager
async def writing(servers: Replication, rate: int) -> AsyncIterator[None]:
    """Change an account `rate` times a second while the block runs."""

    async def write() -> None:
        async with connected(servers.primary.url) as connection:
            while True:
                await connection.execute("UPDATE users SET updated_at = now() WHERE id = $1", UUID(int=9))
                await asyncio.sleep(1 / rate)

    task = asyncio.create_task(write()) if rate else None
    try:
        yield
    finally:
        if task:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


# Connections in use


async def law(seconds: float) -> None:
    """Compare the connections in use with requests/s times service time, at several numbers of concurrent requests."""
    async with replication(rows=_ROWS, standbys=0) as servers:
        with instance(servers.site) as running:
            plan = await page(servers.site)
            for connections in (1, 2, 4, 8, 16, 64):
                before = _statement_seconds(running)
                sending = asyncio.create_task(send(running, plan, seconds=seconds, connections=connections))
                counted = []
                while not sending.done():
                    counted.append(running.metric("database_pool_in_use", pool="read"))
                    await asyncio.sleep(_SAMPLE_PAUSE)
                load = await sending
                held = (_statement_seconds(running) - before) / load.requests
                rate = load.requests / load.seconds
                print(
                    f"{connections} clients: {rate:.0f} requests/s * {held * 1e3:.2f} ms = {rate * held:.1f} connections; counted "
                    f"{statistics.mean(counted):.1f}, at most {max(counted):.0f}; p99 {load.p99_ms:.1f} ms"
                )


def _statement_seconds(running: Instance) -> float:
    return running.metric("http_request_database_seconds_sum")


# Several instances


@asynccontextmanager
async def several(site: Site, environments: list[dict[str, str]]) -> AsyncIterator[list[Instance]]:
    async with AsyncExitStack() as stack:
        yield [stack.enter_context(instance(site, **one)) for one in environments]


async def pooler(seconds: float) -> None:
    """Run four instances with 200 client connections each through PgBouncer, and directly."""
    if program() is None:
        message = "PgBouncer is not installed; run `apt-get install pgbouncer`"
        raise LoadError(message)
    async with (
        replication(rows=_ROWS, standbys=0) as servers,
        pooled(servers.primary.url, sessions=20, clients=1000, auth="trust") as url,
    ):
        through = {
            "DATABASE_URL": url,
            "APP_DATABASE__DIRECT_URL": servers.primary.url,
            "APP_DATABASE__TRANSACTION_POOLER": "true",
        }
        for name, environment in (("through PgBouncer with 20 sessions", through), ("directly", {})):
            # Patient, because 800 requests wait at the same time.
            options = environment | {
                "APP_DATABASE__POOL_SIZE": "200",
                "APP_DATABASE__POOL_WAIT": "30s",
                "APP_DATABASE__CONNECT_TIMEOUT": "30s",
                "APP_DATABASE__STATEMENT_TIMEOUT": "60s",
            }
            async with several(servers.site, [options] * 4) as instances:
                await _measure_instances(name, instances, servers, seconds, connections=200, opening=_OPENING_OF_MANY)


async def standbys(seconds: float) -> None:
    """Run four instances on a primary alone, and on a primary and two standbys."""
    async with replication(rows=_ROWS, standbys=2) as servers:
        first, second = ({"APP_DATABASE__READ_URL": one.url} for one in servers.standbys)
        alone: list[dict[str, str]] = [{}] * 4
        for name, environments in (("primary alone", alone), ("primary and two standbys", [first, second] * 2)):
            async with several(servers.site, environments) as instances, writing(servers, 50):
                if environments[0]:
                    for running in instances:
                        await until_in_use(running)
                await _measure_instances(name, instances, servers, seconds)


async def _measure_instances(
    name: str,
    instances: list[Instance],
    servers: Replication,
    seconds: float,
    *,
    connections: int = _CONNECTIONS,
    opening: float = _OPENING,
) -> None:
    """Measure the last part of one long run. In the first part, the instances open their connections.

    Several short runs would not do: a client that leaves cancels its request, which closes the connection of the request.
    """
    plan = await page(servers.site)
    everyone = [servers.primary, *servers.standbys]
    turns = (
        send(one, plan, seconds=opening + seconds + 2, connections=connections, may_fail=True) for one in instances
    )
    sending = asyncio.gather(*turns)
    await asyncio.sleep(opening)
    before, cpu, began = _requests(instances), [cpu_seconds(one) for one in everyone], perf_counter()
    counted = []
    while perf_counter() < began + seconds:
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        counted.append((await servers.primary.fetch(query))[0][0])
        await asyncio.sleep(0.5)
    requests, failed, waited = (after - start for after, start in zip(_requests(instances), before, strict=True))
    taken = perf_counter() - began
    used = [(cpu_seconds(one) - start) / max(1, requests) * 1e6 for one, start in zip(everyone, cpu, strict=True)]
    await sending
    print(
        f"{name}: {len(instances)} instances, {len(instances) * connections} clients, {requests / taken:.0f} requests/s, "
        f"{failed:.0f} of {requests:.0f} failed, mean {waited / max(1, requests) * 1e3:.0f} ms; at most {max(counted)} sessions on the "
        f"primary; CPU per request of each server: {', '.join(f'{one:.0f} µs' for one in used)}"
    )


def _requests(instances: list[Instance]) -> tuple[float, float, float]:
    """Return the requests so far, those that failed, and the seconds of all."""
    name = "http_request_duration_seconds"
    return (
        sum(one.metric(f"{name}_count", method="GET", route=USERS) for one in instances),
        sum(one.metric(f"{name}_count", method="GET", route=USERS, status="5xx") for one in instances),
        sum(one.metric(f"{name}_sum", method="GET", route=USERS) for one in instances),
    )


SECTIONS: dict[str, Section] = {one.__name__: one for one in (designs, standby, law, pooler, standbys)}


async def _run(names: list[str], seconds: float) -> None:
    for name in names:
        print(f"\n{name}: {SECTIONS[name].__doc__}", flush=True)
        await SECTIONS[name](seconds)


def main() -> None:
    """Run the sections that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--seconds", type=float, default=4, help="length of each measurement, in whole seconds")
    options = parser.parse_args()
    check_tools()
    asyncio.run(_run(options.only, options.seconds))


if __name__ == "__main__":
    try:
        main()
    except LoadError as error:
        sys.exit(f"benchmarks: {error}")
