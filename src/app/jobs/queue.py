"""Queue for features: a job is a plain async function, enqueued as a row in the caller's transaction.

A job is delivered at least once. It must be safe to run twice, and it must check whether its work is still needed.
"""

import inspect
import json
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Concatenate

import structlog
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import text
from uuid_utils.compat import uuid7

from app.core.config import Settings
from app.core.db.database import Database, WriteSession
from app.core.db.timeouts import checked_timeout
from app.core.errors import PermanentError
from app.core.observability.tracing import current_parent
from app.core.security.keys import KeyRing

if TYPE_CHECKING:
    # The process that enqueues a mail does not send it, so only workers load the mail libraries.
    from app.mail.mailer import Mailer

QUEUE = "default"
_MAX_NAME = 128

_DEFER = text("""
    SELECT procrastinate_defer_jobs_v1(ARRAY[ROW(
        CAST(:queue AS text), CAST(:name AS text), CAST(:priority AS integer), CAST(:lock AS text), NULL,
        CAST(:stored AS jsonb), NULL
    )]::procrastinate_job_to_defer_v1[])
""")
_TAKE = text("""
    UPDATE procrastinate_jobs SET args = args #- ARRAY['arguments', :argument]
    WHERE id = :job_id AND args->'arguments' ? :argument RETURNING id
""")


@dataclass(frozen=True)
class Work:
    """Resources for a running job. `key` is the same in every run of the same job."""

    database: Database
    mailer: "Mailer"
    keys: KeyRing
    settings: Settings
    # Resources that the features opened for the worker, see `app.core.resources`.
    state: Mapping[str, Any] = field(default_factory=dict)
    request_id: str | None = None
    key: str = ""
    job_id: int | None = None


type Job[**P] = Callable[Concatenate[Work, P], Awaitable[None]]
type AnyJob = Callable[..., Awaitable[None]]


@dataclass(frozen=True)
class Policy:
    """How one kind of job is run. The default retries for ten hours: after 5 s, 10 s, 20 s, …, then hourly."""

    max_attempts: int = 20
    first_delay: timedelta = timedelta(seconds=5)
    max_delay: timedelta = timedelta(hours=1)
    # Without a timeout, a job that hangs would occupy the worker forever.
    timeout: timedelta = timedelta(minutes=5)
    # Jobs with a higher priority run first.
    priority: int = 0
    # Maximum time of one statement. None is the timeout of the settings.
    statement_timeout: timedelta | None = None
    # Jobs with the same lock run one at a time, in the order of enqueueing. A job that waits for its retry blocks the others.
    lock: str | None = None

    def __post_init__(self) -> None:
        if self.statement_timeout is not None:
            checked_timeout("the statement timeout of a job", self.statement_timeout)

    def delay(self, attempts: int, error: BaseException) -> timedelta | None:
        """Return how long to wait after this many attempts, or None if there is no further attempt."""
        if attempts >= self.max_attempts or isinstance(error, PermanentError):
            return None
        # The cap on the exponent prevents an overflow.
        wait = min(self.first_delay * 2.0 ** min(attempts - 1, 30), self.max_delay)
        # Jobs that failed at the same moment must not be retried at the same moment.
        return wait * random.uniform(0.8, 1.2)  # noqa: S311  # Not a secret.


@dataclass(frozen=True)
class Periodic:
    """A job without arguments that runs on a schedule: minute, hour, day, month, weekday in UTC.

    It runs once for all workers and is not retried: the next scheduled run is the next attempt. If a run has not started when
    the next one is due, there is one run for both.
    """

    cron: str
    job: AnyJob


_DEFAULT = Policy()
_policies: dict[AnyJob, Policy] = {}
_former_names: dict[AnyJob, tuple[str, ...]] = {}


def policy[**P](chosen: Policy) -> Callable[[Job[P]], Job[P]]:
    """Decorate a job that needs another policy than the default."""

    def decorate(job: Job[P]) -> Job[P]:
        _policies[job] = chosen
        return job

    return decorate


def policy_of(job: AnyJob) -> Policy:
    return _policies.get(job, _DEFAULT)


def formerly[**P](*names: str) -> Callable[[Job[P]], Job[P]]:
    """Decorate a job that earlier releases stored under other names, so that workers still run those rows."""

    def decorate(job: Job[P]) -> Job[P]:
        _former_names[job] = names
        return job

    return decorate


def names_of(job: AnyJob) -> tuple[str, ...]:
    """Return the name that new rows get, and then the former names."""
    return name_of(job), *_former_names.get(job, ())


def name_of(job: AnyJob) -> str:
    """Return the name stored with a job, such as `users.jobs:mail_link`. After a move, declare the old one: `formerly`."""
    function: Any = job
    name = f"{function.__module__.removeprefix('app.')}:{function.__qualname__}"
    if len(name) > _MAX_NAME:
        message = f"the name of a job can have at most {_MAX_NAME} characters; rename {name}"
        raise ValueError(message)
    return name


async def enqueue[**P](
    session: WriteSession, job: Callable[Concatenate[Work, P], Awaitable[None]], *args: P.args, **kwargs: P.kwargs
) -> None:
    """Insert a job in the session's transaction: the job exists only if the caller's change is committed.

    Arguments are stored as JSON, which operators and backups can read. Never pass a secret: pass an id, and let the job
    create the secret when it runs. The job removes a sensitive argument, such as a hash, with `take`.
    """
    given = inspect.signature(job).bind(None, *args, **kwargs).arguments
    stored = {
        "arguments": _to_json(job, given),
        "request_id": structlog.contextvars.get_contextvars().get("request_id"),
        "key": uuid7().hex,
        **({"trace": parent} if (parent := current_parent()) else {}),
    }
    chosen = policy_of(job)
    values = {"queue": QUEUE, "name": name_of(job), "priority": chosen.priority, "lock": chosen.lock}
    await session.execute(_DEFER, {**values, "stored": json.dumps(stored)})


async def take(session: WriteSession, work: Work, argument: str) -> bool:
    """Remove an argument from the stored job in the session's transaction. Return False if an earlier run removed it.

    The argument exists until the work that needs it is committed. That work is done once: of two concurrent runs, the second
    waits here for the first. Give the parameter a default, because a later run does not receive the argument.
    """
    values = {"job_id": work.job_id, "argument": argument}
    return await session.scalar(_TAKE, values) is not None


def _to_json(job: AnyJob, given: Mapping[str, object]) -> dict[str, object]:
    return {
        name: adapter.dump_python(adapter.validate_python(given[name], strict=True), mode="json")
        for name, adapter in parameters(job).items()
        if name in given
    }


def from_json(job: AnyJob, stored: Mapping[str, object]) -> dict[str, object]:
    """Convert the arguments of a stored job to the types that its function declares."""
    adapters = parameters(job)
    if unknown := stored.keys() - adapters.keys():
        message = f"{name_of(job)} has no parameter {', '.join(sorted(unknown))} any more"
        raise PermanentError(message)
    try:
        return {name: adapters[name].validate_python(value) for name, value in stored.items()}
    except ValidationError as error:
        # The text of the validation error would quote the value.
        problem = error.errors(include_input=False)[0]["msg"]
        message = f"{name_of(job)} was stored with an argument of the wrong type: {problem}"
        raise PermanentError(message) from None


@cache
def parameters(job: AnyJob) -> dict[str, TypeAdapter[Any]]:
    """Return a type adapter for each parameter after `work`. Raises TypeError for a function that cannot be a job."""
    _work, *rest = inspect.signature(job, eval_str=True).parameters.values()
    for parameter in rest:
        if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
            message = f"{name_of(job)} cannot be a job: give each of its parameters a name, without * and **"
            raise TypeError(message)
    return {parameter.name: TypeAdapter(parameter.annotation) for parameter in rest}
