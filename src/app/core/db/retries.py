"""Retries a unit of work after a transient database error, unless part of it may already be committed.

What the server has undone (a deadlock, a serialization failure, a plan that a migration made stale, a primary that has become
read-only) is repeated up to three times in all. Work whose connection broke off is repeated once. Neither is repeated after a
commit, and the latter not even after a COMMIT was sent: nobody knows whether it arrived. Time-outs are never repeated.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from app.core.db.failures import is_lost_connection, is_undone, sqlstate

_MOST = 3
_FIRST_PAUSE = 0.02

log = logging.getLogger(__name__)


@dataclass
class Attempt:
    """One try at a piece of work, and how far its commits have come. The sessions themselves keep it current."""

    outer: "Attempt | None" = None
    has_sent_commit: bool = False
    has_committed: bool = False
    # What is to be done once it is known that this is not done again; None from then on.
    kept: list[Callable[[], None]] | None = field(default_factory=list)

    def note_commit_sent(self) -> None:
        """From here on nobody knows the outcome, unless the server tells."""
        self.has_sent_commit = True
        if self.outer:
            self.outer.note_commit_sent()

    def note_committed(self) -> None:
        """From here on doing the work again would do it twice."""
        self.has_committed = True
        if self.outer:
            self.outer.note_committed()

    def keep(self, act: Callable[[], None]) -> None:
        """Keep what is to be done once; a task that outlives the attempt keeps nothing back."""
        if self.kept is None:
            act()
        else:
            self.kept.append(act)

    def settle(self) -> None:
        """Do what was kept, or hand it to the attempt around this one, which may yet be made again."""
        kept, self.kept = self.kept or (), None
        for act in kept:
            self.outer.keep(act) if self.outer else act()


_current: ContextVar[Attempt | None] = ContextVar("attempt", default=None)


def note_commit_sent(*_: object) -> None:
    """Tell the attempt that is being made, if there is one, that a COMMIT is on its way."""
    if attempt := _current.get():
        attempt.note_commit_sent()


def note_committed() -> None:
    """Tell the attempt that is being made, if there is one, that something has come to stay."""
    if attempt := _current.get():
        attempt.note_committed()


def once(act: Callable[[], None]) -> None:
    """Do it when the attempt that is being made turns out to be the last, or at once where there is none."""
    if attempt := _current.get():
        attempt.keep(act)
    else:
        act()


async def repeating[T](work: Callable[[], Awaitable[T]]) -> T:
    """Do the work, and all of it again where that can help and can do nothing twice."""
    number = 1
    while True:
        attempt = Attempt(outer=_current.get())
        token = _current.set(attempt)
        try:
            return await work()
        except Exception as error:
            if not _may_repeat(error, attempt, number):
                raise
            attempt.kept = None
            log.info("work is done again", extra={"attempt": number + 1, "reason": _reason(error)})
        finally:
            _current.reset(token)
            attempt.settle()
        # Two that have met must not meet again. The work's session is closed: nothing is held meanwhile.
        await asyncio.sleep(random.uniform(0, _FIRST_PAUSE * 2**number))  # noqa: S311  # No secret.
        number += 1


def _may_repeat(error: Exception, attempt: Attempt, number: int) -> bool:
    if is_undone(error):
        return number < _MOST and not attempt.has_committed
    return is_lost_connection(error) and number == 1 and not attempt.has_sent_commit


def _reason(error: Exception) -> str:
    return sqlstate(error) or type(error).__name__
