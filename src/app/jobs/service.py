"""Administration of the queue: metrics, failed jobs, jobs of dead workers, and the deletion of old jobs."""

import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.resources import files
from typing import Any, override

from sqlalchemy import TextClause, text

from app.core.db.database import ReadSession, WriteSession
from app.core.errors import NotFoundError, TemporaryError, UnavailableError
from app.core.observability.logs import redact
from app.core.observability.metrics import Reading
from app.jobs.queue import Policy

_MAX_ERROR_LENGTH = 500


def _sql(name: str) -> TextClause:
    return text(files("app.jobs").joinpath("sql", f"{name}.sql").read_text())


_LIST_FAILED = _sql("list_failed")
_QUEUE_LENGTHS = _sql("queue_lengths")
# The queueing lock is cleared: two failed runs of one periodic job may be put back at the same time.
_RETRY = text("""
    UPDATE procrastinate_jobs SET status = 'todo', attempts = 0, scheduled_at = NULL, queueing_lock = NULL
    WHERE status = 'failed' AND (CAST(:ids AS bigint[]) IS NULL OR id = ANY(:ids)) RETURNING id
""")
_RECORD_ERROR = text("""
    INSERT INTO job_errors (job_id, error) VALUES (:job_id, :error)
    ON CONFLICT (job_id) DO UPDATE SET error = excluded.error, occurred_at = now()
""")
# A worker that was killed leaves its row behind, so a host can have several.
_SILENCE = text("SELECT now() - max(last_heartbeat) FROM procrastinate_workers WHERE host = :host")
# Oldest first. A worker that another process deletes at this moment is skipped.
_FIND_STALLED = text("""
    SELECT id FROM procrastinate_workers WHERE last_heartbeat < now() - CAST(:silence AS interval)
    ORDER BY last_heartbeat LIMIT :batch FOR UPDATE SKIP LOCKED
""")
_DETACH_ENDED_JOBS = _sql("detach_ended_jobs")
_DELETE_WORKERS = text("DELETE FROM procrastinate_workers WHERE id = ANY(:workers)")
# A running job without a registered worker: the worker died, or it could not store how the job ended.
_FIND_ORPHANS = text("""
    SELECT id, task_name AS name, attempts, queueing_lock IS NOT NULL AS is_periodic
    FROM procrastinate_jobs WHERE status = 'doing' AND worker_id IS NULL LIMIT :batch FOR UPDATE SKIP LOCKED
""")
_RELEASE = text("""
    UPDATE procrastinate_jobs SET status = CAST(:status AS procrastinate_job_status), attempts = attempts + 1
    WHERE id = :id
""")
_NEXT_BATCH = _sql("next_batch")
_DELETE_ENDED_JOBS = _sql("delete_ended_jobs")


class WorkerSilentError(UnavailableError):
    """No worker of this machine reports. The detail says since when."""

    code = "worker_silent"

    def __init__(self, detail: str) -> None:
        self.detail = detail
        super().__init__()


class NotFailedError(NotFoundError):
    """`app jobs retry` named jobs that have not failed."""

    code = "job_not_failed"

    def __init__(self, ids: Sequence[int]) -> None:
        numbers = ", ".join(str(number) for number in ids)
        self.detail = f"There is no failed job {numbers}; nothing was changed."
        super().__init__()


class WorkerDiedError(TemporaryError):
    """The worker that ran the job died. It is unknown how far the job got."""


@dataclass(frozen=True)
class FailedJob:
    """A job that is not retried automatically. Its arguments are not shown, because they may be personal data."""

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


def host() -> str:
    """Return the name of this machine, under which its worker registers. In a container, it is that of the container."""
    return socket.gethostname()


async def check_worker(session: ReadSession, *, stalled_after: timedelta) -> str:
    """Return a sentence about the worker of this machine. `WorkerSilentError` if its last heartbeat is missing or too old."""
    silence: timedelta | None = await session.scalar(_SILENCE, {"host": host()})
    if silence is None:
        raise WorkerSilentError(f"no worker of the host {host()} is registered in the database")
    if silence > stalled_after:
        raise WorkerSilentError(
            f"the worker of the host {host()} last reported {silence.total_seconds():.0f} s ago, and counts as dead after "
            f"{stalled_after.total_seconds():g} s"
        )
    return f"the worker of the host {host()} reported {silence.total_seconds():.0f} s ago"


async def list_failed(session: ReadSession) -> list[FailedJob]:
    return [FailedJob(**row) for row in (await session.execute(_LIST_FAILED)).mappings()]


async def readings(session: ReadSession) -> Iterator[Reading]:
    lengths = (await session.execute(_QUEUE_LENGTHS)).one()._asdict()
    lateness = float(lengths.pop("lateness"))
    meanings = {
        "waiting": "Jobs that are due and wait for a worker.",
        "scheduled": "Jobs that are not due yet, such as retries.",
        "running": "Jobs that a worker is running.",
        "failed": "Jobs that have failed permanently; `app jobs failed` lists them.",
    }
    late = Reading("jobs_lateness_seconds", "Time since the longest waiting job was due.", lateness)
    return iter([late, *(Reading(f"jobs_{name}", meanings[name], number) for name, number in lengths.items())])


async def retry(session: WriteSession, ids: Sequence[int] | None) -> list[int]:
    """Put failed jobs back into the queue with all their attempts; None means all failed jobs."""
    retried = sorted((await session.scalars(_RETRY, {"ids": ids})).all())
    if missing := sorted(set(ids or ()) - set(retried)):
        raise NotFailedError(missing)
    return retried


async def record_error(session: WriteSession, job_id: int, error: BaseException) -> None:
    """Store the first line of a job's last error, for `app jobs failed`."""
    line = next(iter(str(error).splitlines()), "")
    clean = redact(None, "", {"error": f"{type(error).__name__}: {line}"[:_MAX_ERROR_LENGTH]})
    await session.execute(_RECORD_ERROR, {"job_id": job_id, **clean})


async def release_orphans(
    session: WriteSession, policy: Callable[[str], Policy], *, stalled_after: timedelta, batch: int
) -> list[tuple[int, str]]:
    """Put the jobs of dead workers back into the queue. Each counts as a failed attempt, because the job may have killed its worker.

    A job without further attempts becomes a failed job. So does a periodic job, which is never retried. One call handles at most
    `batch` dead workers and `batch` jobs.
    """
    await _delete_stalled_workers(session, stalled_after, batch)
    orphans = (await session.execute(_FIND_ORPHANS, {"batch": batch})).all()
    for orphan in orphans:
        error = WorkerDiedError("the worker died before the job ended")
        is_over = orphan.is_periodic or policy(orphan.name).delay(orphan.attempts + 1, error) is None
        await session.execute(_RELEASE, {"id": orphan.id, "status": "failed" if is_over else "todo"})
        await record_error(session, orphan.id, error)
    return [(orphan.id, orphan.name) for orphan in orphans]


async def _delete_stalled_workers(session: WriteSession, stalled_after: timedelta, batch: int) -> None:
    stalled = (await session.scalars(_FIND_STALLED, {"silence": stalled_after, "batch": batch})).all()
    if not stalled:
        return
    detached: Any = await session.execute(_DETACH_ENDED_JOBS, {"workers": stalled, "batch": batch})
    # If there may be more jobs to detach, the next call deletes the workers.
    if detached.rowcount < batch:
        await session.execute(_DELETE_WORKERS, {"workers": stalled})


async def purge(
    session: WriteSession, after: int | None, *, keep_finished: timedelta, keep_failed: timedelta, batch: int
) -> int | None:
    """Read the next `batch` jobs and delete those that ended long ago. Return the position of the next call, or None.

    Ids follow the order of creation, so the purge ends at the first job that is too young to have ended long ago.
    """
    keep = {"keep_finished": keep_finished, "keep_failed": keep_failed}
    jobs = (await session.execute(_NEXT_BATCH, {**keep, "after": after or 0, "batch": batch})).all()
    if old := [job.id for job in jobs if job.is_old]:
        await session.execute(_DELETE_ENDED_JOBS, {"ids": old})
    return jobs[-1].id if len(jobs) == batch and not jobs[-1].is_young else None
