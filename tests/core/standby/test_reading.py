"""Reads from a real standby: they show every earlier commit, and use the primary while the standby cannot serve them."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import pytest
from httpx2 import AsyncClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import Boolean, Integer, bindparam, column, func, select, table, text

from app.core.db.database import Database, ReadSession
from app.core.db.reads import Reads
from app.core.http import routing
from app.core.http.access import public
from app.core.http.dependencies import DatabaseDep, ReadsDep, ReadSessionDep, SessionDep
from app.core.observability.tracing import Tracing
from app.core.standby.reading import reading_from_standby
from app.core.standby.start import check
from app.main import create_app
from tests.conftest import make_settings, running
from tests.core.scrape import counted_so_far
from tests.faults.postgres import PrivatePostgres, caught_up
from tests.faults.site import replicated

# Seconds, for a busy machine.
_SOON = 20
_READY = "/readyz"
NOTES = table("notes", column("id", Integer), column("value", Integer))
VALUE = select(NOTES.c.value).where(NOTES.c.id == bindparam("id", type_=Integer))
IS_STANDBY = select(func.pg_is_in_recovery(type_=Boolean).label("is_standby"))
_SLOW_STATEMENTS = (
    "FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()"
)
SLOW = select(func.pg_sleep(bindparam("seconds", type_=Integer), type_=Boolean).is_(None).label("slept"))
router = routing.router()


async def places(session: ReadSession, reads: Reads) -> dict[str, bool]:
    """Tell whether a session, and a single statement, run on the standby."""
    return {
        "session": bool(await session.scalar(IS_STANDBY)),
        "single": bool((await reads.execute(IS_STANDBY, {})).scalar_one()),
    }


@router.get("/where", openapi_extra=public)
async def read_where(session: ReadSessionDep, reads: ReadsDep) -> dict[str, bool]:
    """Read."""
    return await places(session, reads)


@router.get("/where/patient", openapi_extra=public | routing.options(statement_timeout=9))
async def read_patiently(session: ReadSessionDep, reads: ReadsDep) -> dict[str, bool]:
    """Read with another statement timeout, which needs a transaction."""
    return await places(session, reads)


@router.get("/where/session", openapi_extra=public)
async def read_in_a_session(session: ReadSessionDep) -> bool:
    """Read in a session alone."""
    return bool(await session.scalar(IS_STANDBY))


@router.get("/where/single", openapi_extra=public)
async def read_a_single_statement(reads: ReadsDep) -> bool:
    """Read with a single statement alone."""
    return bool((await reads.execute(IS_STANDBY, {})).scalar_one())


@router.post("/where", openapi_extra=public)
async def write_where(session: ReadSessionDep, reads: ReadsDep) -> dict[str, bool]:
    """Read in an operation that may write."""
    return await places(session, reads)


@router.get("/where/beside-a-write", openapi_extra=public)
async def read_beside_a_write(_writing: SessionDep, session: ReadSessionDep, reads: ReadsDep) -> dict[str, bool]:
    """Read in an operation with a session for writing."""
    return await places(session, reads)


@router.get("/where/once", openapi_extra=public | routing.options(repeatable=False))
async def read_once(session: ReadSessionDep, reads: ReadsDep) -> dict[str, bool]:
    """Read in an operation that is never retried."""
    return await places(session, reads)


@router.get("/where/database", openapi_extra=public)
async def read_from_the_database(database: DatabaseDep) -> dict[str, bool]:
    """Read as the checks of callers and limits do."""
    async with database.read_sessions() as session:
        return await places(session, database.reads)


@router.get("/values", openapi_extra=public)
async def read_values(session: ReadSessionDep, reads: ReadsDep) -> list[int | None]:
    """Read the value in a session, and with a single statement."""
    single = (await reads.execute(VALUE, {"id": 1})).scalar_one()
    return [await session.scalar(VALUE, {"id": 1}), single]


@router.put("/value", openapi_extra=public)
async def write_value(session: SessionDep, value: int) -> None:
    """Change the value."""
    await session.execute(text("UPDATE notes SET value = :value WHERE id = 1"), {"value": value})


@router.get("/slow/session", openapi_extra=public)
async def read_slowly(session: ReadSessionDep) -> int:
    """Read in a statement that takes two seconds, in which it keeps its snapshot."""
    return int(await session.scalar(text("SELECT value FROM notes, pg_sleep(2) WHERE id = 1")) or 0)


@router.get("/slow/single", openapi_extra=public)
async def read_one_slowly(reads: ReadsDep) -> bool:
    """As above, in a single statement."""
    return bool((await reads.execute(SLOW, {"seconds": 2})).scalar_one())


@router.get("/broken", openapi_extra=public)
async def read_nothing(session: ReadSessionDep) -> None:
    """Fail for a reason that has nothing to do with the standby."""
    await session.scalar(IS_STANDBY)
    raise LookupError


@dataclass
class Pair:
    """A primary with a table, and its standby."""

    primary: PrivatePostgres
    standby: PrivatePostgres
    changed: set[str] = field(default_factory=set)

    async def configure(self, **settings: str) -> None:
        """Set these settings of the standby, and reset those of earlier calls."""
        changes = [f"ALTER SYSTEM RESET {name}" for name in self.changed]
        changes += [f"ALTER SYSTEM SET {name} = '{value}'" for name, value in settings.items()]
        self.changed = set(settings)
        await self.standby.execute(*changes, "SELECT pg_reload_conf()")

    async def value_on_standby(self) -> int:
        value: int = (await self.standby.fetch("SELECT value FROM notes WHERE id = 1"))[0][0]
        return value


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    async with replicated(tmp_path_factory.mktemp("pair")) as (primary, standby):
        await primary.execute("CREATE TABLE notes (id int PRIMARY KEY, value int)", "INSERT INTO notes VALUES (1, 0)")
        yield Pair(primary, standby)


@pytest.fixture
async def pair(shared: Pair) -> AsyncIterator[Pair]:
    yield shared
    await shared.configure()
    await caught_up(shared.primary, shared.standby)


@asynccontextmanager
async def application(pair: Pair, *, tracing: Tracing | None = None, **database: Any) -> AsyncIterator[AsyncClient]:
    """Run an application with these operations, and wait until it uses the standby."""
    options = {"read_url": pair.standby.url, "pool_size": 4, "read_max_lag": "5s", **database}
    app = create_app(make_settings(pair.primary.url, database=options), tracing=tracing)
    routing.include(app, router)
    async with running(app) as client:
        await becomes(client, "in_use")
        yield client


async def becomes(client: AsyncClient, state: str) -> None:
    await until(lambda: is_standby(client, state))


async def is_standby(client: AsyncClient, state: str) -> bool:
    return bool((await client.get(_READY)).json().get("standby") == state)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    # No `asyncio.timeout`: the middleware turns a cancelled request into a response.
    give_up_at = monotonic() + _SOON
    while not await condition():
        assert monotonic() < give_up_at
        await asyncio.sleep(0.02)


async def until_async(condition: Callable[[], bool]) -> None:
    async def holds() -> bool:
        return condition()

    await until(holds)


async def write(client: AsyncClient, value: int) -> None:
    assert (await client.put("/value", params={"value": value})).status_code == 200


async def values(client: AsyncClient) -> list[int]:
    response = await client.get("/values")
    assert response.status_code == 200, response.text
    found: list[int] = response.json()
    return found


def counted(outcome: str) -> float:
    return counted_so_far("standby_reads_total", outcome=outcome)


ON_STANDBY, ON_PRIMARY = {"session": True, "single": True}, {"session": False, "single": False}


async def test_get_operations_read_from_the_standby_and_nothing_else_does(pair: Pair) -> None:
    async with application(pair) as client:
        found = {path: (await client.get(path)).json() for path in ("/where", "/where/patient")}
        others = [(await client.get(f"/where/{path}")).json() for path in ("beside-a-write", "once", "database")]
        written = (await client.post("/where")).json()

    assert found == {"/where": ON_STANDBY, "/where/patient": ON_STANDBY}
    assert others == [ON_PRIMARY] * 3
    assert written == ON_PRIMARY


async def test_a_read_waits_until_the_standby_has_the_write_before_it(pair: Pair) -> None:
    async with application(pair) as client:
        await pair.configure(recovery_min_apply_delay="60ms")
        before, found = counted("standby"), []
        for value in range(1, 21):
            await write(client, value)
            found.append(await values(client))
        used = counted("standby") - before

    assert found == [[value, value] for value in range(1, 21)]
    # Each operation reads twice.
    assert used == 40


async def test_reads_use_the_primary_while_the_standby_is_behind(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="app.core.standby")
    async with application(pair, read_max_lag="50ms") as client:
        await write(client, 100)
        await caught_up(pair.primary, pair.standby)
        await pair.configure(recovery_min_apply_delay="5s")
        began, before = monotonic(), counted("behind")
        await write(client, 101)
        found, stale = await values(client), await pair.value_on_standby()
        took = monotonic() - began
        await becomes(client, "behind")
        places = (await client.get("/where")).json()
        behind = counted("behind") - before
        await pair.configure()
        await becomes(client, "in_use")
        later = await values(client)

    assert (found, stale, later) == ([101, 101], 100, [101, 101])
    assert places == ON_PRIMARY
    assert took < 4
    # One of the four reads finds it out, or the check does so before.
    assert behind == 4
    assert "standby not used, reads go to the primary" in caplog.text
    assert "standby used for reads" in caplog.text


async def test_a_read_that_recovery_cancels_runs_again_on_the_primary(pair: Pair) -> None:
    async with application(pair) as client:
        await pair.configure(max_standby_streaming_delay="0")
        before = counted("retried")
        await write(client, 200)
        reading = asyncio.create_task(client.get("/slow/session"))
        await until(lambda: runs_slowly(pair.standby))
        await pair.primary.execute("UPDATE notes SET value = 201 WHERE id = 1", "VACUUM notes")
        response = await reading
        state = (await client.get(_READY)).json()

    assert (response.status_code, response.json()) == (200, 201)
    assert counted("retried") - before == 1
    # The standby itself is in order.
    assert state == {"status": "ok", "standby": "in_use"}


async def runs_slowly(server: PrivatePostgres) -> bool:
    return bool((await server.fetch(f"SELECT count(*) {_SLOW_STATEMENTS}"))[0][0])


@pytest.mark.parametrize("kind", ["session", "single"])
async def test_a_read_whose_connection_ends_runs_again_on_the_primary(pair: Pair, kind: str) -> None:
    async with application(pair) as client:
        reading = asyncio.create_task(client.get(f"/slow/{kind}"))
        await until(lambda: runs_slowly(pair.standby))
        await pair.standby.execute(f"SELECT pg_terminate_backend(pid) {_SLOW_STATEMENTS}")
        response = await reading
        await becomes(client, "in_use")

    assert response.status_code == 200


@pytest.mark.parametrize("kind", ["session", "single"])
async def test_a_statement_timeout_on_the_standby_is_not_repeated_on_the_primary(pair: Pair, kind: str) -> None:
    async with application(pair, statement_timeout="300ms") as client:
        before = counted("retried")
        response = await client.get(f"/slow/{kind}")
        state = (await client.get(_READY)).json()["standby"]

    assert response.status_code == 503
    assert (counted("retried") - before, state) == (0, "in_use")


async def test_an_error_of_the_endpoint_is_not_taken_for_a_fault_of_the_standby(pair: Pair) -> None:
    async with application(pair) as client:
        response = await client.get("/broken")
        state = (await client.get(_READY)).json()["standby"]

    assert (response.status_code, state) == (500, "in_use")


async def test_reads_use_the_primary_while_its_position_is_unknown(pair: Pair) -> None:
    async with application(pair) as client:
        before = counted("unknown_position")
        await pair.primary.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%-positions'"
        )
        await write(client, 300)
        found = await values(client)
        unknown = counted("unknown_position") - before
        await becomes(client, "in_use")

    assert found == [300, 300]
    assert unknown > 0


async def test_a_read_does_not_wait_long_for_the_position_of_the_primary(pair: Pair) -> None:
    async with application(pair) as client:
        query = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE '%-positions'"
        pid = (await pair.primary.fetch(query))[0][0]
        os.kill(pid, signal.SIGSTOP)
        try:
            response = await client.get("/where")
        finally:
            os.kill(pid, signal.SIGCONT)

    assert (response.status_code, response.json()) == (200, ON_PRIMARY)


@pytest.mark.parametrize("path", ["/where/session", "/where/single"])
async def test_a_read_that_waits_for_the_standby_survives_the_end_of_its_connection(pair: Pair, path: str) -> None:
    async with application(pair) as client:
        await pair.configure(recovery_min_apply_delay="30s")
        await write(client, 350)
        waiting = asyncio.create_task(client.get(path))
        await asyncio.sleep(0.3)
        # The standby cannot be asked again.
        await pair.standby.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        response = await waiting

    assert (response.status_code, response.json()) == (200, False)


async def test_a_full_pool_of_the_standby_sends_reads_to_the_primary(pair: Pair) -> None:
    async with application(pair, pool_size=1, pool_wait="200ms") as client:
        slow = asyncio.create_task(client.get("/slow/session"))
        await until(lambda: runs_slowly(pair.standby))
        response = await client.get("/where/session")
        assert (await slow).status_code == 200

    assert (response.status_code, response.json()) == (200, False)


async def test_a_standby_behind_a_transaction_pooler_is_asked_in_the_transaction_of_the_read(pair: Pair) -> None:
    async with application(pair, transaction_pooler=True, direct_url=pair.primary.url) as client:
        await pair.configure(recovery_min_apply_delay="60ms")
        places = (await client.get("/where")).json()
        await write(client, 400)
        found = await values(client)

    assert places == ON_STANDBY
    assert found == [400, 400]


async def test_statements_on_the_standby_are_traced(pair: Pair) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with application(pair, tracing=Tracing(provider, provider.shutdown)) as client:
        places = (await client.get("/where")).json()
        spans = [span.name for span in exporter.get_finished_spans()]

    assert places == ON_STANDBY
    assert spans.count("SELECT") >= 2


async def test_the_metrics_show_the_pool_and_the_lag_of_the_standby(pair: Pair) -> None:
    settings = make_settings(pair.primary.url, database={"read_url": pair.standby.url, "pool_size": 3}).database
    database = Database(settings)
    async with reading_from_standby(settings, database, None) as standby:
        assert standby is not None
        before = counted_so_far("standby_in_use")
        await until_async(lambda: standby.reason is None)
        used = counted_so_far("standby_in_use")
        pool = {reading.name: (reading.value, reading.labels) for reading in standby.readings()}
        await pair.configure(recovery_min_apply_delay="30s")
        await pair.primary.execute("UPDATE notes SET value = value WHERE id = 1")
        await until_async(lambda: standby.reason == "behind")
        lagging, lag = counted_so_far("standby_in_use"), counted_so_far("standby_lag_bytes")
    await database.dispose()

    assert (before, used, lagging) == (0, 1, 0)
    assert lag > 0
    assert pool["database_pool_size"] == (3, {"pool": "standby"})


async def test_a_cancelled_read_leaves_the_pool_complete(pair: Pair) -> None:
    async with application(pair, pool_size=1) as client:
        await pair.configure(recovery_min_apply_delay="30s")
        await write(client, 500)
        waiting = asyncio.create_task(client.get("/where/session"))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait([waiting])
        await pair.configure()
        await becomes(client, "in_use")
        response = await client.get("/where/session")

    assert response.json() is True


async def test_without_the_setting_there_is_no_standby(clone_url: str) -> None:
    check(make_settings(clone_url).database)
    app = create_app(make_settings(clone_url))
    routing.include(app, router)
    async with running(app) as client:
        places = (await client.get("/where")).json()
        ready = (await client.get(_READY)).json()
    database = Database(make_settings(clone_url).database)
    async with database.read_sessions() as session:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%-positions' AND datname = current_database()"
        connections = await session.scalar(text(query))
    await database.dispose()

    assert (places, ready, connections) == (ON_PRIMARY, {"status": "ok"}, 0)
