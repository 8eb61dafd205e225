"""Server processes whose reads may use a standby: several processes, a dead standby, fail-over, and a wrong address."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import pytest

from app.core.config import DatabaseSettings
from app.core.errors import ConfigurationError
from app.core.standby.start import check
from app.main import create_app
from tests.conftest import make_settings, running
from tests.faults.load import Ledger, writing
from tests.faults.postgres import PrivatePostgres, caught_up, standby_of
from tests.faults.site import ME, USERS, Site, replicated, site_on
from tests.races.workers import Worker
from tests.servers import SERVE, server_by

_SOON = 30
_CLIENTS = 4
_DELAY = 5.0


@asynccontextmanager
async def site_with(primary: PrivatePostgres, standby: PrivatePostgres) -> AsyncIterator[Site]:
    """Run two server processes that use the standby."""
    async with site_on(primary, processes=2, APP_DATABASE__READ_URL=standby.url, APP_DATABASE__POOL_SIZE="4") as site:
        for worker in site.workers:
            await becomes(worker, "in_use")
        yield site


async def becomes(worker: Worker, *states: str) -> None:
    async def is_there() -> bool:
        return (await worker.request("GET", "/readyz")).body.get("standby") in states

    await until(is_there)


async def names(worker: Worker, token: str) -> set[str | None]:
    """Read the names of all accounts through a list, which may come from the standby."""
    answer = await worker.request("GET", f"{USERS}?limit=100", token=token)
    assert answer.status == 200, answer
    return {account["full_name"] for account in answer.body["items"]}


async def rename(worker: Worker, token: str, name: str) -> None:
    answer = await worker.request("PATCH", ME, token=token, body={"full_name": name})
    assert answer.status == 200, answer


async def names_in(server: PrivatePostgres) -> set[str | None]:
    return {row[0] for row in await server.fetch("SELECT full_name FROM users")}


async def sees_its_writes(site: Site, rounds: int, prefix: str) -> list[int]:
    """Write at one process and read at the other one at once. Return the rounds whose read did not show the write."""
    first, second = site.workers
    stale = []
    for number in range(rounds):
        writer, reader = (first, second) if number % 2 else (second, first)
        await rename(writer, site.token, f"{prefix} {number}")
        if f"{prefix} {number}" not in await names(reader, site.token):
            stale.append(number)
    return stale


async def test_a_caller_sees_its_writes_at_another_process_with_a_standby_5_s_behind(tmp_path: Path) -> None:
    async with replicated(tmp_path) as (primary, standby), site_with(primary, standby) as site:
        in_step = await sees_its_writes(site, 20, "in step")
        await caught_up(primary, standby)
        await standby.execute(f"ALTER SYSTEM SET recovery_min_apply_delay = '{_DELAY}s'", "SELECT pg_reload_conf()")
        began = monotonic()
        lagging = await sees_its_writes(site, 20, "lagging")
        took = monotonic() - began
        on_standby = await names_in(standby)
        states = [(await worker.request("GET", "/readyz")).body["standby"] for worker in site.workers]
        await standby.execute("ALTER SYSTEM RESET recovery_min_apply_delay", "SELECT pg_reload_conf()")
        for worker in site.workers:
            await becomes(worker, "in_use")
        again = await sees_its_writes(site, 20, "again")
        errors = site.errors()

    assert (in_step, lagging, again, errors) == ([], [], [], [])
    # Otherwise the standby would have shown the writes, too.
    assert took < _DELAY
    assert on_standby == {"in step 19"}
    assert states == ["behind", "behind"]


@pytest.mark.slow
async def test_a_standby_that_dies_under_load_fails_no_request(tmp_path: Path) -> None:
    async with replicated(tmp_path) as (primary, standby), site_with(primary, standby) as site:
        writes, reads = Ledger(), Ledger()

        async def read_list(_name: str) -> int:
            return (await site.request("GET", f"{USERS}?limit=5")).status

        async def read_sessions(_name: str) -> int:
            return (await site.request("GET", f"{ME}/sessions")).status

        async with (
            writing(writes, site.create_account, clients=_CLIENTS),
            writing(reads, read_list, clients=_CLIENTS),
            writing(reads, read_sessions, clients=_CLIENTS),
        ):
            for _ in range(2):
                await reads.wait_for_writes(100, within=_SOON)
                await standby.kill()
                for worker in site.workers:
                    await becomes(worker, "unreachable")
                await reads.wait_for_writes(100, within=_SOON)
                await standby.start()
                for worker in site.workers:
                    await becomes(worker, "in_use")
            await reads.wait_for_writes(100, within=_SOON)
        errors = site.errors()

    assert (set(writes.responses), set(reads.responses), errors) == ({201}, {200}, [])


async def test_a_promoted_standby_is_not_read(tmp_path: Path) -> None:
    async with replicated(tmp_path) as (primary, standby), site_with(primary, standby) as site:
        await standby.promote()
        await standby.execute("UPDATE users SET full_name = 'of the other server'")
        stale = await sees_its_writes(site, 20, "after")
        for worker in site.workers:
            # Existing connections show that it is behind. New ones are refused, because it is no standby.
            await becomes(worker, "behind", "unreachable")
        shown = [await names(worker, site.token) for worker in site.workers]

    assert stale == []
    assert shown == [{"after 19"}] * 2


@pytest.mark.slow
async def test_reads_use_the_primary_until_a_standby_has_followed_a_fail_over(tmp_path: Path) -> None:
    """A standby that was ahead of the promoted one has other content at the same position of the log."""
    async with replicated(tmp_path / "first") as (old, ahead), another_standby(old, tmp_path / "second") as promoted:
        await old.execute("CREATE TABLE filler (text text)")
        await caught_up(old, promoted)
        # It receives nothing more. A suspended server would later read what is in the buffers of its socket.
        await promoted.execute("ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
        await until(lambda: receives_nothing(promoted))
        await old.execute("INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 2000)")
        await caught_up(old, ahead)
        await old.kill()
        await promoted.promote()
        await until(lambda: is_writable(promoted))
        async with site_on(promoted, APP_DATABASE__READ_URL=ahead.url) as site:
            worker = site.workers[0]
            await rename(worker, site.token, "on the new timeline")
            position = (await promoted.fetch("SELECT pg_current_wal_flush_lsn()"))[0][0]
            applied = (await ahead.fetch("SELECT pg_last_wal_replay_lsn()"))[0][0]
            await becomes(worker, "behind")
            shown = await names(worker, site.token)

    assert applied > position
    assert "on the new timeline" in shown


@asynccontextmanager
async def another_standby(primary: PrivatePostgres, directory: Path) -> AsyncIterator[PrivatePostgres]:
    standby = await standby_of(primary, directory)
    try:
        yield standby
    finally:
        await standby.stop()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    give_up_at = monotonic() + _SOON
    while not await condition():
        assert monotonic() < give_up_at
        await asyncio.sleep(0.05)


async def receives_nothing(server: PrivatePostgres) -> bool:
    return not (await server.fetch("SELECT count(*) FROM pg_stat_wal_receiver"))[0][0]


async def is_writable(server: PrivatePostgres) -> bool:
    return not (await server.fetch("SELECT pg_is_in_recovery()"))[0][0]


# The check at the start


def reading(primary_url: str, read_url: str) -> DatabaseSettings:
    return DatabaseSettings.model_validate({"url": primary_url, "read_url": read_url})


async def test_the_start_is_refused_if_the_setting_leads_to_another_server(tmp_path: Path) -> None:
    async with (
        replicated(tmp_path / "pair") as (primary, standby),
        replicated(tmp_path / "other") as (_, foreign),
    ):
        await primary.execute("CREATE DATABASE other")
        await caught_up(primary, standby)
        other_database = f"{standby.url.removesuffix('postgres')}other"
        found = [problem(primary.url, url) for url in (primary.url, foreign.url, other_database, standby.url)]
        both = f"@/postgres?host=127.0.0.1:{primary.port}&host=127.0.0.1:{standby.port}"
        several = primary.url.replace(f"@127.0.0.1:{primary.port}/postgres", both)
        found.append(problem(primary.url, several))
        state = await state_while_running(primary.url, foreign.url)

    # A process that could not check the server at its start does not read from it, either.
    assert state == "wrong_server"
    assert [text.split(";")[0].split("(")[0].strip() for text in found] == [
        "APP_DATABASE__READ_URL: it leads to a primary",
        "APP_DATABASE__READ_URL: it leads to another database cluster",
        "APP_DATABASE__READ_URL: it names another database of the same server",
        "",
        "",
    ]


def problem(url: str, read_url: str) -> str:
    try:
        check(reading(url, read_url))
    except ConfigurationError as error:
        return str(error)
    return ""


async def test_a_standby_that_cannot_be_reached_does_not_prevent_the_start(clone_url: str) -> None:
    nowhere = "postgresql://nobody:nothing@127.0.0.1:1/postgres"

    assert (problem(clone_url, nowhere), problem(nowhere, clone_url)) == ("", "")


async def state_while_running(url: str, read_url: str) -> str:
    async with running(create_app(make_settings(url, database={"read_url": read_url}))) as client:
        give_up_at = monotonic() + _SOON
        while (state := (await client.get("/readyz")).json()["standby"]) == "unknown_position":
            assert monotonic() < give_up_at
            await asyncio.sleep(0.05)
    return str(state)


async def test_the_command_ends_with_one_sentence(clone_url: str) -> None:
    with pytest.raises(RuntimeError, match="exited with code 1") as stopped:
        async with server_by(SERVE, clone_url, {"APP_DATABASE__READ_URL": clone_url}):
            """The server does not start."""

    output = "".join(stopped.value.__notes__)
    assert "APP_DATABASE__READ_URL: it leads to a primary" in output
    assert "Traceback" not in output
