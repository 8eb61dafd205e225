"""Counting and timing of statements, and the log of slow ones."""

import asyncio
from collections.abc import AsyncIterator
from contextvars import Context
from datetime import timedelta

import pytest
import structlog
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.core.db.database import Database
from app.core.db.failures import DatabaseUnavailableError
from app.core.db.query_log import count_statements
from tests.conftest import make_settings
from tests.core.recording import Recording

PAUSE = text("SELECT pg_sleep(0.05)")


async def test_statements_of_every_session_are_counted_and_timed(worker_database: Database) -> None:
    statements = count_statements()

    async with worker_database.read_sessions() as reader, worker_database.sessions() as writer:
        await reader.execute(PAUSE)
        await writer.execute(PAUSE)
        await writer.commit()

    assert statements.count == 2
    assert 0.1 <= statements.seconds < 5


async def test_a_failed_statement_is_counted(worker_database: Database) -> None:
    statements = count_statements()

    async with worker_database.read_sessions() as session:
        with pytest.raises(DBAPIError):
            await session.execute(text("SELECT 1 / length(pg_sleep(0.05)::text)"))

    assert statements.count == 1
    assert statements.seconds >= 0.05


async def test_a_failed_connection_attempt_is_not_counted() -> None:
    statements = count_statements()
    database = Database(make_settings("postgresql://a:b@127.0.0.1:1/d").database)

    async with database.read_sessions() as session:
        with pytest.raises(DatabaseUnavailableError):
            await session.execute(PAUSE)
    await database.dispose()

    assert statements.count == 0


async def test_statements_of_tasks_count_for_the_task_that_started_them(worker_database: Database) -> None:
    async def work(times: int) -> int:
        statements = count_statements()
        async with worker_database.read_sessions() as session:
            for _ in range(times):
                await session.execute(text("SELECT 1"))
        return statements.count

    async def part() -> None:
        async with worker_database.read_sessions() as session:
            await session.execute(text("SELECT 1"))

    own = count_statements()
    apart = [*await asyncio.gather(asyncio.create_task(work(1)), asyncio.create_task(work(3)))]
    await asyncio.gather(part(), part())

    assert apart == [1, 3]
    assert own.count == 2


async def test_statements_are_not_counted_unless_requested(worker_database: Database) -> None:
    async def work() -> None:
        async with worker_database.read_sessions() as session:
            assert await session.scalar(text("SELECT 1")) == 1

    # A new context, in which counting has not started.
    await asyncio.create_task(work(), context=Context())


@pytest.fixture
async def impatient(database_url: str) -> AsyncIterator[Database]:
    """A database that logs statements that take longer than 50 ms."""
    database = Database(make_settings(database_url).database, slow_query=timedelta(milliseconds=50))
    yield database
    await database.dispose()


@pytest.mark.parametrize("kind", ["sessions", "read_sessions"])
async def test_a_slow_statement_is_logged_without_its_values(
    impatient: Database, recording: Recording, kind: str
) -> None:
    lines = recording()
    structlog.contextvars.bind_contextvars(request_id="abcd1234")
    statement = text("SELECT CAST(:name AS text),\n    pg_sleep(:pause)").bindparams(name="CANARY", pause=0.06)

    async with getattr(impatient, kind)() as session:
        await session.execute(text("SELECT 1"))
        await session.execute(statement)

    (line,) = lines()
    assert (line["event"], line["level"], line["request_id"]) == ("slow query", "warning", "abcd1234")
    assert line["statement"] == "SELECT CAST($1::VARCHAR AS text), pg_sleep($2::FLOAT)"
    assert line["duration_ms"] > 50


async def test_a_slow_statement_that_fails_is_logged(impatient: Database, recording: Recording) -> None:
    lines = recording()

    async with impatient.read_sessions() as session:
        with pytest.raises(DBAPIError):
            await session.execute(text("SELECT 1 / length(pg_sleep(0.06)::text)"))

    assert [line["statement"] for line in lines()] == ["SELECT 1 / length(pg_sleep(0.06)::text)"]
