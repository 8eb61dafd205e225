"""Retries a unit of work after a transient database error, unless part of it may already be committed.

Work that the server has rolled back runs up to three times. Reasons are a deadlock, a serialization failure, a plan that became
stale by a migration, and a primary that became read-only. Work whose connection was lost is retried once. Nothing is retried
after a commit. After a lost connection, a COMMIT that was only sent also counts, because it may have arrived. Timeouts are
never retried. A read that failed on a standby is repeated once, on the primary.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

from app.core.db.failures import StandbyFailedError, is_lost_connection, is_undone, sqlstate

_MAX_ATTEMPTS = 3
_FIRST_PAUSE = 0.02

log = logging.getLogger(__name__)


@dataclass
class _Attempt:
    """One attempt at a unit of work, and the state of its commits."""

    outer: "_Attempt | None"
    number: int
    has_sent_commit: bool = False
    has_committed: bool = False
    # Callbacks that run if this attempt is the last one. None once they have run or were discarded.
    deferred: list[Callable[[], None]] | None = field(default_factory=list)


_current: ContextVar[_Attempt | None] = ContextVar("attempt", default=None)


def _attempts() -> Iterator[_Attempt]:
    """Yield the current attempt, then those around it."""
    attempt = _current.get()
    while attempt:
        yield attempt
        attempt = attempt.outer


def is_retry() -> bool:
    """Return whether a unit of work around this call runs again after a failure."""
    return any(attempt.number > 1 for attempt in _attempts())


def note_commit_sent(*_: object) -> None:
    """Record that a COMMIT was sent: from now on the outcome is unknown until the server answers."""
    for attempt in _attempts():
        attempt.has_sent_commit = True


def note_committed() -> None:
    """Record a commit: from now on a retry would repeat its effects."""
    for attempt in _attempts():
        attempt.has_committed = True


def after_last_attempt(callback: Callable[[], None]) -> None:
    """Run a callback once for a unit of work, after its last attempt, even if that one fails.

    Outside of a unit of work, and in a task that outlives it, run the callback at once.
    """
    attempt = _current.get()
    if attempt is None or attempt.deferred is None:
        callback()
    else:
        attempt.deferred.append(callback)


async def with_retries[T](work: Callable[[], Awaitable[T]]) -> T:
    """Run the work. Retry all of it if that may help and cannot repeat an effect."""
    number = 1
    while True:
        attempt = _Attempt(_current.get(), number)
        token = _current.set(attempt)
        try:
            return await work()
        except Exception as error:
            if not _may_retry(error, attempt, number):
                raise
            attempt.deferred = None
            reason = sqlstate(error) or type(error).__name__
            log.info("unit of work is retried", extra={"attempt": number + 1, "reason": reason})
        finally:
            _current.reset(token)
            _run_deferred(attempt)
        # A random pause separates two transactions that deadlocked. The session is closed: no lock is held.
        await asyncio.sleep(random.uniform(0, _FIRST_PAUSE * 2**number))  # noqa: S311  # No secret.
        number += 1


def _run_deferred(attempt: _Attempt) -> None:
    """Run the callbacks of an ended attempt, or pass them to the outer attempt, which may still be retried."""
    callbacks, attempt.deferred = attempt.deferred or (), None
    for callback in callbacks:
        after_last_attempt(callback)


def _may_retry(error: Exception, attempt: _Attempt, number: int) -> bool:
    if is_undone(error):
        return number < _MAX_ATTEMPTS and not attempt.has_committed
    may_help = is_lost_connection(error) or isinstance(error, StandbyFailedError)
    return may_help and number == 1 and not attempt.has_sent_commit
