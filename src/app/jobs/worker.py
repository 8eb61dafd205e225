"""Runs procrastinate's worker, and starts it again when it fails or the database was unavailable.

Delivery is at least once. When a worker dies, its jobs stay in the status `doing`. Another worker notices the missing heartbeat
and puts them back into the queue.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial

import procrastinate
from opentelemetry.trace import Tracer
from procrastinate.worker import Worker
from sqlalchemy import text

from app.core.observability.tracing import UNTRACED
from app.jobs import housekeeping, service
from app.jobs.library import REPORTS_PER_STALL, is_outage, make_app, make_worker
from app.jobs.queue import AnyJob, Periodic, Work, name_of
from app.jobs.runner import JobRunner
from app.jobs.settings import JobsSettings

_PAUSE = 1.0
_PURGE_EVERY = 3600.0
# Each orphan takes two statements, and all of them are one transaction.
_ORPHAN_BATCH = 100

log = logging.getLogger(__name__)


class JobWorker:
    """Runs the jobs of a list until it is stopped."""

    def __init__(
        self, work: Work, jobs: Iterable[AnyJob], periodic: Iterable[Periodic] = (), *, tracer: Tracer = UNTRACED
    ) -> None:
        self._database = work.database
        self._settings = work.settings
        self._periodic = tuple(periodic)
        self._runner = JobRunner(work, [*jobs, *(each.job for each in self._periodic)], tracer=tracer)
        self._stopping = asyncio.Event()
        self._worker: Worker | None = None

    def stop(self) -> None:
        """Take no new jobs. Running jobs have `jobs.shutdown_grace` to finish."""
        self._stopping.set()
        if self._worker:
            self._worker.stop()  # type: ignore[no-untyped-call]  # It declares no return type.

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.run(), name="jobs")
        try:
            yield
        finally:
            self.stop()
            await task

    async def run(self) -> None:
        """Run until stopped. If procrastinate's worker ends for any other reason, start a new one."""
        housekeeper = asyncio.create_task(self._run_housekeeping(), name="housekeeping")
        try:
            while not self._stopping.is_set():
                await self._run_once()
        finally:
            housekeeper.cancel()
            with suppress(asyncio.CancelledError):
                await housekeeper
            log.info("worker stopped")

    async def _run_once(self) -> None:
        try:
            if await self._wait_for_database():
                app = make_app(
                    self._settings.database,
                    self._runner.run,
                    jobs=self._runner.names,
                    crons=[(each.cron, name_of(each.job)) for each in self._periodic],
                    policy_of=self._runner.policy_of,
                )
                async with app.open_async():
                    await self._work(app)
        except Exception as error:
            if not is_outage(error):
                log.exception("worker failed and will be restarted")
        await self._pause()

    async def _work(self, app: procrastinate.App) -> None:
        # Await nothing between this check and the start: procrastinate's worker ignores a stop that comes before its start.
        if not self._stopping.is_set():
            self._worker = make_worker(app, self._settings.of(JobsSettings))
            log.info("worker started", extra={"jobs": len(self._runner.names)})
            await self._worker.run()  # type: ignore[no-untyped-call]  # It declares no return type.

    async def _wait_for_database(self) -> bool:
        """Wait until the database responds; log once that it does not. Return False if the worker is stopped."""
        is_unavailable = False
        while not self._stopping.is_set():
            try:
                async with self._database.read_sessions() as session:
                    await session.execute(text("SELECT 1"))
            except Exception as error:  # noqa: BLE001  # After any error, the worker can only wait.
                if not is_unavailable:
                    log.warning("database is unavailable; jobs wait", extra={"error": str(error.__cause__ or error)})
                is_unavailable = True
                await self._pause()
            else:
                return True
        return False

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), _PAUSE)

    async def _run_housekeeping(self) -> None:
        interval = self._settings.of(JobsSettings).stalled_after.total_seconds() / REPORTS_PER_STALL
        # Concurrently: a long purge must not delay the release of a dead worker's jobs.
        await asyncio.gather(
            housekeeping.repeat(self._release_orphans, every=interval, first_retry=interval),
            housekeeping.repeat(self._purge, every=_PURGE_EVERY, first_retry=interval),
        )

    async def _release_orphans(self) -> None:
        async with housekeeping.watched("dead_workers"):
            released = await self._database.unit(
                partial(
                    service.release_orphans,
                    policy=self._runner.policy_of,
                    stalled_after=self._settings.of(JobsSettings).stalled_after,
                    batch=_ORPHAN_BATCH,
                )
            )
        for job_id, name in released:
            log.warning("job released from a dead worker", extra={"job": name, "job_id": job_id})

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
