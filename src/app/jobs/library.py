"""Configures procrastinate: the connection, the jobs and their retries. Only this module knows its interfaces."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, override

import procrastinate
import psycopg
from procrastinate import exceptions
from procrastinate.jobs import Job as StoredJob
from procrastinate.manager import JobManager
from procrastinate.retry import BaseRetryStrategy, RetryDecision
from procrastinate.worker import Worker
from psycopg.conninfo import make_conninfo

from app.core.config import DatabaseSettings
from app.core.db.connections import milliseconds
from app.core.db.failures import is_transient
from app.core.db.tls import for_libpq
from app.jobs import service
from app.jobs.queue import QUEUE, Policy
from app.jobs.settings import JobsSettings

REPORTS_PER_STALL = 4
_NEVER = 86400.0
# The task of every job whose name this program does not know.
_UNKNOWN = "unknown"
_SET_HOST = "UPDATE procrastinate_workers SET host = %(host)s WHERE id = %(worker_id)s"

log = logging.getLogger(__name__)

type PolicyOf = Callable[[str], Policy]
type Run = Callable[..., Awaitable[None]]


def make_app(
    settings: DatabaseSettings, run: Run, *, jobs: Iterable[str], crons: Iterable[tuple[str, str]], policy_of: PolicyOf
) -> procrastinate.App:
    """Register the names of the jobs and their schedules in procrastinate. `run` runs all jobs."""
    app = procrastinate.App(
        connector=procrastinate.PsycopgConnector(
            conninfo=conninfo(settings),
            # Behind a transaction pooler, the next statement may use another connection, which lacks the prepared statements.
            kwargs={"prepare_threshold": None},
            # No connections at startup: opening them would wait 30 s, while the first statement waits only for `timeout`.
            min_size=0,
            max_size=4,
            timeout=(settings.connect_timeout + settings.pool_wait).total_seconds(),
        )
    )
    retry = _Retry(policy_of)
    for name in jobs:
        app.task(name=name, queue=QUEUE, pass_context=True, retry=retry)(run)
    for cron, name in crons:
        app.periodic(cron=cron, lock=name, queueing_lock=name)(app.tasks[name])
    app.task(name=_UNKNOWN, queue=QUEUE, pass_context=True, retry=retry)(run)
    return app


def make_worker(app: procrastinate.App, settings: JobsSettings) -> Worker:
    for name in ("procrastinate.manager", "procrastinate.utils", "procrastinate.worker"):
        logging.getLogger(name).addFilter(_should_log)
    stalled_after = settings.stalled_after.total_seconds()
    worker = Worker(
        app=app,
        name=None,
        concurrency=settings.concurrency,
        fetch_job_polling_interval=settings.poll_interval.total_seconds(),
        # This application never aborts a job from outside, so it does not poll for that.
        abort_job_polling_interval=_NEVER,
        shutdown_graceful_timeout=settings.shutdown_grace.total_seconds(),
        install_signal_handlers=False,
        update_heartbeat_interval=stalled_after / REPORTS_PER_STALL,
        stalled_worker_timeout=stalled_after,
    )
    app.job_manager = _JobManager(app, on_lost_job=worker.stop)
    return worker


class _JobManager(JobManager):
    """Stores the host of the worker, and gives every job a task, so that an unknown job is retried.

    It stops the worker if an outcome cannot be stored.
    """

    def __init__(self, app: procrastinate.App, *, on_lost_job: Callable[[], object]) -> None:
        super().__init__(app.connector)
        self._app = app
        self._on_lost_job = on_lost_job

    @override
    async def register_worker(self) -> int:
        worker_id = await super().register_worker()
        await self.connector.execute_query_async(_SET_HOST, host=service.host(), worker_id=worker_id)
        return worker_id

    @override
    async def fetch_job(self, queues: Iterable[str] | None, worker_id: int) -> StoredJob | None:
        job = await super().fetch_job(queues, worker_id)
        # Without a task, the worker would fail the job permanently. A newer version of this program may know the job.
        if job and job.task_name not in self._app.tasks:
            self._app.add_task_alias(self._app.tasks[_UNKNOWN], job.task_name)
        return job

    @override
    async def finish_job(self, job: StoredJob, *arguments: Any, **options: Any) -> None:
        with self._stopping_if_lost(job):
            await super().finish_job(job, *arguments, **options)

    @override
    async def retry_job(self, job: StoredJob, *arguments: Any, **options: Any) -> None:
        with self._stopping_if_lost(job):
            await super().retry_job(job, *arguments, **options)

    @contextmanager
    def _stopping_if_lost(self, job: StoredJob) -> Iterator[None]:
        # While this worker runs, no other worker releases the job. After a restart the worker has a new id, and the job is an
        # orphan, which is released.
        try:
            yield
        except Exception:  # noqa: BLE001  # After any error, the stored status is still `doing`.
            log.warning("outcome of a job could not be stored; the job will run again", extra={"job_id": job.id})
            self._on_lost_job()


class _Retry(BaseRetryStrategy):
    def __init__(self, policy_of: PolicyOf) -> None:
        self._policy_of = policy_of

    @override
    def get_retry_decision(self, *, exception: BaseException, job: StoredJob) -> RetryDecision | None:
        wait = delay(self._policy_of, job, exception)
        return None if wait is None else RetryDecision(retry_at=datetime.now(UTC) + wait)


def delay(policy_of: PolicyOf, job: StoredJob, error: BaseException) -> timedelta | None:
    """Return how long a failed job waits for its retry, or None if it is not retried."""
    if job.queueing_lock is not None:
        # A periodic job. Its next run may already be queued, and the lock allows only one.
        return None
    if isinstance(error, asyncio.CancelledError):
        # The worker is shutting down, which is not a failure of the job.
        return timedelta(0)
    return policy_of(job.task_name).delay(job.attempts + 1, error)


def conninfo(settings: DatabaseSettings) -> str:
    """Return the connection string for libpq, with the same server, TLS options and timeouts as the application."""
    url = settings.direct_sqlalchemy_url().set(drivername="postgresql+psycopg")
    # The arguments as libpq names them. The other parameters of the URL are for asyncpg.
    _, options = url.get_dialect()().create_connect_args(url)
    is_pooled = settings.transaction_pooler and settings.direct_url is None
    limits = (
        "" if is_pooled else " ".join(f"-c {name}={milliseconds(limit)}" for name, limit in settings.limits.items())
    )
    parameters = {
        **{name: options.get(name) for name in ("host", "port", "user", "password", "dbname", "target_session_attrs")},
        **for_libpq(options),
        # libpq accepts whole seconds only, and at least two.
        "connect_timeout": max(2, round(settings.connect_timeout.total_seconds())),
        "application_name": f"{settings.application_name}-worker",
        # A transaction pooler refuses this parameter.
        "options": limits or None,
        # The driver has no timeout for a server that stops responding, so the kernel must detect it.
        "keepalives_idle": 10,
        "tcp_user_timeout": round((settings.statement_timeout.total_seconds() + 1) * 1000),
    }
    return make_conninfo("", **{name: value for name, value in parameters.items() if value is not None})


def is_outage(error: BaseException | None) -> bool:
    """Return whether an error of procrastinate or of SQLAlchemy means that the database is unavailable."""
    if isinstance(error, exceptions.ConnectorException):
        return isinstance(error.__cause__, psycopg.OperationalError | psycopg.errors.ReadOnlySqlTransaction)
    return isinstance(error, Exception) and is_transient(error)


def _should_log(record: logging.LogRecord) -> bool:
    """Return False for records about failed jobs, which contain the arguments, and about outages: this application logs both."""
    error = record.exc_info[1] if record.exc_info else None
    return getattr(record, "action", None) != "job_error" and not is_outage(error)
