"""What a piece of work asks of the database: how many statements, and how long it waited for them.

Counted is what is executed; BEGIN and COMMIT are the driver's and are not.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext


@dataclass(slots=True)
class Statements:
    """What has come together so far."""

    count: int = 0
    seconds: float = 0.0


_current: ContextVar[Statements | None] = ContextVar("statements", default=None)


def count_statements() -> Statements:
    """Count from here on what the current task, and whatever it starts, asks of the database."""
    statements = Statements()
    _current.set(statements)
    return statements


def watch(engine: Engine) -> None:
    """Have the statements of an engine counted."""
    event.listen(engine, "before_cursor_execute", _begin)
    event.listen(engine, "after_cursor_execute", _end)
    event.listen(engine, "handle_error", _fail)


def _begin(
    _connection: object, _cursor: object, _statement: str, _parameters: object, context: Any, _many: bool
) -> None:
    context.began_at = perf_counter()


def _end(_connection: object, _cursor: object, _statement: str, _parameters: object, context: Any, _many: bool) -> None:
    _note(perf_counter() - context.began_at)


def _fail(failure: ExceptionContext) -> None:
    # Of a connection that could not be made there is no statement.
    began_at = getattr(failure.execution_context, "began_at", None)
    if began_at is not None:
        _note(perf_counter() - began_at)


def _note(duration: float) -> None:
    statements = _current.get()
    if statements is not None:
        statements.count += 1
        statements.seconds += duration
