"""Runs one job: converts its arguments, limits its time, and logs once how it ended."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from time import perf_counter
from typing import Any

import structlog
from opentelemetry.trace import Tracer
from procrastinate.job_context import JobContext
from procrastinate.jobs import Job as StoredJob

from app.core.db.failures import is_transient
from app.core.db.timeouts import statement_timeout
from app.core.errors import PermanentError, TemporaryError
from app.core.observability.metrics import Counter, Histogram
from app.core.observability.tracing import UNTRACED, continued
from app.jobs import service
from app.jobs.library import delay
from app.jobs.queue import AnyJob, Policy, Work, from_json, names_of, parameters, policy_of

# A job that a newer release enqueued waits 15 minutes for a worker of that release.
_UNKNOWN = Policy(max_attempts=6, first_delay=timedelta(seconds=30))

_RUNS = Counter("job_runs", "Runs of jobs, by outcome.", task=(), outcome=())
_DURATION = Histogram(
    "job_duration_seconds", "How long jobs ran.", "task", buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)
)

log = logging.getLogger(__name__)


class UnknownJobError(TemporaryError):
    """The job is not in this worker's list: a newer release enqueued it, or the list lacks it."""


class JobTimeoutError(TemporaryError):
    """The job ran longer than the timeout of its policy."""


class JobRunner:
    def __init__(self, work: Work, jobs: Iterable[AnyJob], *, tracer: Tracer = UNTRACED) -> None:
        self._work = work
        self._tracer = tracer
        self._jobs: dict[str, AnyJob] = {}
        for job in jobs:
            for name in names_of(job):
                if self._jobs.setdefault(name, job) is not job:
                    message = f"two jobs have the name {name}; rename one, or correct its former names"
                    raise ValueError(message)
            # A function that cannot be a job raises here, at startup, instead of at its first run.
            parameters(job)
        self.names = sorted(self._jobs)

    def policy_of(self, name: str) -> Policy:
        job = self._jobs.get(name)
        return policy_of(job) if job else _UNKNOWN

    async def run(
        self,
        context: JobContext,
        arguments: Mapping[str, object] | None = None,
        request_id: str | None = None,
        key: str | None = None,
        trace: str | None = None,
        timestamp: int | None = None,
    ) -> None:
        """Run a stored job. The queue decides by the exception whether it is retried."""
        stored = context.job
        # A periodic job has no stored key; its scheduled time identifies the run.
        work = replace(self._work, request_id=request_id, key=key or f"{stored.id}-{timestamp}", job_id=stored.id)
        with continued(self._tracer, f"job {self._known_name(stored)}", trace, attempt=stored.attempts + 1) as trace_id:
            await self._run(stored, work, arguments or {}, trace_id)

    async def _run(self, stored: StoredJob, work: Work, arguments: Mapping[str, object], trace_id: str | None) -> None:
        started = perf_counter()
        facts = {"job": stored.task_name, "job_id": stored.id, "attempt": stored.attempts + 1}
        structlog.contextvars.clear_contextvars()
        ids = {"request_id": work.request_id, "trace_id": trace_id}
        structlog.contextvars.bind_contextvars(**facts, **{name: value for name, value in ids.items() if value})
        try:
            await self._call(stored.task_name, work, arguments)
        except Exception as error:
            await self._report(stored, error)
            raise
        duration = perf_counter() - started
        _RUNS.count(stored.task_name, "done")
        _DURATION.observe(duration, stored.task_name)
        log.info("job done", extra={"duration_ms": round(duration * 1000, 2)})

    async def _call(self, name: str, work: Work, arguments: Mapping[str, object]) -> None:
        job = self._jobs.get(name)
        if job is None:
            message = f"{name} is not in this worker's list of jobs"
            raise UnknownJobError(message)
        policy = policy_of(job)
        limit = policy.timeout.total_seconds()
        timeout = asyncio.timeout(limit)
        try:
            with statement_timeout(policy.statement_timeout):
                async with timeout:
                    await job(work, **from_json(job, arguments))
        except TimeoutError:
            if not timeout.expired():
                raise
            message = f"the job exceeded its timeout of {limit:g} s"
            raise JobTimeoutError(message) from None

    def _known_name(self, stored: StoredJob) -> str:
        # An unknown name can be any text, which must not become a label of a metric.
        return stored.task_name if stored.task_name in self._jobs else "(unknown)"

    async def _report(self, stored: StoredJob, error: Exception) -> None:
        is_last = delay(self.policy_of, stored, error) is None
        level = logging.ERROR if is_last or isinstance(error, UnknownJobError) else logging.WARNING
        _RUNS.count(self._known_name(stored), "failed" if is_last else "retried")
        event = "job failed permanently; see `app jobs failed`" if is_last else "job failed and will be retried"
        log.log(level, event, **_details(error))
        # The log line already has the error. While the database is unavailable, it cannot be stored.
        with suppress(Exception):
            async with self._work.database.begin() as session:
                await service.record_error(session, stored.id or 0, error)


def _details(error: Exception) -> dict[str, Any]:
    # If another server is unavailable or does not respond, a traceback adds nothing.
    if isinstance(error, TemporaryError | PermanentError | TimeoutError | ConnectionError) or is_transient(error):
        return {"extra": {"error": f"{type(error).__name__}: {error}"}}
    return {"exc_info": error}
