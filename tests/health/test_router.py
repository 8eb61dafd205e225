"""The probes, while the database works, is unreachable, has an old schema or does not respond."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from httpx2 import AsyncClient, Response
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.db.database import Database
from app.health.service import SchemaWatch, check_readiness
from app.main import create_app
from app.migrations import runner
from app.migrations.revisions import head
from app.users.roles import Role
from tests.conftest import make_settings, running
from tests.core.wire import tapped

# The probe gives up after two seconds; on a busy machine the answer takes longer. Every other limit is 30 s.
SOON = 10


@asynccontextmanager
async def application(url: str, **database: Any) -> AsyncIterator[tuple[AsyncClient, Database]]:
    """Run an application of its own on this database."""
    settings = make_settings(url, database=database)
    own = Database(settings.database)
    async with running(create_app(settings, own)) as client:
        yield client, own
    await own.dispose()


async def execute(database: Database, statement: str) -> None:
    async with database.begin() as session:
        await session.execute(text(statement))


async def stamp(database: Database, revision: str) -> None:
    async with database.begin() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


def assert_not_ready(response: Response, detail: str) -> None:
    document = response.json()
    assert (response.status_code, document["code"]) == (503, "not_ready")
    assert document["detail"] == detail
    assert document["type"] == "/problems/service-unavailable"
    assert int(response.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_a_healthy_process_says_so(client: AsyncClient, path: str) -> None:
    response = await client.get(path)

    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_probes_may_use_head(client: AsyncClient, path: str) -> None:
    response = await client.head(path)

    assert (response.status_code, response.content) == (200, b"")


async def test_the_process_lives_without_a_database() -> None:
    async with application("postgresql://nobody@127.0.0.1:1/nothing") as (client, _):
        response = await client.get("/livez")

    assert response.status_code == 200


async def test_without_a_database_nothing_is_ready() -> None:
    async with application("postgresql://nobody@127.0.0.1:1/nothing") as (client, _):
        response = await client.get("/readyz")

    assert_not_ready(response, "Not ready: the database cannot be reached.")


async def test_an_empty_database_is_not_ready(clone_url: str) -> None:
    async with application(clone_url) as (client, database):
        await execute(database, "DROP SCHEMA public CASCADE")
        await execute(database, "CREATE SCHEMA public")

        response = await client.get("/readyz")

    assert_not_ready(response, f"Not ready: the schema is at revision none, this program needs {head()}.")


async def test_a_version_table_without_a_row_is_not_ready(clone_url: str) -> None:
    await runner.upgrade(make_settings(clone_url).database, "base")

    async with application(clone_url) as (client, _):
        response = await client.get("/readyz")

    assert_not_ready(response, f"Not ready: the schema is at revision none, this program needs {head()}.")


async def test_a_schema_of_another_release_is_not_ready(clone_url: str) -> None:
    async with application(clone_url) as (client, database):
        await stamp(database, "20991231_future")

        response = await client.get("/readyz")

    assert_not_ready(response, f"Not ready: the schema is at revision 20991231_future, this program needs {head()}.")


async def test_a_newer_release_that_migrates_takes_nobody_out_of_rotation(clone_url: str) -> None:
    async with application(clone_url) as (client, database):
        before = await client.get("/readyz")
        await stamp(database, "20991231_future")
        newer = await client.get("/readyz")
        await stamp(database, "20261123_users")
        older = await client.get("/readyz")

    assert (before.status_code, newer.status_code) == (200, 200)
    assert_not_ready(older, f"Not ready: the schema is at revision 20261123_users, this program needs {head()}.")


async def test_a_program_may_be_told_to_start_on_a_newer_schema(clone_url: str) -> None:
    async with application(clone_url, accept_newer_schema=True) as (client, database):
        await stamp(database, "20991231_future")
        newer = await client.get("/readyz")
        await execute(database, "DELETE FROM alembic_version")
        none = await client.get("/readyz")

    assert newer.status_code == 200
    assert_not_ready(none, f"Not ready: the schema is at revision none, this program needs {head()}.")


async def test_readiness_comes_back_with_the_schema(clone_url: str) -> None:
    async with application(clone_url) as (client, database):
        await stamp(database, "20991231_future")
        before = await client.get("/readyz")
        await stamp(database, head())

        after = await client.get("/readyz")

    assert (before.status_code, after.status_code) == (503, 200)


async def test_a_database_that_refuses_a_role_of_the_code_is_not_ready_until_it_takes_it(clone_url: str) -> None:
    async with application(clone_url) as (client, database):
        await execute(database, "ALTER TABLE users DROP CONSTRAINT ck_users_role")
        await execute(database, "ALTER TABLE users ADD CONSTRAINT ck_users_role CHECK (role IN ('another'))")
        before = await client.get("/readyz")
        await execute(database, "ALTER TABLE users DROP CONSTRAINT ck_users_role")
        after = await client.get("/readyz")

    assert before.status_code == 503
    assert f"the code declares {', '.join(Role)} for role, and the constraint ck_users_role" in before.json()["detail"]
    assert after.status_code == 200


async def test_a_silent_database_is_found_out_within_two_seconds(clone_url: str) -> None:
    async with tapped(clone_url) as wire, application(wire.url) as (client, _):
        assert (await client.get("/readyz")).status_code == 200
        wire.flowing.clear()
        started = time.monotonic()

        response = await client.get("/readyz")
        elapsed = time.monotonic() - started
        wire.flowing.set()

    assert_not_ready(response, "Not ready: the database cannot be reached.")
    assert elapsed < SOON


async def test_a_database_that_takes_no_connection_is_found_out_within_two_seconds() -> None:
    # The kernel accepts for it; nobody ever reads.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/nothing"
        async with application(url, connect_timeout="30s") as (client, _):
            started = time.monotonic()
            response = await client.get("/readyz")
            elapsed = time.monotonic() - started

    assert_not_ready(response, "Not ready: the database cannot be reached.")
    assert elapsed < SOON


@pytest.mark.parametrize(
    ("pools", "detail"),
    [
        (["writing"], "Not ready: the writing pool has no free connection."),
        (["reading"], "Not ready: the reading pool has no free connection."),
        (
            ["writing", "reading"],
            "Not ready: the writing pool has no free connection, the reading pool has no free connection.",
        ),
    ],
)
@pytest.mark.parametrize("pool_wait", ["100ms", "30s"])
async def test_a_pool_without_a_free_connection_is_not_ready_and_named(
    clone_url: str, pools: list[str], detail: str, pool_wait: str
) -> None:
    async with application(clone_url, pool_size=1, pool_wait=pool_wait) as (client, database):
        async with AsyncExitStack() as stack:
            for pool in pools:
                await hold_connection(stack, database, pool)
            started = time.monotonic()
            busy = await client.get("/readyz")
            elapsed = time.monotonic() - started
        free = await client.get("/readyz")

    assert_not_ready(busy, detail)
    assert elapsed < SOON
    assert free.status_code == 200


async def hold_connection(stack: AsyncExitStack, database: Database, pool: str) -> None:
    session = await stack.enter_async_context(database.sessions() if pool == "writing" else database.read_sessions())
    await session.execute(text("SELECT 1"))


async def test_a_busy_pool_that_gives_a_connection_in_time_is_ready(clone_url: str) -> None:
    async with application(clone_url, pool_size=1, pool_wait="30s") as (client, database):
        async with AsyncExitStack() as stack:
            await hold_connection(stack, database, "writing")
            probe = asyncio.create_task(client.get("/readyz"))
            await until(lambda: waiting(database.engine) == 1)
        response = await probe

    assert response.status_code == 200


async def test_probes_leave_the_queue_of_an_exhausted_pool(clone_url: str) -> None:
    async with application(clone_url, pool_size=1, pool_wait="30s") as (client, database):
        async with AsyncExitStack() as stack:
            await hold_connection(stack, database, "writing")
            await asyncio.gather(*(client.get("/readyz") for _ in range(20)))
            await until(lambda: waiting(database.engine) == 0)
        await execute(database, "SELECT 1")
        async with database.read_sessions() as session:
            count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
            open_transactions = await session.scalar(text(count))

    assert open_transactions == 0
    assert [checked_out(engine) for engine in (database.engine, database.read_engine)] == [0, 0]


def waiting(engine: AsyncEngine) -> int:
    count: int = engine.pool.waiting  # type: ignore[attr-defined]  # Of the pool that is used.
    return count


def checked_out(engine: AsyncEngine) -> int:
    count: int = engine.pool.checkedout()  # type: ignore[attr-defined]  # As above.
    return count


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # The pool tells nobody.
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("pool", ["writing", "reading"])
async def test_a_pool_that_does_not_reach_the_database_is_named(clone_url: str, pool: str) -> None:
    elsewhere = Database(make_settings("postgresql://nobody@127.0.0.1:1/nothing").database)
    async with application(clone_url) as (client, database):
        if pool == "writing":
            database.engine = elsewhere.engine
        else:
            database.read_engine, database.read_sessions = elsewhere.read_engine, elsewhere.read_sessions
        response = await client.get("/readyz")

    assert_not_ready(response, f"Not ready: the {pool} pool cannot reach the database.")


async def test_a_defect_is_no_answer_of_the_probe(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        message = "a defect"
        raise LookupError(message)

    monkeypatch.setattr(database, "read_sessions", broken)

    watch = SchemaWatch(head="any", known=frozenset(), accepts_newer=False)

    with pytest.raises(LookupError):
        await check_readiness(database, schema=watch.unready, checks=())


async def test_what_a_probe_says_names_nothing_secret() -> None:
    async with application("postgresql://someone:hunter2@127.0.0.1:1/secret") as (client, _):
        response = await client.get("/readyz")

    assert not any(word in response.text for word in ("hunter2", "someone", "127.0.0.1", "asyncpg"))
