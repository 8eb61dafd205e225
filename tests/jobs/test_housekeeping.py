"""Housekeeping: repeated failures are reported, and each run has a time budget."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import count

import pytest
from sqlalchemy import text

from app.auth import jobs as auth_jobs
from app.core.db.database import Database, WriteSession
from app.core.observability.metrics import own_families
from app.jobs import housekeeping
from app.jobs.housekeeping import HousekeepingError, purge, repeat, watched
from app.jobs.worker import JobWorker
from app.worker import JOBS, PERIODIC
from tests.conftest import ROOT, cloned, make_settings
from tests.core.scrape import counted_so_far
from tests.jobs.conftest import MakeWorker, Records, eventually, make_work

OLD_WINDOWS = "INSERT INTO rate_limits SELECT n::text, 1, now() - interval '1 day' FROM generate_series(1, 3) AS n"
_METRIC = "housekeeping_runs_total"
_names = (f"a test's {number}" for number in count(1))


@pytest.fixture
def task() -> str:
    """A task name that no other test uses: the failure counts belong to the process."""
    return next(_names)


@pytest.fixture
async def impatient(template_url: str) -> AsyncIterator[Database]:
    """A database of the test's own, with a short lock timeout."""
    async with cloned(template_url) as url:
        database = Database(make_settings(url, database={"lock_timeout": "50ms"}).database)
        yield database
        await database.dispose()


@pytest.fixture(autouse=True)
def _reset_failure_counts() -> Iterator[None]:
    housekeeping._failures_in_a_row.clear()
    yield
    housekeeping._failures_in_a_row.clear()


def runs(task: str, outcome: str) -> float:
    return counted_so_far(_METRIC, task=task, outcome=outcome)


async def test_a_purge_that_fails_repeatedly_is_logged_as_an_error_and_the_others_still_run(
    impatient: Database, logged: Records
) -> None:
    settings = make_settings(impatient.engine.url.render_as_string(hide_password=False))
    work = make_work(settings, impatient)
    before = {name: (runs(name, "failed"), runs(name, "done")) for name in ("rate_limits", "account_links")}
    async with impatient.begin() as holder:
        await holder.execute(text("LOCK TABLE rate_limits IN ACCESS EXCLUSIVE MODE"))
        for _ in range(4):
            with pytest.raises(HousekeepingError, match="housekeeping failed: rate_limits"):
                await auth_jobs.purge(work)
        await holder.execute(text(OLD_WINDOWS))
    await auth_jobs.purge(work)

    lines = [(one.levelno, vars(one)) for one in logged.about("housekeeping failed")]
    assert [(level, line["failures_in_a_row"]) for level, line in lines] == [
        (logging.WARNING, 1),
        (logging.ERROR, 2),
        (logging.ERROR, 4),
    ]
    assert {line["task"] for _, line in lines} == {"rate_limits"}
    assert {line["reason"] for _, line in lines} == {"canceling statement due to lock timeout"}
    assert runs("rate_limits", "failed") - before["rate_limits"][0] == 4
    assert runs("rate_limits", "done") - before["rate_limits"][1] == 1
    assert runs("account_links", "done") - before["account_links"][1] == 5
    async with impatient.read_sessions() as session:
        assert await session.scalar(text("SELECT count(*) FROM rate_limits")) == 0


async def test_a_success_resets_the_failure_count(task: str, logged: Records) -> None:
    for fails in (True, True, False, True):
        with suppress(ValueError):
            async with watched(task):
                int("no number" if fails else "1")

    # A failure that is not transient is an error from the first time, with its traceback.
    lines = logged.about("housekeeping failed")
    assert [(one.levelno, vars(one)["failures_in_a_row"]) for one in lines] == [
        (logging.ERROR, 1),
        (logging.ERROR, 2),
        (logging.ERROR, 1),
    ]
    assert all(one.exc_info for one in lines)


async def test_a_run_ends_with_its_budget_and_the_next_run_continues(database: Database, task: str) -> None:
    async def step(_session: WriteSession, position: int | None) -> int | None:
        return (position or 0) + 1 if position != 2 else None

    nothing = timedelta(0)
    first = await purge(database, task, step, budget=nothing)
    second = await purge(database, task, step, start=first, budget=nothing)
    third = await purge(database, task, step, start=second, budget=nothing)
    at_once = await purge(database, task, step)

    assert [first, second, third, at_once] == [1, 2, None, None]


async def test_the_pause_after_each_failure_doubles_up_to_the_interval(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    outcomes = iter([True, True, True, True, False, True])

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def run() -> None:
        fails = next(outcomes, None)
        if fails is None:
            raise asyncio.CancelledError
        async with watched(task):
            int("no number" if fails else "1")

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await repeat(run, every=30, first_retry=10)

    assert pauses == [10, 20, 30, 30, 30, 10]


async def test_a_failing_purge_of_jobs_does_not_stop_the_release_of_orphans(
    clone: Database, make_worker: MakeWorker, logged: Records
) -> None:
    before = runs("finished_jobs", "failed"), runs("dead_workers", "done")
    async with clone.begin() as session:
        await session.execute(text("ALTER TABLE procrastinate_events RENAME TO away"))
    worker: JobWorker = make_worker(stalled_after="100ms")
    housekeeper = asyncio.create_task(worker._run_housekeeping())
    await eventually(lambda: asyncio.sleep(0, bool(logged.about("housekeeping failed"))))
    await eventually(lambda: asyncio.sleep(0, runs("dead_workers", "done") > before[1] + 1))
    async with clone.begin() as session:
        await session.execute(text("ALTER TABLE away RENAME TO procrastinate_events"))
    housekeeper.cancel()

    assert runs("finished_jobs", "failed") > before[0]


async def test_the_operations_page_lists_every_housekeeping_task(impatient: Database) -> None:
    url = impatient.engine.url.render_as_string(hide_password=False)
    work = make_work(make_settings(url), impatient)
    worker = JobWorker(work, JOBS, PERIODIC)
    for periodic in PERIODIC:
        await periodic.job(work)
    await worker._release_orphans()
    await worker._purge()

    page = (ROOT / "docs" / "operations" / "housekeeping.md").read_text()
    listed = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    ran = {sample.labels["task"] for family in own_families() for sample in family.samples if sample.name == _METRIC}
    ran = {re.sub("^reseal_.*", "reseal_<table>.<column>", name) for name in ran if not name.startswith("a test's")}
    # A clone without sealed columns reseals nothing.
    assert ran | {"reseal_<table>.<column>"} == listed
