"""Classifies failures of PostgreSQL: whether a retry later may help, and whether the server has undone the transaction."""

from collections.abc import Iterator

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.core.errors import UnavailableError

READ_ONLY = "25006"
FOREIGN_KEY_VIOLATION = "23503"
# Temporary failures that the request did not cause: connection, resources, operator intervention, timeouts of statements, locks
# and transactions, deadlocks and serialization failures.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
TRANSIENT_CLASSES = ("08", "53", "57", "58")
_TRANSIENT_STATES = frozenset({"25P03", "25P04", "40001", "40P01", "55P03"})
# The server has rolled back the whole transaction, whichever statement failed. COMMIT may be that statement.
_UNDONE = frozenset({"40001", "40P01"})
# Timeouts: idle in transaction, transaction, lock, statement, idle session. A retry would reach the same timeout.
_TIMEOUTS = frozenset({"25P03", "25P04", "55P03", "57014", "57P05"})
# The server ends this connection and says so.
SESSION_ENDED = frozenset({"57P01", "57P02", "57P05"})


class DatabaseUnavailableError(UnavailableError):
    """The database is unreachable or overloaded."""

    code = "database_unavailable"
    detail = "The database is temporarily unavailable. Try again shortly."


class StandbyFailedError(DatabaseUnavailableError):
    """A read on a standby failed. The operation runs again, and then reads from the primary."""


def sqlstate(error: BaseException) -> str | None:
    """Return the five-character PostgreSQL code of a failed statement."""
    return getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None


def constraint_name(error: DBAPIError) -> str | None:
    cause = error.orig.__cause__ if error.orig else None
    return getattr(cause, "constraint_name", None)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes.

    When a connection ends during a statement, the driver raises its own error with the error of the server as the cause.
    """
    while error:
        yield error
        error = error.__cause__


def sqlstates(error: BaseException | None) -> Iterator[str | None]:
    return (getattr(each, "sqlstate", None) for each in causes(error))


def is_transient(error: Exception) -> bool:
    """Return whether a later retry may succeed. If so, the response is 503 instead of 500."""
    if isinstance(error, PoolTimeoutError | DatabaseUnavailableError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    state = sqlstate(error)
    if state is None:
        # The driver's own errors (connection lost, protocol broken) carry no code.
        return error.connection_invalidated or _is_stale_plan(error)
    return state.startswith(TRANSIENT_CLASSES) or state in _TRANSIENT_STATES or _is_demotion(error)


def is_undone(error: Exception) -> bool:
    """Return whether the server has rolled back the whole transaction, and a retry may succeed."""
    return sqlstate(error) in _UNDONE or _is_demotion(error) or _is_stale_plan(error)


def is_lost_connection(error: Exception) -> bool:
    """Return whether a statement failed because its connection ended for another reason than a timeout."""
    if not isinstance(error, DBAPIError) or not _TIMEOUTS.isdisjoint(sqlstates(error.orig)):
        return False
    return error.connection_invalidated or sqlstate(error) in SESSION_ENDED


def _is_demotion(error: Exception) -> bool:
    # `connections.Recycling` invalidates a connection of the engine for writing that rejects writes. It does not do so on the
    # engine for reading, where a write is a bug.
    return isinstance(error, DBAPIError) and sqlstate(error) == READ_ONLY and error.connection_invalidated


def _is_stale_plan(error: Exception) -> bool:
    # A migration changed the result type of a prepared statement. The library discards its prepared statements itself.
    cause = error.orig.__cause__ if isinstance(error, DBAPIError) and error.orig else None
    return isinstance(cause, asyncpg.InvalidCachedStatementError)


def reason(error: BaseException) -> str:
    """Describe a failure of the database in one line."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
    # SQLAlchemy's adapter puts the name of a class in front of the server's message.
    return text.rpartition(">: ")[2]
