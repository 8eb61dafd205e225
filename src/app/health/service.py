"""Whether this process is ready for traffic."""

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

# Seconds, for each pool. A busy pool hands a connection on within milliseconds; one that takes longer serves no requests.
_TIMEOUT = 2.0
_SELECT_ONE = text("SELECT 1")

# Strong references, because the event loop does not keep tasks alive.
_checks: set[asyncio.Task[Any]] = set()


class SchemaWatch:
    """Decides whether this program may work on a schema: on its own, and on a newer one that appears while the program runs.

    Migrations keep the previous release working, so running processes must stay in rotation when a release migrates the schema. A
    program that starts on an unknown schema may be years too old.
    """

    def __init__(self, *, head: str, known: frozenset[str], accepts_newer: bool) -> None:
        self._head = head
        self._known = known
        self._accepts_newer = accepts_newer
        self._allows_choices = False

    async def unready(self, database: Database) -> str | None:
        """Return why this program cannot work on the schema of a database."""
        async with database.read_sessions() as session:
            if complaint := self._mismatch(await revisions.applied(session)):
                return complaint
            # Checked until it succeeds once: later migrations may add values, but remove none that this program uses.
            if not self._allows_choices:
                complaint = await choices.refused(session, Base.metadata)
                self._allows_choices = complaint is None
            return complaint

    def _mismatch(self, applied: Sequence[str]) -> str | None:
        if list(applied) == [self._head]:
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
    """Raise `NotReadyError` unless both pools reach the database, the schema fits this program, and every check passes."""
    if complaint := await _check_both_pools(database, schema(database)):
        raise NotReadyError([complaint])
    if waiting := [reason for check in checks if (reason := check())]:
        raise NotReadyError(waiting)


async def _check_both_pools(database: Database, schema: Coroutine[Any, Any, str | None]) -> str | None:
    """Return what is wrong with the schema, or raise an error that names each pool without a response in time."""
    connected, complaint = await asyncio.gather(
        _check(database.engine, _select_one(database.engine)), _check(database.read_engine, schema)
    )
    if isinstance(connected, _Fault) or isinstance(complaint, _Fault):
        raise NotReadyError(_reasons({"writing": connected, "reading": complaint}))
    return complaint


def _reasons(answers: Mapping[str, object]) -> list[str]:
    if all(answer is _Fault.UNREACHABLE for answer in answers.values()):
        return ["the database cannot be reached"]
    return [f"the {pool} pool {answer.value}" for pool, answer in answers.items() if isinstance(answer, _Fault)]


class _Fault(Enum):
    UNREACHABLE = "cannot reach the database"
    EXHAUSTED = "has no free connection"


async def _check[T](engine: AsyncEngine, check: Coroutine[Any, Any, T]) -> T | _Fault:
    task = asyncio.ensure_future(check)
    _checks.add(task)
    task.add_done_callback(_checks.discard)
    await asyncio.wait({task}, timeout=_TIMEOUT)
    fault = _fault(engine)
    try:
        # A cancelled task ends later, without being awaited: closing a connection to a silent server takes as long again.
        return fault if task.cancel() else task.result()
    except Exception as error:
        if not is_transient(error):
            raise
        return fault


def _fault(engine: AsyncEngine) -> _Fault:
    pool: Any = engine.pool
    return _Fault.EXHAUSTED if pool.checkedout() >= pool.size() else _Fault.UNREACHABLE


async def _select_one(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execute(_SELECT_ONE)
