"""The queue as its keepers see it: what failed, what is to run again, what a dead worker left, what is old."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import override

from sqlalchemy import text

from app.core.database import ReadSession, WriteSession
from app.core.errors import NotFoundError
from app.core.metrics import Reading
from app.core.telemetry import redact
from app.jobs.errors import TemporaryError
from app.jobs.queue import Policy

_MAX_ERROR = 500

_FAILED = text("""
    SELECT job.id, job.task_name AS name, job.attempts, error.error,
           (SELECT max(event.at) FROM procrastinate_events event WHERE event.job_id = job.id) AS failed_at
    FROM procrastinate_jobs job LEFT JOIN job_errors error ON error.job_id = job.id
    WHERE job.status = 'failed' ORDER BY job.id
""")
# What waits for its time, to be tried again say, is not late.
_LENGTHS = text("""
    SELECT count(*) FILTER (WHERE status = 'todo' AND due <= now()) AS waiting,
           count(*) FILTER (WHERE status = 'todo' AND due > now()) AS scheduled,
           count(*) FILTER (WHERE status = 'doing') AS running,
           count(*) FILTER (WHERE status = 'failed') AS failed,
           coalesce(extract(epoch FROM now() - min(due) FILTER (WHERE status = 'todo' AND due <= now())), 0) AS lateness
    FROM (
        SELECT status, coalesce(scheduled_at, (SELECT max(at) FROM procrastinate_events WHERE job_id = job.id), now()) AS due
        FROM procrastinate_jobs job WHERE status IN ('todo', 'doing', 'failed')
    ) AS unfinished
""")
# Without its queueing lock: two runs of one periodic job may be put back together.
_RETRY = text("""
    UPDATE procrastinate_jobs SET status = 'todo', attempts = 0, scheduled_at = NULL, queueing_lock = NULL
    WHERE status = 'failed' AND (CAST(:ids AS bigint[]) IS NULL OR id = ANY(:ids)) RETURNING id
""")
_RECORD_ERROR = text("""
    INSERT INTO job_errors (job_id, error) VALUES (:job_id, :error)
    ON CONFLICT (job_id) DO UPDATE SET error = excluded.error, occurred_at = now()
""")
# A job in hand whose worker is not registered: it died, or it could not write how the job had ended.
_PRUNE = text("SELECT procrastinate_prune_stalled_workers_v1(:seconds)")
_ORPHANS = text("""
    SELECT id, task_name AS name, attempts, queueing_lock IS NOT NULL AS is_periodic
    FROM procrastinate_jobs WHERE status = 'doing' AND worker_id IS NULL FOR UPDATE SKIP LOCKED
""")
_RELEASE = text("""
    UPDATE procrastinate_jobs SET status = CAST(:status AS procrastinate_job_status), attempts = attempts + 1
    WHERE id = :id
""")
_PURGE = text("""
    WITH ended AS (
        SELECT job.id, job.status, (SELECT max(at) FROM procrastinate_events event WHERE event.job_id = job.id) AS at
        FROM procrastinate_jobs job WHERE job.status NOT IN ('todo', 'doing') FOR UPDATE SKIP LOCKED
    ), old AS (
        SELECT id FROM ended
        WHERE at < now() - CASE status WHEN 'failed' THEN CAST(:keep_failed AS interval) ELSE :keep_finished END
        LIMIT :batch
    ), errors AS (
        DELETE FROM job_errors USING old WHERE job_id = old.id
    )
    DELETE FROM procrastinate_jobs job USING old WHERE job.id = old.id RETURNING job.id
""")


class NotFailedError(NotFoundError):
    """Jobs were named that do not wait for this."""

    code = "job_not_failed"

    def __init__(self, ids: Sequence[int]) -> None:
        numbers = ", ".join(str(number) for number in ids)
        self.detail = f"there is no failed job {numbers}; nothing was changed"
        super().__init__()


class WorkerDiedError(TemporaryError):
    """The worker that ran the job is gone, and nobody knows how far it got."""


@dataclass(frozen=True)
class FailedJob:
    """A job that will not be tried again by itself. Its arguments are left out: they may name persons."""

    id: int
    name: str
    attempts: int
    failed_at: datetime
    error: str | None

    @override
    def __str__(self) -> str:
        times = "once" if self.attempts == 1 else f"{self.attempts} times"
        return (
            f"{self.id}  {self.name}  {self.failed_at:%Y-%m-%d %H:%M:%S}Z  tried {times}  {self.error or ''}".rstrip()
        )


async def list_failed(session: ReadSession) -> list[FailedJob]:
    """Give the dead jobs, oldest first."""
    return [FailedJob(**row) for row in (await session.execute(_FAILED)).mappings()]


async def readings(session: ReadSession) -> Iterator[Reading]:
    """Show how long the queue is, and how late."""
    lengths = (await session.execute(_LENGTHS)).one()._asdict()
    lateness = float(lengths.pop("lateness"))
    meanings = {
        "waiting": "Jobs that could be run now.",
        "scheduled": "Jobs whose time has not come, such as those to be tried again.",
        "running": "Jobs that a worker has in hand.",
        "failed": "Jobs that have failed for good; `app jobs failed` lists them.",
    }
    late = Reading("jobs_lateness_seconds", "How long the job that waits longest could have been run.", lateness)
    return iter([late, *(Reading(f"jobs_{name}", meanings[name], number) for name, number in lengths.items())])


async def retry(session: WriteSession, ids: Sequence[int] | None) -> list[int]:
    """Put failed jobs back with all their attempts; None means every one."""
    put_back = sorted((await session.scalars(_RETRY, {"ids": ids})).all())
    if missing := sorted(set(ids or ()) - set(put_back)):
        raise NotFailedError(missing)
    return put_back


async def record_error(session: WriteSession, job_id: int, error: BaseException) -> None:
    """Keep the first line of a job's last error for `app jobs failed`."""
    line = next(iter(str(error).splitlines()), "")
    clean = redact(None, "", {"error": f"{type(error).__name__}: {line}"[:_MAX_ERROR]})
    await session.execute(_RECORD_ERROR, {"job_id": job_id, **clean})


async def release_orphans(
    session: WriteSession, policy: Callable[[str], Policy], *, stalled_after: timedelta
) -> list[tuple[int, str]]:
    """Give the jobs of dead workers to others, at most as often as their policy says: a job may be what kills them."""
    await session.execute(_PRUNE, {"seconds": stalled_after.total_seconds()})
    orphans = (await session.execute(_ORPHANS)).all()
    for orphan in orphans:
        error = WorkerDiedError("the worker that ran it died")
        is_over = orphan.is_periodic or policy(orphan.name).delay(orphan.attempts + 1, error) is None
        await session.execute(_RELEASE, {"id": orphan.id, "status": "failed" if is_over else "todo"})
        await record_error(session, orphan.id, error)
    return [(orphan.id, orphan.name) for orphan in orphans]


async def purge(session: WriteSession, *, keep_finished: timedelta, keep_failed: timedelta, batch: int = 1000) -> int:
    """Delete jobs that ended long ago, a batch at a time; give how many."""
    values = {"keep_finished": keep_finished, "keep_failed": keep_failed, "batch": batch}
    return len((await session.scalars(_PURGE, values)).all())
