"""Counting what a piece of work asks of the database."""

import asyncio
from contextvars import Context

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.core.database import Database, DatabaseUnavailableError
from app.core.statements import count_statements
from tests.conftest import make_settings

PAUSE = text("SELECT pg_sleep(0.05)")


async def test_statements_are_counted_and_timed_whichever_session_runs_them(worker_database: Database) -> None:
    statements = count_statements()

    async with worker_database.read_sessions() as reader, worker_database.sessions() as writer:
        await reader.execute(PAUSE)
        await writer.execute(PAUSE)
        await writer.commit()

    assert statements.count == 2
    assert 0.1 <= statements.seconds < 5


async def test_a_statement_that_fails_has_been_executed_all_the_same(worker_database: Database) -> None:
    statements = count_statements()

    async with worker_database.read_sessions() as session:
        with pytest.raises(DBAPIError):
            await session.execute(text("SELECT 1 / length(pg_sleep(0.05)::text)"))

    assert statements.count == 1
    assert statements.seconds >= 0.05


async def test_what_never_reached_the_database_is_no_statement() -> None:
    statements = count_statements()
    database = Database(make_settings("postgresql://a:b@127.0.0.1:1/d").database)

    async with database.read_sessions() as session:
        with pytest.raises(DatabaseUnavailableError):
            await session.execute(PAUSE)
    await database.dispose()

    assert statements.count == 0


async def test_tasks_count_for_whoever_started_them_and_not_for_each_other(worker_database: Database) -> None:
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


async def test_where_nobody_counts_nothing_is_counted(worker_database: Database) -> None:
    async def work() -> None:
        async with worker_database.read_sessions() as session:
            assert await session.scalar(text("SELECT 1")) == 1

    # A context of its own, in which nobody has begun to count.
    await asyncio.create_task(work(), context=Context())
