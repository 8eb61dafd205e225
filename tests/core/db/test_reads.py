"""Reads without a session give the same rows and errors, and return their connection to the pool."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from time import perf_counter
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import Boolean, Integer, Numeric, Select, String, bindparam, cast, func, literal, null, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.core.db.database import Database
from app.core.db.failures import DatabaseUnavailableError, is_transient, sqlstate
from app.core.db.query_log import count_statements
from app.core.db.reads import DirectReads, SessionReads
from app.core.db.retries import with_retries
from app.core.db.timeouts import statement_timeout
from app.core.observability.tracing import Tracing
from app.jobs.metrics import pool_readings
from app.users.models import User
from tests.conftest import make_settings
from tests.factories import make_user
from tests.proxy import proxied

_COLUMNS = User.__table__.c
ROW = select(*_COLUMNS).where(_COLUMNS.id == bindparam("id"))
NUMBER = select(literal(1).label("number")).where(bindparam("wanted", type_=_COLUMNS.is_active.type))


@pytest.fixture
async def database(clone_url: str) -> AsyncIterator[Database]:
    database = Database(make_settings(clone_url, database={"pool_size": 1}).database)
    assert isinstance(database.reads, DirectReads)
    yield database
    assert database.read_engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # Of the pool that is used.
    await database.dispose()


async def number(database: Database) -> int:
    return int((await database.reads.execute(NUMBER, {"wanted": True})).scalar_one())


async def test_the_rows_are_the_same_as_those_of_a_session(database: Database) -> None:
    async with database.begin() as session:
        user = await make_user(session, full_name=None, hashed_password="x")

    result = await database.reads.execute(ROW, {"id": user.id})

    row = result.one()
    async with database.read_sessions() as reader:
        expected = (await reader.execute(ROW, {"id": user.id})).one()
    assert row == expected
    assert row._fields == expected._fields
    assert isinstance(row.id, UUID)
    assert (await database.reads.execute(ROW, {"id": uuid4()})).one_or_none() is None


async def test_constants_may_be_part_of_the_statement(database: Database) -> None:
    statement = select(
        func.generate_series(1, bindparam("last", type_=_COLUMNS.version.type), type_=Integer).label("one")
    ).limit(2)

    assert list((await database.reads.execute(statement, {"last": 5})).scalars()) == [1, 2]
    assert list((await database.reads.execute(statement, {"last": 1})).scalars()) == [1]


async def test_a_column_that_needs_conversion_is_rejected(database: Database) -> None:
    with pytest.raises(TypeError, match="use a session"):
        await database.reads.execute(select(cast(null(), Numeric).label("price")), {})


async def test_an_error_is_the_same_as_that_of_a_session_and_the_connection_is_kept(database: Database) -> None:
    quotient: Select[Any] = select(
        cast(literal(1) / bindparam("by", type_=_COLUMNS.version.type), Integer).label("quotient")
    )
    pid = select(func.pg_backend_pid(type_=Integer).label("pid"))
    before = (await database.reads.execute(pid, {})).scalar_one()

    with pytest.raises(DBAPIError) as failed:
        await database.reads.execute(quotient, {"by": 0})

    assert sqlstate(failed.value) == "22012"
    assert (await database.reads.execute(pid, {})).scalar_one() == before


async def test_a_lost_connection_is_replaced(database: Database) -> None:
    ending = select(func.pg_terminate_backend(func.pg_backend_pid(), type_=Boolean).label("ended"))

    with pytest.raises(DBAPIError) as failed:
        await database.reads.execute(ending, {})

    assert is_transient(failed.value)
    assert await number(database) == 1


async def test_a_read_from_a_silent_server_times_out_without_a_retry(clone_url: str) -> None:
    async with proxied(clone_url) as proxy:
        database = Database(make_settings(proxy.url, database={"pool_size": 1, "statement_timeout": "200ms"}).database)
        await number(database)
        proxy.stall()
        began = perf_counter()

        with pytest.raises(DatabaseUnavailableError):
            await number(database)

        # The timeout of the driver is 1 s longer than the statement timeout. Two attempts would take 2.4 s.
        assert perf_counter() - began < 2.3
        proxy.resume()
        assert await number(database) == 1
        await database.dispose()


async def test_a_statement_that_the_server_cancels_is_not_retried(clone_url: str) -> None:
    database = Database(make_settings(clone_url, database={"statement_timeout": "200ms"}).database)
    statements = count_statements()

    with pytest.raises(DatabaseUnavailableError):
        await database.reads.execute(select(cast(func.pg_sleep(5), String).label("slept")), {})

    assert statements.count == 1
    assert await number(database) == 1
    await database.dispose()


async def test_a_read_has_the_statement_timeout_of_its_operation(clone_url: str) -> None:
    database = Database(make_settings(clone_url, database={"statement_timeout": "200ms"}).database)
    slow = select(cast(func.pg_sleep(0.4), String).label("slept"))

    with statement_timeout(timedelta(seconds=5)):
        rows = await database.reads.execute(slow, {})

    assert len(rows.all()) == 1
    await database.dispose()


async def test_a_cancelled_read_leaves_no_result_for_the_next_one(database: Database) -> None:
    sleeping = select(cast(func.pg_sleep(5), String).label("slept"))
    await number(database)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await database.reads.execute(sleeping, {})

    assert await number(database) == 1


async def test_waiting_readers_get_connections_in_order(database: Database) -> None:
    ended: list[int] = []

    async def read(place: int) -> None:
        await number(database)
        ended.append(place)

    async def read_thrice(place: int) -> None:
        for _ in range(3):
            await read(place)

    # Without the semaphore, the first reader would take the only connection again before the waiting ones.
    await asyncio.gather(*(read_thrice(place) for place in range(3)))

    assert ended == [0, 1, 2] * 3


async def test_a_reader_waits_for_a_connection_until_the_timeout_of_the_pool(clone_url: str) -> None:
    database = Database(make_settings(clone_url, database={"pool_size": 1, "pool_wait": "50ms"}).database)
    await number(database)
    sleeping = asyncio.create_task(database.reads.execute(select(cast(func.pg_sleep(0.5), String).label("slept")), {}))
    await asyncio.sleep(0.01)
    waiting = asyncio.create_task(number(database))
    await asyncio.sleep(0.01)

    values = {
        reading.labels["pool"]: reading.value for reading in pool_readings(database) if reading.name.endswith("waiting")
    }
    assert values == {"read": 1, "write": 0}
    with pytest.raises(PoolTimeoutError):
        await waiting
    await sleeping
    assert await number(database) == 1
    await database.dispose()


async def test_readers_succeed_after_the_end_of_every_connection(clone_url: str) -> None:
    watcher = await asyncpg.connect(clone_url.replace("+asyncpg", ""))
    database = Database(make_settings(clone_url, database={"pool_size": 4}).database)
    for _ in range(5):
        # With retries, as in an operation: the driver may not have noticed the end of a connection yet.
        assert await asyncio.gather(*(with_retries(lambda: number(database)) for _ in range(20))) == [1] * 20
        await watcher.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    await watcher.close()
    await database.dispose()


async def test_statements_are_counted(database: Database) -> None:
    statements = count_statements()

    await number(database)

    assert statements.count == 1
    assert statements.seconds > 0


async def test_sessions_read_behind_a_pooler_and_while_statements_are_traced(database: Database) -> None:
    behind = Database(make_settings("postgresql://a:b@127.0.0.1:1/d", database={"transaction_pooler": True}).database)
    Tracing(TracerProvider(), lambda: None).trace_statements(database)

    assert type(behind.reads) is SessionReads
    assert type(database.reads) is SessionReads
    assert await number(database) == 1
