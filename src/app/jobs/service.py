"""The queue as its keepers see it: what failed, what is to run again, what a dead worker left, what is old."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, override

from sqlalchemy import text

from app.core.db.database import ReadSession, WriteSession
from app.core.errors import NotFoundError, TemporaryError
from app.core.observability.logs import redact
from app.core.observability.metrics import Reading
from app.jobs.queue import Policy

_MAX_ERROR = 500

_FAILED = text("""
    SELECT job.id, job.task_name AS name, job.attempts, error.error,
           (SELECT max(event.at) FROM procrastinate_events event WHERE event.job_id = job.id) AS failed_at
    FROM procrastinate_jobs job LEFT JOIN job_errors error ON error.job_id = job.id
    WHERE job.status = 'failed' ORDER BY job.id
""")
# A job that waits for its time, such as that of a retry, is not late. One index serves each status: the jobs that have
# finished, millions perhaps, are not read.
_LENGTHS = text("""
    SELECT count(*) FILTER (WHERE due <= now()) AS waiting,
           count(*) FILTER (WHERE due > now()) AS scheduled,
           (SELECT count(*) FROM procrastinate_jobs WHERE status = 'doing') AS running,
           (SELECT count(*) FROM procrastinate_jobs WHERE status = 'failed') AS failed,
           coalesce(extract(epoch FROM now() - min(due) FILTER (WHERE due <= now())), 0) AS lateness
    FROM (
        SELECT coalesce(scheduled_at, (SELECT max(at) FROM procrastinate_events WHERE job_id = job.id), now()) AS due
        FROM procrastinate_jobs job WHERE status = 'todo'
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
# Oldest first: a worker that another process prunes at this moment is skipped.
_STALLED = text("""
    SELECT id FROM procrastinate_workers WHERE last_heartbeat < now() - CAST(:silence AS interval)
    ORDER BY last_heartbeat LIMIT :batch FOR UPDATE SKIP LOCKED
""")
# Jobs that ended before a trigger began to forget their worker. Deleting a worker would update all of its jobs at once.
_DETACH = text("""
    UPDATE procrastinate_jobs SET worker_id = NULL WHERE id = ANY(ARRAY(
        SELECT id FROM procrastinate_jobs WHERE worker_id = ANY(:workers) AND status <> 'doing'
        LIMIT :batch FOR UPDATE SKIP LOCKED
    ))
""")
_PRUNE = text("DELETE FROM procrastinate_workers WHERE id = ANY(:workers)")
# A job in hand whose worker is not registered: it died, or it could not write how the job had ended.
_ORPHANS = text("""
    SELECT id, task_name AS name, attempts, queueing_lock IS NOT NULL AS is_periodic
    FROM procrastinate_jobs WHERE status = 'doing' AND worker_id IS NULL LIMIT :batch FOR UPDATE SKIP LOCKED
""")
_RELEASE = text("""
    UPDATE procrastinate_jobs SET status = CAST(:status AS procrastinate_job_status), attempts = attempts + 1
    WHERE id = :id
""")
# A job's age is in its events. The jobs are read in the order of their creation, without a lock.
_PORTION = text("""
    SELECT job.id,
           job.status NOT IN ('todo', 'doing') AND event.last < now() - CASE job.status
               WHEN 'failed' THEN CAST(:keep_failed AS interval) ELSE CAST(:keep_finished AS interval) END AS is_old,
           event.first > now() - least(CAST(:keep_failed AS interval), CAST(:keep_finished AS interval)) AS is_young
    FROM (SELECT id, status FROM procrastinate_jobs WHERE id > :after ORDER BY id LIMIT :batch) AS job
    CROSS JOIN LATERAL (
        SELECT min(at) AS first, max(at) AS last FROM procrastinate_events WHERE job_id = job.id
    ) AS event
    ORDER BY job.id
""")
# Once more by status: a failed job may have been put back since it was read.
_PURGE = text("""
    WITH old AS (
        SELECT id FROM procrastinate_jobs WHERE id = ANY(:ids) AND status NOT IN ('todo', 'doing')
        FOR UPDATE SKIP LOCKED
    ), errors AS (
        DELETE FROM job_errors WHERE job_id = ANY(ARRAY(SELECT id FROM old))
    )
    DELETE FROM procrastinate_jobs WHERE id = ANY(ARRAY(SELECT id FROM old))
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
    session: WriteSession, policy: Callable[[str], Policy], *, stalled_after: timedelta, batch: int
) -> list[tuple[int, str]]:
    """Give the jobs of dead workers to others, at most as often as their policy says: a job may be what kills them.

    One call handles `batch` dead workers and `batch` of their jobs at most.
    """
    await _prune_workers(session, stalled_after, batch)
    orphans = (await session.execute(_ORPHANS, {"batch": batch})).all()
    for orphan in orphans:
        error = WorkerDiedError("the worker that ran it died")
        is_over = orphan.is_periodic or policy(orphan.name).delay(orphan.attempts + 1, error) is None
        await session.execute(_RELEASE, {"id": orphan.id, "status": "failed" if is_over else "todo"})
        await record_error(session, orphan.id, error)
    return [(orphan.id, orphan.name) for orphan in orphans]


async def _prune_workers(session: WriteSession, stalled_after: timedelta, batch: int) -> None:
    stalled = (await session.scalars(_STALLED, {"silence": stalled_after, "batch": batch})).all()
    if not stalled:
        return
    detached: Any = await session.execute(_DETACH, {"workers": stalled, "batch": batch})
    # With more jobs to detach, the workers wait for the next call.
    if detached.rowcount < batch:
        await session.execute(_PRUNE, {"workers": stalled})


async def purge(
    session: WriteSession, after: int | None, *, keep_finished: timedelta, keep_failed: timedelta, batch: int
) -> int | None:
    """Look at the next jobs and delete those that ended long ago; return where to go on.

    Jobs are numbered in the order of their creation, so the walk ends at one that is too young to have ended long ago.
    """
    keep = {"keep_finished": keep_finished, "keep_failed": keep_failed}
    portion = (await session.execute(_PORTION, {**keep, "after": after or 0, "batch": batch})).all()
    if old := [job.id for job in portion if job.is_old]:
        await session.execute(_PURGE, {"ids": old})
    return portion[-1].id if len(portion) == batch and not portion[-1].is_young else None
