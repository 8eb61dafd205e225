"""The probes, with a database that works, is unreachable, has another schema, or does not respond."""

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

# Seconds. The timeout of the probe is 2 s, but a busy machine needs longer. Every other timeout is 30 s.
SOON = 10


@asynccontextmanager
async def application(url: str, **database: Any) -> AsyncIterator[tuple[AsyncClient, Database]]:
    """Run a separate application on this database."""
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
async def test_a_healthy_process_returns_200(client: AsyncClient, path: str) -> None:
    response = await client.get(path)

    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_probes_support_head(client: AsyncClient, path: str) -> None:
    response = await client.head(path)

    assert (response.status_code, response.content) == (200, b"")


async def test_the_process_is_live_without_a_database() -> None:
    async with application("postgresql://nobody@127.0.0.1:1/nothing") as (client, _):
        response = await client.get("/livez")

    assert response.status_code == 200


async def test_the_process_is_not_ready_without_a_database() -> None:
    async with application("postgresql://nobody@127.0.0.1:1/nothing") as (client, _):
        response = await client.get("/readyz")

    assert_not_ready(response, "Not ready: the database cannot be reached.")


async def test_the_process_is_not_ready_with_an_empty_database(clone_url: str) -> None:
    async with application(clone_url) as (client, database):
        await execute(database, "DROP SCHEMA public CASCADE")
        await execute(database, "CREATE SCHEMA public")

        response = await client.get("/readyz")

    assert_not_ready(response, f"Not ready: the schema is at revision none, this program needs {head()}.")


async def test_the_process_is_not_ready_with_an_empty_version_table(clone_url: str) -> None:
    await runner.upgrade(make_settings(clone_url).database, "base")

    async with application(clone_url) as (client, _):
        response = await client.get("/readyz")

    assert_not_ready(response, f"Not ready: the schema is at revision none, this program needs {head()}.")


async def test_the_process_is_not_ready_with_an_unknown_schema(clone_url: str) -> None:
    async with application(clone_url) as (client, database):
        await stamp(database, "20991231_future")

        response = await client.get("/readyz")

    assert_not_ready(response, f"Not ready: the schema is at revision 20991231_future, this program needs {head()}.")


async def test_the_process_stays_ready_when_a_newer_release_migrates(clone_url: str) -> None:
    async with application(clone_url) as (client, database):
        before = await client.get("/readyz")
        await stamp(database, "20991231_future")
        newer = await client.get("/readyz")
        await stamp(database, "20261123_users")
        older = await client.get("/readyz")

    assert (before.status_code, newer.status_code) == (200, 200)
    assert_not_ready(older, f"Not ready: the schema is at revision 20261123_users, this program needs {head()}.")


async def test_a_setting_makes_the_process_accept_a_newer_schema(clone_url: str) -> None:
    async with application(clone_url, accept_newer_schema=True) as (client, database):
        await stamp(database, "20991231_future")
        newer = await client.get("/readyz")
        await execute(database, "DELETE FROM alembic_version")
        none = await client.get("/readyz")

    assert newer.status_code == 200
    assert_not_ready(none, f"Not ready: the schema is at revision none, this program needs {head()}.")


async def test_the_process_is_ready_again_when_the_schema_is(clone_url: str) -> None:
    async with application(clone_url) as (client, database):
        await stamp(database, "20991231_future")
        before = await client.get("/readyz")
        await stamp(database, head())

        after = await client.get("/readyz")

    assert (before.status_code, after.status_code) == (503, 200)


async def test_the_process_is_not_ready_until_the_database_accepts_every_role(clone_url: str) -> None:
    async with application(clone_url) as (client, database):
        await execute(database, "ALTER TABLE users DROP CONSTRAINT ck_users_role")
        await execute(database, "ALTER TABLE users ADD CONSTRAINT ck_users_role CHECK (role IN ('another'))")
        before = await client.get("/readyz")
        await execute(database, "ALTER TABLE users DROP CONSTRAINT ck_users_role")
        after = await client.get("/readyz")

    assert before.status_code == 503
    assert f"the code declares {', '.join(Role)} for role, but the constraint ck_users_role" in before.json()["detail"]
    assert after.status_code == 200


async def test_a_silent_database_is_detected_within_two_seconds(clone_url: str) -> None:
    async with tapped(clone_url) as wire, application(wire.url) as (client, _):
        assert (await client.get("/readyz")).status_code == 200
        wire.flowing.clear()
        started = time.monotonic()

        response = await client.get("/readyz")
        elapsed = time.monotonic() - started
        wire.flowing.set()

    assert_not_ready(response, "Not ready: the database cannot be reached.")
    assert elapsed < SOON


async def test_a_database_that_does_not_answer_a_connection_is_detected_within_two_seconds() -> None:
    # The kernel accepts the connection, but no process reads from it.
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
async def test_the_detail_names_a_pool_without_a_free_connection(
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


async def test_a_busy_pool_is_ready_if_it_gives_a_connection_in_time(clone_url: str) -> None:
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
    count: int = engine.pool.waiting  # type: ignore[attr-defined]  # An attribute of our pool class.
    return count


def checked_out(engine: AsyncEngine) -> int:
    count: int = engine.pool.checkedout()  # type: ignore[attr-defined]  # As above.
    return count


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # The pool has no event.
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("pool", ["writing", "reading"])
async def test_the_detail_names_a_pool_that_cannot_reach_the_database(clone_url: str, pool: str) -> None:
    elsewhere = Database(make_settings("postgresql://nobody@127.0.0.1:1/nothing").database)
    async with application(clone_url) as (client, database):
        if pool == "writing":
            database.engine = elsewhere.engine
        else:
            database.read_engine, database.read_sessions = elsewhere.read_engine, elsewhere.read_sessions
        response = await client.get("/readyz")

    assert_not_ready(response, f"Not ready: the {pool} pool cannot reach the database.")


async def test_a_bug_is_not_reported_as_an_unready_process(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        message = "a defect"
        raise LookupError(message)

    monkeypatch.setattr(database, "read_sessions", broken)

    watch = SchemaWatch(head="any", known=frozenset(), accepts_newer=False)

    with pytest.raises(LookupError):
        await check_readiness(database, schema=watch.unready, checks=())


async def test_the_response_of_a_probe_contains_no_secret() -> None:
    async with application("postgresql://someone:hunter2@127.0.0.1:1/secret") as (client, _):
        response = await client.get("/readyz")

    assert not any(word in response.text for word in ("hunter2", "someone", "127.0.0.1", "asyncpg"))
