"""Retries a unit of work after a transient database error, unless part of it may already be committed.

Work that the server has rolled back runs up to three times. Reasons are a deadlock, a serialization failure, a plan that became
stale by a migration, and a primary that became read-only. Work whose connection was lost is retried once. Nothing is retried
after a commit. After a lost connection, a COMMIT that was only sent also counts, because it may have arrived. Timeouts are
never retried.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from app.core.db.failures import is_lost_connection, is_undone, sqlstate

_MAX_ATTEMPTS = 3
_FIRST_PAUSE = 0.02

log = logging.getLogger(__name__)


@dataclass
class Attempt:
    """One attempt at a unit of work, and the state of its commits. The sessions update it."""

    outer: "Attempt | None" = None
    has_sent_commit: bool = False
    has_committed: bool = False
    # Callbacks that run if this attempt is the last one. None once they have run or were discarded.
    deferred: list[Callable[[], None]] | None = field(default_factory=list)

    def note_commit_sent(self) -> None:
        """Record that a COMMIT was sent: from now on the outcome is unknown until the server answers."""
        self.has_sent_commit = True
        if self.outer:
            self.outer.note_commit_sent()

    def note_committed(self) -> None:
        """Record a commit: from now on a retry would repeat its effects."""
        self.has_committed = True
        if self.outer:
            self.outer.note_committed()

    def defer(self, callback: Callable[[], None]) -> None:
        """Run a callback at the end, if this attempt is the last one. A task that outlives the attempt runs it at once."""
        if self.deferred is None:
            callback()
        else:
            self.deferred.append(callback)

    def discard_deferred(self) -> None:
        """Forget the deferred callbacks, because the attempt is retried."""
        self.deferred = None

    def run_deferred(self) -> None:
        """Run the deferred callbacks, or pass them to the outer attempt, which may still be retried."""
        callbacks, self.deferred = self.deferred or (), None
        for callback in callbacks:
            self.outer.defer(callback) if self.outer else callback()


_current: ContextVar[Attempt | None] = ContextVar("attempt", default=None)


def note_commit_sent(*_: object) -> None:
    """Tell the current attempt, if there is one, that a COMMIT was sent."""
    if attempt := _current.get():
        attempt.note_commit_sent()


def note_committed() -> None:
    """Tell the current attempt, if there is one, that a commit succeeded."""
    if attempt := _current.get():
        attempt.note_committed()


def after_last_attempt(callback: Callable[[], None]) -> None:
    """Run a callback once for a unit of work, after its last attempt, even if that one fails. Outside of one, run it at once."""
    if attempt := _current.get():
        attempt.defer(callback)
    else:
        callback()


async def with_retries[T](work: Callable[[], Awaitable[T]]) -> T:
    """Run the work. Retry all of it if that may help and cannot repeat an effect."""
    number = 1
    while True:
        attempt = Attempt(outer=_current.get())
        token = _current.set(attempt)
        try:
            return await work()
        except Exception as error:
            if not _may_retry(error, attempt, number):
                raise
            attempt.discard_deferred()
            log.info("unit of work is retried", extra={"attempt": number + 1, "reason": _reason(error)})
        finally:
            _current.reset(token)
            attempt.run_deferred()
        # A random pause separates two transactions that deadlocked. The session is closed: no lock is held.
        await asyncio.sleep(random.uniform(0, _FIRST_PAUSE * 2**number))  # noqa: S311  # No secret.
        number += 1


def _may_retry(error: Exception, attempt: Attempt, number: int) -> bool:
    if is_undone(error):
        return number < _MAX_ATTEMPTS and not attempt.has_committed
    return is_lost_connection(error) and number == 1 and not attempt.has_sent_commit


def _reason(error: Exception) -> str:
    return sqlstate(error) or type(error).__name__
