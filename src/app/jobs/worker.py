"""Keeps the queue's worker going through whatever happens to the database.

Delivery is at least once. A worker that dies leaves its jobs in hand; another notices its silence and puts them back.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial

import procrastinate
from opentelemetry.trace import Tracer
from sqlalchemy import text

from app.core.observability.tracing import UNTRACED
from app.jobs import housekeeping, service
from app.jobs.library import REPORTS_PER_STALL, QueueWorker, is_outage, make_library, make_worker
from app.jobs.queue import AnyJob, Periodic, Work, name_of
from app.jobs.runner import JobRunner
from app.jobs.settings import JobsSettings

_PAUSE = 1.0
_PURGE_EVERY = 3600.0
# Each takes two statements, all in one transaction.
_ORPHANS_AT_ONCE = 100

log = logging.getLogger(__name__)


class JobWorker:
    """Runs the jobs of a list until it is told to stop."""

    def __init__(
        self, work: Work, jobs: Iterable[AnyJob], periodic: Iterable[Periodic] = (), *, tracer: Tracer = UNTRACED
    ) -> None:
        self._database = work.database
        self._settings = work.settings
        self._periodic = tuple(periodic)
        self._runner = JobRunner(work, [*jobs, *(each.job for each in self._periodic)], tracer=tracer)
        self._stopping = asyncio.Event()
        self._worker: QueueWorker | None = None

    def stop(self) -> None:
        """Ask it to finish: no new jobs, and those running get `jobs.shutdown_grace`."""
        self._stopping.set()
        if self._worker:
            self._worker.stop()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run beside something else."""
        task = asyncio.create_task(self.run(), name="jobs")
        try:
            yield
        finally:
            self.stop()
            await task

    async def run(self) -> None:
        """Run until stopped; whatever ends the library's worker, a new one follows."""
        keeping_house = asyncio.create_task(self._keep_house(), name="housekeeping")
        try:
            while not self._stopping.is_set():
                await self._run_once()
        finally:
            keeping_house.cancel()
            with suppress(asyncio.CancelledError):
                await keeping_house
            log.info("worker stopped")

    async def _run_once(self) -> None:
        try:
            if await self._has_reached_database():
                async with self._library().open_async() as library:
                    await self._work(library)
        except Exception as error:
            if not is_outage(error):
                log.exception("the worker failed and is started again")
        await self._pause()

    async def _work(self, library: procrastinate.App) -> None:
        # Nothing may be awaited between the question and the start: the library's worker forgets a stop that came before.
        if not self._stopping.is_set():
            self._worker = make_worker(library, self._settings.of(JobsSettings))
            log.info("worker started", extra={"jobs": self._runner.names})
            await self._worker.run()  # type: ignore[no-untyped-call]  # It declares no return type.

    def _library(self) -> procrastinate.App:
        return make_library(
            self._settings.database,
            self._runner.run,
            jobs=self._runner.names,
            crons=[(each.cron, name_of(each.job)) for each in self._periodic],
            policy_of=self._runner.policy_of,
        )

    async def _has_reached_database(self) -> bool:
        """Wait until the database answers, or the worker is told to stop; say once that it does not."""
        is_away = False
        while not self._stopping.is_set():
            try:
                async with self._database.read_sessions() as session:
                    await session.execute(text("SELECT 1"))
            except Exception as error:  # noqa: BLE001  # Whatever it is, without an answer there is nothing to do but wait.
                if not is_away:
                    log.warning(
                        "the database is away; jobs wait for it", extra={"error": str(error.__cause__ or error)}
                    )
                is_away = True
                await self._pause()
            else:
                return True
        return False

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), _PAUSE)

    async def _keep_house(self) -> None:
        beat = self._settings.of(JobsSettings).stalled_after.total_seconds() / REPORTS_PER_STALL
        # Side by side: a long purge does not keep the jobs of a dead worker waiting.
        await asyncio.gather(
            housekeeping.repeat(self._release_orphans, every=beat, first_retry=beat),
            housekeeping.repeat(self._purge, every=_PURGE_EVERY, first_retry=beat),
        )

    async def _release_orphans(self) -> None:
        async with housekeeping.watched("dead_workers"):
            released = await self._database.unit(
                partial(
                    service.release_orphans,
                    policy=self._runner.policy_of,
                    stalled_after=self._settings.of(JobsSettings).stalled_after,
                    batch=_ORPHANS_AT_ONCE,
                )
            )
        for job_id, name in released:
            log.warning("the worker that ran this job died", extra={"job": name, "job_id": job_id})

    async def _purge(self) -> None:
        keep_finished, keep_failed = (
            self._settings.of(JobsSettings).keep_finished,
            self._settings.of(JobsSettings).keep_failed,
        )
        step = partial(service.purge, keep_finished=keep_finished, keep_failed=keep_failed, batch=housekeeping.BATCH)
        position: int | None = None
        while True:
            position = await housekeeping.purge(self._database, "finished_jobs", step, start=position)
            if position is None:
                return
