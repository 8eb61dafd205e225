"""The worker runs jobs, retries them, gives up on them and puts them back into the queue."""

# ruff: noqa: ARG001  # The signature of a job is fixed, so some parameters are unused.

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

import pytest
import structlog
from sqlalchemy import text

from app.core.db.database import Database
from app.core.errors import PermanentError, TemporaryError
from app.dev.ports import free_port
from app.jobs import housekeeping
from app.jobs.queue import AnyJob, Periodic, Policy, Work, enqueue, formerly, name_of, policy
from app.jobs.worker import JobWorker
from tests.core.scrape import counted_so_far
from tests.jobs.conftest import MakeWorker, Records, eventually, make_work, quick_settings, rows, statuses

AT_ONCE = Policy(max_attempts=3, first_delay=timedelta(milliseconds=1))


async def enqueue_committed(database: Database, job: AnyJob, *arguments: object) -> None:
    async with database.begin() as session:
        await enqueue(session, job, *arguments)


async def until(database: Database, *expected: str) -> None:
    async def is_so() -> bool:
        return await statuses(database) == list(expected)

    await eventually(is_so)


async def test_a_job_receives_its_arguments_and_its_resources(clone: Database, make_worker: MakeWorker) -> None:
    seen: list[object] = []

    async def job(work: Work, user_id: UUID, at: datetime) -> None:
        async with work.database.read_sessions() as session:
            seen.extend([user_id, at, await session.scalar(text("SELECT 1"))])

    arguments = (UUID(int=1), datetime(2026, 11, 23, tzinfo=UTC))
    await enqueue_committed(clone, job, *arguments)

    async with make_worker(job).running():
        await until(clone, "succeeded")

    assert seen == [*arguments, 1]


async def test_a_row_with_a_former_name_of_a_job_runs(clone: Database, make_worker: MakeWorker) -> None:
    seen: list[int] = []

    @formerly("shop.jobs:order", "store.jobs:order")
    async def job(work: Work, number: int) -> None:
        seen.append(number)

    await enqueue_committed(clone, job, 1)
    await enqueue_committed(clone, job, 2)
    async with clone.begin() as session:
        await session.execute(
            text("UPDATE procrastinate_jobs SET task_name = 'shop.jobs:order' WHERE args->'arguments'->>'number' = '1'")
        )

    async with make_worker(job).running():
        await until(clone, "succeeded", "succeeded")

    assert sorted(seen) == [1, 2]


async def test_a_name_of_two_jobs_is_refused_at_the_start(make_worker: MakeWorker) -> None:
    async def job(work: Work) -> None: ...

    @formerly(name_of(job))
    async def other(work: Work) -> None: ...

    with pytest.raises(ValueError, match="two jobs have the name"):
        make_worker(job, other)


@pytest.mark.parametrize(
    ("fails", "outcomes"),
    [((), {"done": 1}), ((TemporaryError,), {"retried": 1, "done": 1}), ((PermanentError,), {"failed": 1})],
)
async def test_runs_are_counted_by_outcome(
    clone: Database, make_worker: MakeWorker, fails: tuple[type[Exception], ...], outcomes: dict[str, int]
) -> None:
    errors = list(fails)

    @policy(AT_ONCE)
    async def job(work: Work) -> None:
        if errors:
            raise errors.pop()("for this test")

    def so_far() -> dict[str, float]:
        runs = {
            one: counted_so_far("job_runs_total", task=name_of(job), outcome=one)
            for one in ("done", "retried", "failed")
        }
        return {outcome: count for outcome, count in runs.items() if count}

    before = so_far()
    await enqueue_committed(clone, job)
    async with make_worker(job).running():
        await until(clone, "failed" if PermanentError in fails else "succeeded")

    assert {
        outcome: count - before.get(outcome, 0) for outcome, count in so_far().items() if count != before.get(outcome)
    } == outcomes


async def test_unknown_jobs_are_counted_under_one_name(clone: Database, make_worker: MakeWorker) -> None:
    async def unknown(work: Work) -> None: ...

    async def known(work: Work) -> None: ...

    await enqueue_committed(clone, unknown)
    before = counted_so_far("job_runs_total", task="(unknown)", outcome="retried")
    async with make_worker(known).running():
        async with asyncio.timeout(20):
            while counted_so_far("job_runs_total", task="(unknown)", outcome="retried") == before:  # noqa: ASYNC110  # A counter has no event to wait for.
                await asyncio.sleep(0.01)

    assert counted_so_far("job_runs_total", task=name_of(unknown)) == 0


async def test_a_job_may_have_its_own_statement_timeout(clone: Database, make_worker: MakeWorker) -> None:
    found: list[str] = []
    show = text("SELECT current_setting('statement_timeout')")

    @policy(Policy(statement_timeout=timedelta(minutes=1)))
    async def job(work: Work) -> None:
        async with work.database.begin() as session, work.database.read_sessions() as reading:
            found.extend([await session.scalar(show), await reading.scalar(show)])

    await enqueue_committed(clone, job)
    async with make_worker(job).running():
        await until(clone, "succeeded")

    assert found == ["1min", "1min"]
    async with clone.begin() as session:
        assert await session.scalar(show) != "1min"


def test_a_job_without_a_statement_timeout_is_refused() -> None:
    with pytest.raises(ValueError, match="statement timeout of a job must be between"):
        Policy(statement_timeout=timedelta(0))


async def test_a_notification_wakes_the_worker_before_the_next_poll(clone: Database, make_worker: MakeWorker) -> None:
    async def job(work: Work) -> None: ...

    async with make_worker(job, poll_interval="1h").running():
        await enqueue_committed(clone, job)
        await until(clone, "succeeded")


async def test_the_log_lines_of_a_job_have_the_request_id(
    clone: Database, make_worker: MakeWorker, logged: Records
) -> None:
    requests = []

    async def job(work: Work) -> None:
        requests.append(work.request_id)
        logging.getLogger("app.example").info("working")

    with structlog.contextvars.bound_contextvars(request_id="r-12345678"):
        await enqueue_committed(clone, job)
    async with make_worker(job).running():
        await until(clone, "succeeded")

    [line] = logged.about("working")
    assert requests == ["r-12345678"]
    assert line.__dict__["context"]["request_id"] == "r-12345678"
    assert line.__dict__["context"]["attempt"] == 1
    assert line.__dict__["context"]["job"].endswith(":test_the_log_lines_of_a_job_have_the_request_id.<locals>.job")


async def test_a_retry_has_the_same_key(clone: Database, make_worker: MakeWorker) -> None:
    keys = []

    @policy(AT_ONCE)
    async def job(work: Work) -> None:
        keys.append(work.key)
        if len(keys) < 3:
            raise TemporaryError

    await enqueue_committed(clone, job)
    async with make_worker(job).running():
        await until(clone, "succeeded")

    [stored] = await rows(clone, "SELECT args->>'key' AS key FROM procrastinate_jobs")
    assert keys == [stored.key] * 3


async def test_a_retry_waits_for_its_delay(clone: Database, make_worker: MakeWorker) -> None:
    runs = []

    @policy(Policy(first_delay=timedelta(minutes=1)))
    async def job(work: Work) -> None:
        runs.append(work)
        raise TemporaryError

    await enqueue_committed(clone, job)
    async with make_worker(job).running():
        await eventually(lambda: has_attempts(clone, 1))

    [row] = await rows(clone, "SELECT status::text, scheduled_at - now() AS wait FROM procrastinate_jobs")
    assert row.status == "todo"
    assert timedelta(seconds=40) < row.wait < timedelta(seconds=72)
    assert len(runs) == 1


async def has_attempts(database: Database, attempts: int) -> bool:
    return [row.attempts for row in await rows(database, "SELECT attempts FROM procrastinate_jobs")] == [attempts]


async def test_a_job_fails_permanently_after_its_last_attempt(clone: Database, make_worker: MakeWorker) -> None:
    runs = []

    @policy(AT_ONCE)
    async def job(work: Work) -> None:
        runs.append(work)
        raise TemporaryError

    await enqueue_committed(clone, job)
    async with make_worker(job).running():
        await until(clone, "failed")

    assert len(runs) == 3


async def test_a_permanent_error_is_logged_and_not_retried(
    clone: Database, make_worker: MakeWorker, logged: Records
) -> None:
    async def job(work: Work) -> None:
        raise PermanentError("nobody lives here")

    await enqueue_committed(clone, job)
    async with make_worker(job).running():
        await until(clone, "failed")

    [line] = logged.about("job failed")
    assert line.levelname == "ERROR"
    assert line.__dict__["error"] == "PermanentError: nobody lives here"


async def test_an_unexpected_error_is_logged_once_with_its_traceback(
    clone: Database, make_worker: MakeWorker, logged: Records
) -> None:
    @policy(Policy(max_attempts=1))
    async def job(work: Work, user_id: UUID) -> None:
        raise ZeroDivisionError

    await enqueue_committed(clone, job, UUID(int=1))
    async with make_worker(job).running():
        await until(clone, "failed")

    [line] = [record for record in logged.records if record.levelno >= logging.WARNING]
    assert line.getMessage() == "job failed permanently; see `app jobs failed`"
    assert line.exc_info
    assert isinstance(line.exc_info[1], ZeroDivisionError)


async def test_log_lines_do_not_contain_the_arguments(
    clone: Database, make_worker: MakeWorker, logged: Records
) -> None:
    @policy(AT_ONCE)
    async def job(work: Work, user_id: UUID) -> None:
        raise ZeroDivisionError

    await enqueue_committed(clone, job, UUID(int=0xABCDEF))
    async with make_worker(job).running():
        await until(clone, "failed")

    assert logged.about("job failed")
    assert not [record for record in logged.records if "abcdef" in repr(record.__dict__)]


async def test_the_stored_error_of_a_job_contains_no_secrets(clone: Database, make_worker: MakeWorker) -> None:
    async def job(work: Work) -> None:
        raise PermanentError("refused: Bearer abcdefgh\nsecond line")

    await enqueue_committed(clone, job)
    async with make_worker(job).running():
        await until(clone, "failed")

    [row] = await rows(clone, "SELECT error FROM job_errors")
    assert row.error == "PermanentError: refused: Bearer [redacted]"


async def test_a_job_is_cancelled_after_the_timeout_of_its_policy(
    clone: Database, make_worker: MakeWorker, logged: Records
) -> None:
    @policy(Policy(max_attempts=1, timeout=timedelta(milliseconds=10)))
    async def job(work: Work) -> None:
        await asyncio.Event().wait()

    await enqueue_committed(clone, job)
    async with make_worker(job).running():
        await until(clone, "failed")

    [line] = logged.about("job failed")
    assert line.__dict__["error"] == "JobTimeoutError: the job exceeded its timeout of 0.01 s"


async def test_a_timeout_error_of_the_job_itself_is_reported_as_such(
    clone: Database, make_worker: MakeWorker, logged: Records
) -> None:
    @policy(Policy(max_attempts=1))
    async def job(work: Work) -> None:
        raise TimeoutError("the other side")

    await enqueue_committed(clone, job)
    async with make_worker(job).running():
        await until(clone, "failed")

    [line] = logged.about("job failed")
    assert line.__dict__["error"] == "TimeoutError: the other side"


async def test_an_unknown_job_is_logged_as_an_error_and_finally_fails(
    clone: Database, make_worker: MakeWorker, logged: Records
) -> None:
    async def forgotten(work: Work) -> None: ...

    await enqueue_committed(clone, forgotten)
    async with make_worker().running():
        await eventually(lambda: has_attempts(clone, 1))
        async with clone.begin() as session:
            await session.execute(text("UPDATE procrastinate_jobs SET attempts = 5, scheduled_at = NULL"))
        await until(clone, "failed")

    first, last = logged.about("job failed")
    assert (first.levelname, last.levelname) == ("ERROR", "ERROR")
    assert "is not in this worker's list of jobs" in first.__dict__["error"]


async def test_jobs_with_the_same_lock_run_one_at_a_time(clone: Database, make_worker: MakeWorker) -> None:
    running, most = 0, 0

    @policy(Policy(lock="alone"))
    async def job(work: Work) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    for _ in range(3):
        await enqueue_committed(clone, job)
    async with make_worker(job).running():
        await until(clone, "succeeded", "succeeded", "succeeded")

    assert most == 1


async def test_jobs_without_a_lock_run_concurrently(clone: Database, make_worker: MakeWorker) -> None:
    everyone = asyncio.Barrier(3)

    async def job(work: Work) -> None:
        await everyone.wait()

    for _ in range(3):
        await enqueue_committed(clone, job)

    async with make_worker(job).running():
        await until(clone, "succeeded", "succeeded", "succeeded")


async def test_a_periodic_job_runs_once_per_tick_across_several_workers(
    clone: Database, make_worker: MakeWorker
) -> None:
    keys = []

    async def job(work: Work) -> None:
        keys.append(work.key)

    every_second = (Periodic("* * * * * */1", job),)
    async with make_worker(periodic=every_second).running(), make_worker(periodic=every_second).running():
        await eventually(lambda: asyncio.sleep(0, len(keys) >= 3))

    ticks = [row.at for row in await rows(clone, "SELECT args->>'timestamp' AS at FROM procrastinate_jobs")]
    assert len(ticks) == len(set(ticks))
    assert len(keys) == len(set(keys))


async def test_a_failed_periodic_job_is_not_retried(clone: Database, make_worker: MakeWorker) -> None:
    async def job(work: Work) -> None:
        raise TemporaryError

    async with make_worker(periodic=(Periodic("* * * * *", job),)).running():
        await until(clone, "failed")


async def test_a_stopped_worker_finishes_its_running_jobs(clone: Database, make_worker: MakeWorker) -> None:
    started, may_end = asyncio.Event(), asyncio.Event()

    async def job(work: Work) -> None:
        started.set()
        await may_end.wait()

    await enqueue_committed(clone, job)
    worker = make_worker(job)
    running = asyncio.create_task(worker.run())
    await started.wait()

    worker.stop()
    await enqueue_committed(clone, job)
    may_end.set()
    await running

    assert await statuses(clone) == ["succeeded", "todo"]
    assert await rows(clone, "SELECT id FROM procrastinate_workers") == []


async def test_a_job_that_exceeds_the_shutdown_grace_is_put_back(clone: Database, make_worker: MakeWorker) -> None:
    started = asyncio.Event()

    async def job(work: Work) -> None:
        started.set()
        await asyncio.Event().wait()

    await enqueue_committed(clone, job)

    async with make_worker(job, shutdown_grace="10ms").running():
        await started.wait()

    [row] = await rows(clone, "SELECT status::text, scheduled_at <= now() AS is_due FROM procrastinate_jobs")
    assert (row.status, row.is_due) == ("todo", True)


async def test_another_worker_runs_the_job_of_a_dead_worker(
    clone: Database, make_worker: MakeWorker, logged: Records
) -> None:
    async def job(work: Work) -> None: ...

    await enqueue_committed(clone, job)
    await leave_in_hand(clone)

    async with make_worker(job).running():
        await until(clone, "succeeded")

    assert len(logged.about("job released from a dead worker")) == 1
    assert await has_attempts(clone, 2)


async def leave_in_hand(database: Database, **values: object) -> None:
    """Leave the queue as a killed worker leaves it: its jobs are in the status `doing`."""
    async with database.begin() as session:
        await session.execute(
            text("""
                WITH dead AS (INSERT INTO procrastinate_workers (last_heartbeat) VALUES (now() - interval '1h') RETURNING id)
                UPDATE procrastinate_jobs SET status = 'doing', attempts = :attempts, queueing_lock = :queueing_lock,
                       worker_id = (SELECT id FROM dead)
            """),
            {"attempts": 0, "queueing_lock": None, **values},
        )


async def test_a_job_that_kills_its_workers_fails_after_its_last_attempt(
    clone: Database, make_worker: MakeWorker
) -> None:
    @policy(AT_ONCE)
    async def job(work: Work) -> None: ...

    await enqueue_committed(clone, job)
    await leave_in_hand(clone, attempts=2)

    async with make_worker(job).running():
        await until(clone, "failed")

    [row] = await rows(clone, "SELECT error FROM job_errors")
    assert row.error == "WorkerDiedError: the worker died before the job ended"


async def test_a_periodic_job_of_a_dead_worker_is_not_retried(clone: Database, make_worker: MakeWorker) -> None:
    async def job(work: Work) -> None: ...

    await enqueue_committed(clone, job)
    await leave_in_hand(clone, queueing_lock="periodic")

    async with make_worker(job).running():
        await until(clone, "failed")


async def test_the_job_of_a_live_worker_is_not_released(clone: Database, make_worker: MakeWorker) -> None:
    runs, started, may_end = [], asyncio.Event(), asyncio.Event()

    async def job(work: Work) -> None:
        runs.append(work)
        started.set()
        await may_end.wait()

    await enqueue_committed(clone, job)
    async with make_worker(job).running(), make_worker(job).running():
        await started.wait()
        # Longer than the time without a heartbeat after which a worker counts as dead.
        await asyncio.sleep(2.3)
        may_end.set()
        await until(clone, "succeeded")

    assert len(runs) == 1


async def test_a_job_whose_outcome_could_not_be_stored_runs_again(
    clone: Database, make_worker: MakeWorker, logged: Records
) -> None:
    runs = []

    async def job(work: Work) -> None:
        runs.append(work)
        if len(runs) == 1:
            async with work.database.begin() as session:
                await session.execute(text("ALTER FUNCTION procrastinate_finish_job_v1 RENAME TO away"))
        else:
            async with work.database.begin() as session:
                await session.execute(text("ALTER FUNCTION away RENAME TO procrastinate_finish_job_v1"))

    await enqueue_committed(clone, job)
    async with make_worker(job).running():
        await until(clone, "succeeded")

    assert len(runs) == 2
    assert len(logged.about("outcome of a job could not be stored")) == 1


async def test_finished_jobs_are_deleted_earlier_than_failed_jobs(clone: Database, make_worker: MakeWorker) -> None:
    async def job(work: Work) -> None: ...

    for _ in range(4):
        await enqueue_committed(clone, job)
    async with clone.begin() as session:
        ended = text("UPDATE procrastinate_jobs SET status = CAST(:status AS procrastinate_job_status) WHERE id = :id")
        for number, status in enumerate(("succeeded", "succeeded", "failed", "failed"), start=1):
            await session.execute(ended, {"id": number, "status": status})
        aged = text("UPDATE procrastinate_events SET at = now() - CAST(:age AS interval) WHERE job_id = :id")
        for number, age in ((1, timedelta(days=2)), (3, timedelta(days=2)), (4, timedelta(days=91))):
            await session.execute(aged, {"id": number, "age": age})
        await session.execute(text("INSERT INTO job_errors (job_id, error) VALUES (3, 'kept'), (4, 'gone')"))

    async def is_purged() -> bool:
        return [row.id for row in await rows(clone, "SELECT id FROM procrastinate_jobs ORDER BY id")] == [2, 3]

    async with make_worker(job).running():
        await eventually(is_purged)

    assert [row.error for row in await rows(clone, "SELECT error FROM job_errors")] == ["kept"]


async def test_a_purge_continues_where_its_budget_ended(
    clone: Database, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def job(work: Work) -> None: ...

    for _ in range(3):
        await enqueue_committed(clone, job)
    async with clone.begin() as session:
        await session.execute(text("UPDATE procrastinate_jobs SET status = 'succeeded'"))
        await session.execute(text("UPDATE procrastinate_events SET at = now() - interval '2 days'"))
    monkeypatch.setattr(housekeeping, "BATCH", 1)
    monkeypatch.setattr(housekeeping, "purge", partial(housekeeping.purge, budget=timedelta(0)))
    worker: JobWorker = make_worker(job)

    await worker._purge()

    assert await rows(clone, "SELECT id FROM procrastinate_jobs") == []


async def test_a_worker_that_fails_is_restarted(clone: Database, make_worker: MakeWorker, logged: Records) -> None:
    async def job(work: Work) -> None: ...

    async def rename(old: str, new: str) -> None:
        async with clone.begin() as session:
            await session.execute(text(f"ALTER FUNCTION {old} RENAME TO {new}"))

    await enqueue_committed(clone, job)
    await rename("procrastinate_register_worker_v1", "away")
    async with make_worker(job).running():
        await eventually(lambda: asyncio.sleep(0, bool(logged.about("worker failed and will be restarted"))))
        await rename("away", "procrastinate_register_worker_v1")
        await until(clone, "succeeded")


async def test_housekeeping_continues_after_an_error(clone: Database, make_worker: MakeWorker, logged: Records) -> None:
    async def job(work: Work) -> None: ...

    async with clone.begin() as session:
        await session.execute(text("ALTER TABLE procrastinate_workers RENAME TO away"))
    await enqueue_committed(clone, job)
    worker: JobWorker = make_worker(job, stalled_after="100ms")
    housekeeper = asyncio.create_task(worker._run_housekeeping())
    await eventually(lambda: asyncio.sleep(0, bool(logged.about("housekeeping failed"))))
    async with clone.begin() as session:
        await session.execute(text("ALTER TABLE away RENAME TO procrastinate_workers"))
    await leave_in_hand(clone)

    await until(clone, "todo")

    housekeeper.cancel()


async def test_an_ended_job_does_not_refer_to_its_worker(clone: Database, make_worker: MakeWorker) -> None:
    named: list[object] = []

    async def job(work: Work) -> None:
        named.extend(await rows(clone, "SELECT worker_id FROM procrastinate_jobs WHERE worker_id IS NOT NULL"))

    await enqueue_committed(clone, job)
    async with make_worker(job).running():
        await until(clone, "succeeded")
        left = await rows(clone, "SELECT 1 FROM procrastinate_jobs WHERE worker_id IS NOT NULL")

    assert len(named) == 1
    assert left == []


async def test_a_worker_that_is_stopped_before_it_starts_runs_no_jobs(clone: Database, make_worker: MakeWorker) -> None:
    async def job(work: Work) -> None: ...

    await enqueue_committed(clone, job)
    worker = make_worker(job)

    worker.stop()
    await worker.run()

    assert await statuses(clone) == ["todo"]


async def test_a_worker_logs_an_unavailable_database_once_and_can_be_stopped(
    logged: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.jobs.worker._PAUSE", 0.01)
    settings = quick_settings(f"postgresql://user:hunter2@127.0.0.1:{free_port()}/app")
    database = Database(settings.database)

    async with asyncio.timeout(20), JobWorker(make_work(settings, database), []).running():
        await eventually(lambda: asyncio.sleep(0, bool(logged.about("database is unavailable"))))
        # Long enough for the worker to try again.
        await asyncio.sleep(0.1)
    await database.dispose()

    assert len(logged.about("database is unavailable")) == 1
    assert not [record for record in logged.records if "hunter2" in repr(record.__dict__)]
