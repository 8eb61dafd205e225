"""Counts the SQL statements of a request or job, measures their time, and logs slow ones.

BEGIN and COMMIT are not counted, because the driver sends them.
"""

import logging
from contextvars import ContextVar
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext


@dataclass(slots=True)
class Statements:
    """Number and total time of the statements so far."""

    count: int = 0
    seconds: float = 0.0


# Longer statements are cut in the log.
_MAX_TEXT = 1000

log = logging.getLogger(__name__)

_current: ContextVar[Statements | None] = ContextVar("statements", default=None)


def count_statements() -> Statements:
    """Start to count the statements of the current task and of the tasks that it creates from now on."""
    statements = Statements()
    _current.set(statements)
    return statements


class QueryLog:
    """Counts the statements of all engines that it listens to, and logs those that take longer than `slow` seconds."""

    def __init__(self, *, slow: float | None = None) -> None:
        self._slow = slow

    def listen(self, engine: Engine) -> None:
        event.listen(engine, "before_cursor_execute", self._begin, named=True)
        event.listen(engine, "after_cursor_execute", self._end, named=True)
        event.listen(engine, "handle_error", self._fail)

    def record(self, statement: str, duration: float) -> None:
        """Count a statement and its duration in seconds, whether it succeeded or failed. Log it if it was slow."""
        statements = _current.get()
        if statements is not None:
            statements.count += 1
            statements.seconds += duration
        if self._slow is not None and duration > self._slow:
            # The statement has placeholders; its values are not logged.
            text = " ".join(statement.split())[:_MAX_TEXT]
            log.warning("slow query", extra={"statement": text, "duration_ms": round(duration * 1000, 2)})

    def _begin(self, context: Any, **_: object) -> None:
        context.began_at = perf_counter()

    def _end(self, statement: str, context: Any, **_: object) -> None:
        self.record(statement, perf_counter() - context.began_at)

    def _fail(self, failure: ExceptionContext) -> None:
        # A failed connection attempt has no statement.
        began_at = getattr(failure.execution_context, "began_at", None)
        if began_at is not None:
            self.record(failure.statement or "", perf_counter() - began_at)
