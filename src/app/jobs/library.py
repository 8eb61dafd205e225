"""What procrastinate is told: which server, which jobs, when to try again; and what it must not do."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, override

import procrastinate
import psycopg
from procrastinate import exceptions
from procrastinate.job_context import JobContext
from procrastinate.jobs import Job as StoredJob
from procrastinate.retry import BaseRetryStrategy, RetryDecision
from procrastinate.worker import Worker
from psycopg.conninfo import make_conninfo

from app.core.config import DatabaseSettings
from app.core.db.connections import milliseconds
from app.core.db.failures import is_transient
from app.core.db.tls import for_libpq
from app.jobs.queue import QUEUE, Policy
from app.jobs.settings import JobsSettings

REPORTS_PER_STALL = 4
_NEVER = 86400.0

log = logging.getLogger(__name__)

type PolicyOf = Callable[[str], Policy]
type Run = Callable[..., Awaitable[None]]


def make_library(
    settings: DatabaseSettings, run: Run, *, jobs: Iterable[str], crons: Iterable[tuple[str, str]], policy_of: PolicyOf
) -> procrastinate.App:
    """Give procrastinate the names of the jobs and their schedules; `run` runs all of them."""
    app = procrastinate.App(
        connector=procrastinate.PsycopgConnector(
            conninfo=conninfo(settings),
            # Behind a pooler, a prepared statement would be met by another connection.
            kwargs={"prepare_threshold": None},
            # None at the start: the first statement waits no longer than `timeout`, where opening would wait 30 s.
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
    unknown = app.task(name="unknown", queue=QUEUE, pass_context=True, retry=retry)(run)
    app.tasks = _Tasks(app.tasks, unknown)
    return app


def make_worker(app: procrastinate.App, settings: JobsSettings) -> "QueueWorker":
    """Make a worker for one run."""
    for name in ("procrastinate.manager", "procrastinate.utils", "procrastinate.worker"):
        logging.getLogger(name).addFilter(_is_news)
    stalled_after = settings.stalled_after.total_seconds()
    return QueueWorker(
        app=app,
        name=None,
        concurrency=settings.concurrency,
        fetch_job_polling_interval=settings.poll_interval.total_seconds(),
        # Nothing here aborts a job from outside.
        abort_job_polling_interval=_NEVER,
        shutdown_graceful_timeout=settings.shutdown_grace.total_seconds(),
        install_signal_handlers=False,
        update_heartbeat_interval=stalled_after / REPORTS_PER_STALL,
        stalled_worker_timeout=stalled_after,
    )


class QueueWorker(Worker):
    """procrastinate's worker, which does not live on with a job in hand that it has lost."""

    @override
    async def _process_job(self, context: JobContext) -> None:
        try:
            await super()._process_job(context)
        except Exception:  # noqa: BLE001  # Whatever it was, the row still says that the job is being run.
            # Nobody would look after it as long as this worker lives. Ended and started under another number, it finds the
            # job as an orphan.
            log.warning("the end of a job could not be stored; it will run again", extra={"job_id": context.job.id})
            self.stop()

    @override
    def stop(self) -> None:
        """Take no more jobs, and end when those running have."""
        super().stop()  # type: ignore[no-untyped-call]  # It declares no return type.


class _Tasks(dict[str, Any]):
    """Every name has a task, so that an unknown one fails on the same path as any other."""

    def __init__(self, tasks: Mapping[str, Any], unknown: object) -> None:
        super().__init__(tasks)
        self._unknown = unknown

    @override
    def get(self, key: str, default: object = None) -> Any:
        return super().get(key, self._unknown)


class _Retry(BaseRetryStrategy):
    def __init__(self, policy_of: PolicyOf) -> None:
        self._policy_of = policy_of

    @override
    def get_retry_decision(self, *, exception: BaseException, job: StoredJob) -> RetryDecision | None:
        wait = delay(self._policy_of, job, exception)
        return None if wait is None else RetryDecision(retry_at=datetime.now(UTC) + wait)


def delay(policy_of: PolicyOf, job: StoredJob, error: BaseException) -> timedelta | None:
    """Say how long a job that has just failed waits; None when it is not tried again."""
    if job.queueing_lock is not None:
        # A periodic job: its next run may be waiting already, and two cannot.
        return None
    if isinstance(error, asyncio.CancelledError):
        # The worker is told to stop: that is no fault of the job.
        return timedelta(0)
    return policy_of(job.task_name).delay(job.attempts + 1, error)


def conninfo(settings: DatabaseSettings) -> str:
    """Give libpq what the application's own driver is given: the same server, TLS and limits."""
    url = settings.direct_sqlalchemy_url()
    _, options = url.get_dialect()().create_connect_args(url)
    is_pooled = settings.transaction_pooler and settings.direct_url is None
    limits = (
        "" if is_pooled else " ".join(f"-c {name}={milliseconds(limit)}" for name, limit in settings.limits.items())
    )
    given = {
        "host": _joined(options.get("host")),
        "port": _joined(options.get("port")),
        "user": options.get("user"),
        "password": options.get("password"),
        "dbname": options["database"],
        **for_libpq(options),
        "target_session_attrs": options["target_session_attrs"],
        # libpq knows whole seconds, two at least.
        "connect_timeout": max(2, round(settings.connect_timeout.total_seconds())),
        "application_name": f"{settings.application_name}-worker",
        # A transaction pooler refuses it.
        "options": limits or None,
        # A server that has gone silent is noticed by the kernel: this driver sets no limit of its own.
        "keepalives_idle": 10,
        "tcp_user_timeout": round((settings.statement_timeout.total_seconds() + 1) * 1000),
    }
    return make_conninfo("", **{name: value for name, value in given.items() if value is not None})


def _joined(value: object) -> str | None:
    if isinstance(value, list):
        return ",".join(str(each) for each in value)
    return None if value is None else str(value)


def is_outage(error: BaseException | None) -> bool:
    """Say whether the database is away, in the words of either driver."""
    if isinstance(error, exceptions.ConnectorException):
        return isinstance(error.__cause__, psycopg.OperationalError | psycopg.errors.ReadOnlySqlTransaction)
    return isinstance(error, Exception) and is_transient(error)


def _is_news(record: logging.LogRecord) -> bool:
    """Leave out what is logged elsewhere: a failed job (here with its arguments), an outage (once for each side task)."""
    error = record.exc_info[1] if record.exc_info else None
    return getattr(record, "action", None) != "job_error" and not is_outage(error)
