"""A statement timeout of its own for one operation or job, instead of that of the settings."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta

# The largest number of milliseconds that PostgreSQL accepts.
_MAX = timedelta(milliseconds=2**31 - 1)
_MIN = timedelta(milliseconds=1)

_current: ContextVar[timedelta | None] = ContextVar("statement_timeout", default=None)


def current_statement_timeout() -> timedelta | None:
    """Return the statement timeout of the running operation or job, or None if that of the settings applies."""
    return _current.get()


@contextmanager
def statement_timeout(limit: timedelta | None) -> Iterator[None]:
    """Set the statement timeout of all transactions that begin inside the block. None changes nothing."""
    if limit is None:
        yield
        return
    token = _current.set(limit)
    try:
        yield
    finally:
        _current.reset(token)


def checked_timeout(name: str, given: timedelta | float) -> timedelta:
    """Return a time limit that is given as a `timedelta` or in seconds. Raises TypeError or ValueError with a clear text."""
    if isinstance(given, bool) or not isinstance(given, timedelta | int | float):
        message = f"{name} must be a timedelta or a number of seconds"
        raise TypeError(message)
    try:
        limit = given if isinstance(given, timedelta) else timedelta(seconds=given)
    except (OverflowError, ValueError):
        limit = timedelta.max
    if not _MIN <= limit <= _MAX:
        message = f"{name} must be between 1 ms and 24 days"
        raise ValueError(message)
    return limit
