"""Faults of PostgreSQL and of the network, one after the other, under load. `make faults` runs this file."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import asyncpg
import pytest

from app.core import product
from tests.faults.load import Ledger, writing
from tests.faults.postgres import PrivatePostgres, caught_up
from tests.faults.site import ME, Site, discrepancies, private_postgres, replicated, site_on
from tests.proxy import Proxy, proxied
from tests.volume import plain

_CLIENTS = 4
_RECOVERY_TIMEOUT = 5.0
_FAILOVER_TIMEOUT = 10.0
# A statement times out after 6 s; connecting and waiting for a connection time out after 2 s each.
_LONGEST_RESPONSE = 10.5
_TIMEOUT = 60.0


@dataclass
class World:
    """The application, its database, and the proxy between them."""

    postgres: PrivatePostgres
    proxy: Proxy
    site: Site


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One world for all tests. Each test must leave it in working order, because it is not restarted."""
    async with (
        private_postgres(tmp_path_factory.mktemp("world")) as postgres,
        proxied(postgres.url) as proxy,
        site_on(postgres, url=proxy.url) as site,
    ):
        yield World(postgres, proxy, site)


@dataclass
class Load:
    writes: Ledger
    reads: Ledger

    @property
    def responses(self) -> set[int | str]:
        return set(self.writes.responses) | set(self.reads.responses)


@asynccontextmanager
async def loaded(site: Site) -> AsyncIterator[Load]:
    """Write and read while the context lasts."""
    await site.log_in()
    load = Load(Ledger(), Ledger())
    async with (
        writing(load.writes, site.create_account, clients=_CLIENTS),
        writing(load.reads, site.read_account, clients=_CLIENTS),
    ):
        await load.writes.wait_for_writes(20, within=_TIMEOUT)
        yield load


async def known_rows(world: World) -> set[str]:
    rows = await world.postgres.fetch("SELECT split_part(email, '@', 1) FROM users WHERE role = 'user'")
    return {row[0] for row in rows}


async def becomes(ask: Callable[[], "asyncio.Future[int]"], status: int, *, within: float) -> None:
    async with asyncio.timeout(within):
        while await ask() != status:  # noqa: ASYNC110  # Another process changes the status.
            await asyncio.sleep(0.05)


async def assert_settled(world: World, load: Load, before: set[str]) -> None:
    """Check that the rows match the responses, and that the fault left no open transactions and no errors."""
    async with asyncio.timeout(_RECOVERY_TIMEOUT):
        while await world.site.left_in_transactions():  # noqa: ASYNC110  # PostgreSQL sends no event.
            await asyncio.sleep(0.05)
    for name in before:
        load.writes.sent.setdefault(name, 0.0)
    assert await discrepancies(world.postgres, load.writes) == {}
    assert world.site.errors() == []


# Outages


@asynccontextmanager
async def killed(world: World) -> AsyncIterator[None]:
    await world.postgres.kill()
    yield
    await world.postgres.start()


def shut_down(number: signal.Signals) -> Callable[[World], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def fault(world: World) -> AsyncIterator[None]:
        await world.postgres.shut_down(number)
        yield
        await world.postgres.start()

    return fault


@asynccontextmanager
async def suspended(world: World) -> AsyncIterator[None]:
    world.postgres.suspend()
    yield
    world.postgres.resume()


@asynccontextmanager
async def partitioned(world: World) -> AsyncIterator[None]:
    world.proxy.stall()
    yield
    world.proxy.resume()


@asynccontextmanager
async def unanswered(world: World) -> AsyncIterator[None]:
    world.proxy.hold_responses()
    yield
    world.proxy.resume()


@asynccontextmanager
async def reset(world: World) -> AsyncIterator[None]:
    world.proxy.cut()
    yield
    world.proxy.accept()


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(killed, id="killed"),
        pytest.param(shut_down(signal.SIGINT), id="restarted fast"),
        pytest.param(shut_down(signal.SIGQUIT), id="restarted immediately"),
        pytest.param(suspended, id="suspended"),
        pytest.param(partitioned, id="partitioned silently"),
        pytest.param(unanswered, id="responses lost"),
        pytest.param(reset, id="connections reset"),
    ],
)
async def test_an_outage_causes_503_and_ends_without_a_restart(
    world: World, fault: Callable[[World], AbstractAsyncContextManager[None]]
) -> None:
    before = await known_rows(world)
    async with loaded(world.site) as load:
        async with fault(world):
            await becomes(lambda: asyncio.ensure_future(world.site.probe("/readyz")), 503, within=5)
            assert await world.site.probe("/livez") == 200
            await asyncio.sleep(8)
        recovery = await load.writes.recovery_time(within=_TIMEOUT)
        await becomes(lambda: asyncio.ensure_future(world.site.probe("/readyz")), 200, within=_RECOVERY_TIMEOUT)

    assert load.responses <= {200, 201, 503}
    assert recovery < _RECOVERY_TIMEOUT
    assert max(load.writes.slowest, load.reads.slowest) < _LONGEST_RESPONSE
    await assert_settled(world, load, before)


async def test_the_application_recovers_when_a_killed_backend_restarts_the_server(world: World) -> None:
    before = await known_rows(world)
    async with loaded(world.site) as load:
        (victim, *_) = await world.postgres.fetch(
            "SELECT pid FROM pg_stat_activity WHERE application_name = $1", product.SLUG
        )
        os.kill(victim["pid"], signal.SIGKILL)
        recovery = await load.writes.recovery_time(within=_TIMEOUT)

    assert load.responses <= {200, 201, 503}
    assert recovery < _RECOVERY_TIMEOUT
    await assert_settled(world, load, before)


async def test_terminated_sessions_cause_almost_no_errors(world: World) -> None:
    before = await known_rows(world)
    terminate = (
        "SELECT pg_terminate_backend(pid) FROM "
        "(SELECT pid FROM pg_stat_activity WHERE application_name = $1 ORDER BY random() LIMIT 1) AS one"
    )
    administrator = await asyncpg.connect(plain(world.postgres.url))
    async with loaded(world.site) as load:
        for _ in range(ended := 200):
            await administrator.execute(terminate, product.SLUG)
            await asyncio.sleep(0.1)
    await administrator.close()

    print(f"\n{ended} sessions ended: {load.reads.responses} reads, {load.writes.responses} writes")  # noqa: T201  # The result of the measurement.
    assert load.responses <= {200, 201, 503}
    assert load.reads.responses[503] <= max(2, load.reads.responses.total() / 1000)
    # Writes are refused if their COMMIT had been sent.
    assert load.writes.responses[503] <= ended / 10
    await assert_settled(world, load, before)


async def test_a_slow_network_causes_no_errors(world: World) -> None:
    before = await known_rows(world)
    world.proxy.delay, world.proxy.jitter = 0.05, 0.025
    try:
        async with loaded(world.site) as load:
            await load.writes.wait_for_writes(20, within=_TIMEOUT)
    finally:
        world.proxy.delay, world.proxy.jitter = 0.0, 0.0

    assert load.responses <= {200, 201}
    await assert_settled(world, load, before)


# Locks, pools and connection limits


async def test_a_locked_table_affects_only_requests_that_use_it(world: World) -> None:
    before = await known_rows(world)
    holder = await asyncpg.connect(plain(world.postgres.url))
    async with loaded(world.site) as load:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("LOCK TABLE audit_events IN ACCESS EXCLUSIVE MODE")
        started, reads = monotonic(), len(load.reads.acknowledged)
        await asyncio.sleep(6)
        assert await world.site.probe("/livez") == 200
        assert len(load.reads.acknowledged) > reads
        await transaction.rollback()
        recovery = await load.writes.recovery_time(within=_TIMEOUT)
    await holder.close()

    assert monotonic() - started > 6
    assert set(load.reads.responses) == {200}
    assert set(load.writes.responses) == {201, 503}
    assert recovery < _RECOVERY_TIMEOUT
    await assert_settled(world, load, before)


async def take_every_connection(postgres: PrivatePostgres, taken: AsyncExitStack) -> None:
    while True:
        other = await asyncpg.connect(plain(postgres.url))
        taken.push_async_callback(other.close)


async def test_a_server_without_free_connections_causes_503(world: World) -> None:
    before = await known_rows(world)
    async with AsyncExitStack() as others:
        await world.postgres.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ^@ $1", product.SLUG
        )
        with pytest.raises(asyncpg.TooManyConnectionsError):
            await take_every_connection(world.postgres, others)
        refused = [(await world.site.request("GET", ME)).status for _ in range(3)]
        assert await world.site.probe("/livez") == 200
        assert await world.site.probe("/readyz") == 503
    async with loaded(world.site) as load:
        pass

    assert refused == [503, 503, 503]
    assert load.responses <= {200, 201}
    await assert_settled(world, load, before)


async def test_an_exhausted_pool_causes_503_in_time_and_recovers(world: World) -> None:
    before = await known_rows(world)
    holder = await asyncpg.connect(plain(world.postgres.url))
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("LOCK TABLE audit_events IN ACCESS EXCLUSIVE MODE")
    crowd = Ledger()
    await asyncio.gather(*(crowd.write(world.site.create_account) for _ in range(60)))
    assert await world.site.probe("/livez") == 200
    await transaction.rollback()
    await holder.close()
    async with loaded(world.site) as load:
        pass

    assert set(crowd.responses) == {503}
    assert crowd.slowest < _LONGEST_RESPONSE
    assert load.responses <= {200, 201}
    load.writes.sent |= crowd.sent
    await assert_settled(world, load, before)


# Migrations


async def test_a_migration_under_load_causes_no_errors(world: World) -> None:
    before = await known_rows(world)
    async with loaded(world.site) as load:
        for number in range(5):
            await world.postgres.execute(
                f"ALTER TABLE users ADD COLUMN extra_{number} text DEFAULT 'x'",
                f"ALTER TABLE audit_events ALTER COLUMN event TYPE varchar({200 + number})",
            )
            await load.writes.wait_for_writes(20, within=_TIMEOUT)
            await load.reads.wait_for_writes(20, within=_TIMEOUT)
        await world.postgres.execute(*(f"ALTER TABLE users DROP COLUMN extra_{number}" for number in range(5)))
        await world.postgres.execute("ALTER TABLE audit_events ALTER COLUMN event TYPE text")
        await load.writes.wait_for_writes(20, within=_TIMEOUT)

    assert load.responses == {200, 201}
    await assert_settled(world, load, before)


# Fail-over


async def fail_over(old: PrivatePostgres, new: PrivatePostgres) -> None:
    """Promote the standby, and restart the old primary as a reachable standby."""
    await old.stop()
    await new.promote()
    old.follow(new)
    await old.start()


async def test_writes_follow_the_primary_to_another_host(tmp_path: Path) -> None:
    async with replicated(tmp_path) as (old, new):
        url = old.url.replace(f"@127.0.0.1:{old.port}/postgres", "@/postgres")
        url += f"?host=127.0.0.1:{old.port}&host=127.0.0.1:{new.port}&target_session_attrs=read-write"
        async with site_on(old, url=url, APP_JOBS__IN_PROCESS="true") as site, loaded(site) as load:
            await fail_over(old, new)
            assert (await old.fetch("SELECT pg_is_in_recovery()"))[0][0]
            recovery = await load.writes.recovery_time(within=_TIMEOUT)
            site.postgres = new
            await becomes(lambda: asyncio.ensure_future(site.probe("/readyz")), 200, within=_FAILOVER_TIMEOUT)
        lost = await discrepancies(new, load.writes)

    print(f"\nwrites worked {recovery:.2f} s after the fail-over")  # noqa: T201  # The result of the measurement.
    assert recovery < _FAILOVER_TIMEOUT
    assert load.responses <= {200, 201, 503}
    assert lost == {}


async def test_connections_to_a_read_only_primary_are_replaced_when_its_address_moves(tmp_path: Path) -> None:
    async with replicated(tmp_path) as (old, new), proxied(old.url) as proxy:
        async with site_on(old, url=proxy.url) as site, loaded(site) as load:
            # The sessions continue. They respond, but refuse writes.
            await old.execute("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
            async with asyncio.timeout(_TIMEOUT):
                while not load.writes.responses[503]:  # noqa: ASYNC110  # The clients send no event.
                    await asyncio.sleep(0.05)
            # Losses of asynchronous replication are not the subject of these tests.
            await caught_up(old, new)
            await new.promote()
            proxy.redirect_to(new.url)
            recovery = await load.writes.recovery_time(within=_TIMEOUT)
            await load.reads.wait_for_writes(100, within=_TIMEOUT)
            on_old = await old.fetch("SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", product.SLUG)
        lost = await discrepancies(new, load.writes)

    print(f"\nwrites worked {recovery:.2f} s after the address moved")  # noqa: T201  # The result of the measurement.
    assert recovery < _FAILOVER_TIMEOUT
    assert load.responses <= {200, 201, 503}
    assert lost == {}
    assert on_old[0][0] == 0
