"""Readiness: whether this process can serve requests."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.db import choices
from app.core.db.database import Base, Database
from app.core.db.failures import is_transient
from app.health.errors import NotReadyError
from app.migrations import revisions

# Seconds for each pool. A busy pool gives a connection within milliseconds. A pool that needs longer serves no request either.
_TIMEOUT = 2.0
_PING = text("SELECT 1")

# Keeps references to running checks: the event loop does not, and the garbage collector could remove them.
_running_checks: set[asyncio.Task[Any]] = set()


class SchemaWatch:
    """Checks whether this program can work with the schema of the database.

    It can work with its own schema. It can also work with a newer one that a migration makes while it is running, because each
    migration keeps the previous release working. A process that starts with an unknown schema is not ready, because its release
    may be far too old. With `accepts_newer`, it is ready.
    """

    def __init__(self, *, head: str, known: frozenset[str], accepts_newer: bool) -> None:
        self._head = head
        self._known = known
        self._accepts_newer = accepts_newer
        self._accepts_declared_values = False

    async def unready(self, database: Database) -> str | None:
        """Return why this program cannot work with the schema of a database, or None if it can."""
        async with database.read_sessions() as session:
            if reason := self._wrong_revision(await revisions.applied(session)):
                return reason
            # The columns must accept all values that the code declares, such as roles. One success is enough: later migrations
            # may only add values, not remove those that this program uses.
            if not self._accepts_declared_values:
                reason = await choices.outdated_constraint(session, Base.metadata)
                self._accepts_declared_values = reason is None
            return reason

    def _wrong_revision(self, applied: Sequence[str]) -> str | None:
        if list(applied) == [self._head]:
            # From now on, a newer schema means that a migration has run while this program was running.
            self._accepts_newer = True
            return None
        is_newer = not self._known.issuperset(applied)
        if is_newer and self._accepts_newer:
            return None
        return f"the schema is at revision {revisions.named(applied)}, this program needs {self._head}"


async def check_readiness(
    database: Database,
    *,
    schema: Callable[[Database], Coroutine[Any, Any, str | None]],
    checks: Iterable[Callable[[], str | None]],
) -> None:
    """Raise `NotReadyError` unless both pools reach the database, the schema is usable, and every check passes."""
    if reason := await _check_pools(database, schema(database)):
        raise NotReadyError([reason])
    if reasons := [reason for check in checks if (reason := check())]:
        raise NotReadyError(reasons)


async def _check_pools(database: Database, schema: Coroutine[Any, Any, str | None]) -> str | None:
    """Return what is wrong with the schema. Raises `NotReadyError` with each pool that gives no result in time."""
    ping, reason = await asyncio.gather(
        _result_in_time(database.engine, _ping(database.engine)), _result_in_time(database.read_engine, schema)
    )
    if isinstance(ping, _Fault) or isinstance(reason, _Fault):
        raise NotReadyError(_fault_texts({"writing": ping, "reading": reason}))
    return reason


def _fault_texts(results: Mapping[str, object]) -> list[str]:
    if all(result is _Fault.UNREACHABLE for result in results.values()):
        return ["the database cannot be reached"]
    return [f"the {pool} pool {result.value}" for pool, result in results.items() if isinstance(result, _Fault)]


class _Fault(Enum):
    UNREACHABLE = "cannot reach the database"
    EXHAUSTED = "has no free connection"


async def _result_in_time[T](engine: AsyncEngine, check: Coroutine[Any, Any, T]) -> T | _Fault:
    task = asyncio.ensure_future(check)
    _running_checks.add(task)
    task.add_done_callback(_running_checks.discard)
    await asyncio.wait({task}, timeout=_TIMEOUT)
    fault = _fault(engine)
    try:
        # Do not wait for the end of a cancelled task: to close a connection that does not respond can take as long again.
        return fault if task.cancel() else task.result()
    except Exception as error:
        if not is_transient(error):
            raise
        return fault


def _fault(engine: AsyncEngine) -> _Fault:
    pool: Any = engine.pool
    return _Fault.EXHAUSTED if pool.checkedout() >= pool.size() else _Fault.UNREACHABLE


async def _ping(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execute(_PING)
