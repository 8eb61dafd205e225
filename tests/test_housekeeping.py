"""Housekeeping on large tables: the rows and the time of each step do not depend on the size of the table."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from app.audit import crud as audit_crud
from app.auth.access import crud as access_crud
from app.auth.sessions import crud as sessions_crud
from app.auth.sessions import revoking_crud
from app.core.db.database import Database, WriteSession
from app.core.security import rate_limits
from app.jobs import service as jobs_service
from app.jobs.housekeeping import BATCH
from app.jobs.queue import Policy
from app.users import links
from tests.volume import filled, plans_of

SMALL, LARGE = 12_000, 3_000_000
IS_FULL = os.environ.get("VOLUME") == "full"
SIZES = [SMALL, pytest.param(LARGE, marks=pytest.mark.skipif(not IS_FULL, reason="takes half an hour: make volume"))]
# A fifth of the default statement timeout of the application.
TIMEOUTS = {"statement_timeout": "1s", "lock_timeout": "200ms"}
# A step reads each row several times: to find, to lock and to delete it. Each job has two events here.
MAXIMUM_READ = 8 * BATCH

# Filling a table without triggers, foreign keys and WAL is faster.
FAST = "SET session_replication_role = replica; " + "".join(
    f"ALTER TABLE {table} SET UNLOGGED; "
    for table in (
        *("procrastinate_events", "procrastinate_periodic_defers", "procrastinate_jobs", "procrastinate_workers"),
        *("socket_tickets", "sessions", "revocations", "account_links", "audit_events"),
    )
)
# PostgreSQL reads a small table completely. This setting makes it use the plan for a large table.
AS_IF_LARGE = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET enable_seqscan = off', current_database()); END $$; "
_UUID = "lpad(to_hex(n), 32, '0')::uuid"
_JOBS = """
    INSERT INTO procrastinate_jobs (queue_name, task_name, status, worker_id)
    SELECT 'default', 'n', '{status}', {worker} FROM generate_series(1, {{rows}});
    INSERT INTO procrastinate_events (job_id, type, at)
    SELECT job, type, now() - interval '{age}' FROM generate_series(1, {{rows}}) AS job,
           unnest('{{{{deferred,{event}}}}}'::procrastinate_job_event_type[]) AS type;
"""
_SESSIONS = f"""
    INSERT INTO sessions (id, user_id, nonce, pepper_id, scope, device_family, idle_expires_at, absolute_expires_at, revoked_at)
    SELECT {_UUID}, {_UUID}, '', 1, '', '', {{ends}}, {{ends}}, {{revoked}} FROM generate_series(1, {{{{rows}}}}) AS n;
"""  # noqa: S608  # Constants of this file.


def jobs(status: str, age: str, *, event: str = "succeeded", worker: str = "NULL") -> str:
    return _JOBS.format(status=status, age=age, event=event, worker=worker)


def sessions(ends: str, revoked: str = "NULL") -> str:
    return _SESSIONS.format(ends=ends, revoked=revoked)


DEAD_WORKER = "INSERT INTO procrastinate_workers (last_heartbeat) VALUES (now() - interval '1 day'); "
DAY, MONTH = timedelta(days=1), timedelta(days=30)

type Step = Callable[[WriteSession, Any], Awaitable[Any]]


async def release_orphans(session: WriteSession, _position: None) -> None:
    await jobs_service.release_orphans(
        session, lambda _: Policy(), stalled_after=timedelta(seconds=40), batch=100
    )  # fmt: skip


purge_jobs = partial(jobs_service.purge, keep_finished=DAY, keep_failed=3 * MONTH, batch=BATCH)
revoke_before = partial(revoking_crud.revoke_before, cutoff=UUID(int=2**128 - 1), batch=BATCH)


async def revoke(session: WriteSession, position: UUID | None) -> UUID | None:
    return (await revoke_before(session, after=position))[1]


@dataclass(frozen=True)
class Case:
    """A housekeeping step, the SQL that fills its table, and the rows that the step removes."""

    task: str
    fill: str
    work: str
    step: Step


CASES = {
    "finished jobs": Case(
        "finished_jobs", jobs("succeeded", "2 days"), "procrastinate_jobs", purge_jobs
    ),
    "failed jobs": Case("finished_jobs", jobs("failed", "91 days", event="failed"), "procrastinate_jobs", purge_jobs),
    "dead workers": Case(
        "dead_workers",
        "INSERT INTO procrastinate_workers (last_heartbeat) SELECT now() - n * interval '1 min' FROM generate_series(1, {rows}) AS n",
        "procrastinate_workers",
        release_orphans,
    ),
    "ended jobs that refer to a dead worker": Case(
        "dead_workers",
        DEAD_WORKER + jobs("succeeded", "1 hour", worker="1"),
        "procrastinate_jobs WHERE worker_id IS NOT NULL",
        release_orphans,
    ),
    "jobs of dead workers": Case(
        "dead_workers", jobs("doing", "1 hour", event="started"), "procrastinate_jobs WHERE status = 'doing'", release_orphans
    ),
    "expired sessions": Case(
        "expired_sessions", sessions("now() - interval '31 days' - n * interval '1 s'"), "sessions",
        partial(sessions_crud.purge_expired_sessions, keep=MONTH, batch=BATCH),
    ),
    "revoked sessions": Case(
        "revoked_sessions", sessions("now()", "now() - interval '31 days' - n * interval '1 s'"), "sessions",
        partial(sessions_crud.purge_revoked_sessions, keep=MONTH, batch=BATCH),
    ),
    "revocations": Case(
        "revocations",
        "INSERT INTO revocations (kind, expires_at) SELECT 1, now() - n * interval '1 s' FROM generate_series(1, {rows}) AS n",
        "revocations",
        partial(access_crud.purge_revocations, batch=BATCH),
    ),
    "tickets": Case(
        "socket_tickets",
        f"INSERT INTO socket_tickets SELECT decode(md5(n::text), 'hex'), {_UUID}, 1, '', now(), now() - n * interval '1 s' "  # noqa: S608  # Constants of this file.
        "FROM generate_series(1, {rows}) AS n",
        "socket_tickets",
        partial(access_crud.purge_tickets, batch=BATCH),
    ),
    "rate limits": Case(
        "rate_limits",
        "INSERT INTO rate_limits SELECT md5(n::text), 1, now() - n * interval '1 s' FROM generate_series(1, {rows}) AS n",
        "rate_limits",
        partial(rate_limits.purge, batch=BATCH),
    ),
    "account links": Case(
        "account_links",
        f"INSERT INTO account_links (id, user_id, purpose, nonce, pepper_id, expires_at) SELECT {_UUID}, {_UUID}, "  # noqa: S608  # Constants of this file.
        "'verify_email', '', 1, now() - n * interval '1 s' FROM generate_series(1, {rows}) AS n",
        "account_links",
        partial(links.purge, batch=BATCH),
    ),
    "audit events": Case(
        "audit_events",
        f"INSERT INTO audit_events (id, event, occurred_at, detail) SELECT {_UUID}, 'n.aged', "  # noqa: S608  # Constants of this file.
        "now() - interval '401 days' - n * interval '1 s', '{{}}' FROM generate_series(1, {rows}) AS n",
        "audit_events",
        partial(audit_crud.purge, age=timedelta(days=400), batch=BATCH),
    ),
    "live sessions before a cut-off": Case(
        "", sessions("now() + interval '1 day'"), "sessions WHERE revoked_at IS NULL", revoke
    ),
}  # fmt: skip


@asynccontextmanager
async def filled_with(template_url: str, fill: str, rows: int) -> AsyncIterator[Database]:
    setup = FAST + (AS_IF_LARGE if rows == SMALL else "")
    async with filled(template_url, setup + fill.format(rows=rows), analyze="ANALYZE", **TIMEOUTS) as database:
        yield database


async def count(database: Database, work: str) -> int:
    async with database.begin() as session:
        # Counting may take longer than the statement timeout.
        await session.execute(text("SET LOCAL statement_timeout = '60s'"))
        return int(await session.scalar(text(f"SELECT count(*) FROM {work}")) or 0)  # noqa: S608  # A constant of this file.


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_the_rows_and_the_time_of_a_step_are_limited(template_url: str, case: Case, rows: int) -> None:
    async with filled_with(template_url, case.fill, rows) as database:
        left, position = await count(database, case.work), None
        for _ in range(2):

            async def step(session: WriteSession, position: Any = position) -> Any:
                return await case.step(session, position)

            plans = await plans_of(database, step)
            position = await database.unit(step)
            now_left = await count(database, case.work)

            assert 0 < left - now_left <= BATCH
            assert [str(plan) for plan in plans if plan.rows_fetched > MAXIMUM_READ] == []
            left = now_left


YOUNG = {
    "finished": jobs("succeeded", "1 hour"),
    "failed": jobs("failed", "80 days", event="failed"),
    "waiting": jobs("todo", "80 days", event="deferred_for_retry"),
}


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("fill", YOUNG.values(), ids=YOUNG)
async def test_young_jobs_are_neither_locked_nor_deleted(template_url: str, fill: str, rows: int) -> None:
    async with filled_with(template_url, fill, rows) as database:
        async with database.sessions() as session:
            position = await purge_jobs(session, None)
            modes = set(await session.scalars(text("SELECT mode FROM pg_locks WHERE pid = pg_backend_pid()")))
            await session.rollback()
        (plan,) = await plans_of(database, lambda session: purge_jobs(session, None))
        left = await count(database, "procrastinate_jobs")

    # All jobs after a young finished job are younger, so the purge ends there. Otherwise it continues.
    assert position == (None if fill == YOUNG["finished"] else BATCH)
    assert modes <= {"AccessShareLock", "ExclusiveLock"}  # Each transaction holds the latter on its own id.
    assert plan.rows_fetched <= MAXIMUM_READ
    assert left == rows


@pytest.mark.parametrize("rows", SIZES)
async def test_the_queue_metrics_do_not_read_finished_jobs(template_url: str, rows: int) -> None:
    async with filled_with(template_url, jobs("succeeded", "1 hour"), rows) as database:
        (plan,) = await plans_of(database, jobs_service.readings)

    assert plan.rows_fetched < BATCH
