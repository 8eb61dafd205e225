"""Whether this process is fit to be sent traffic."""

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

# For each pool. A pool under load hands its connections on within milliseconds; one that gives none for so long serves nobody.
_TIMEOUT = 2.0
_GREETING = text("SELECT 1")

# The event loop itself does not keep tasks alive.
_asked: set[asyncio.Task[Any]] = set()


class SchemaWatch:
    """Whether this program may work on a schema: on its own, and on a newer one that came while it was running.

    Migrations keep the program before them working, so those that run when a release arrives must not be taken out of
    rotation by it. A program that starts on a schema it has never heard of may be years too old.
    """

    def __init__(self, *, head: str, known: frozenset[str], accepts_newer: bool) -> None:
        self._head = head
        self._known = known
        self._accepts_newer = accepts_newer
        self._allows_choices = False

    async def unready(self, database: Database) -> str | None:
        """Say why this program cannot work on the schema of a database."""
        async with database.read_sessions() as session:
            if complaint := self._behind(await revisions.applied(session)):
                return complaint
            # A later migration may add values, and take none away that this program uses.
            if not self._allows_choices:
                complaint = await choices.refused(session, Base.metadata)
                self._allows_choices = complaint is None
            return complaint

    def _behind(self, applied: Sequence[str]) -> str | None:
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
    """Return when both pools reach the database, this code can work on its schema, and every check is content."""
    if complaint := await _ask_both_pools(database, schema(database)):
        raise NotReadyError([complaint])
    if waiting := [reason for check in checks if (reason := check())]:
        raise NotReadyError(waiting)


async def _ask_both_pools(database: Database, schema: Coroutine[Any, Any, str | None]) -> str | None:
    """Say what is wrong with the schema; raise the error that names each pool which does not answer in time."""
    greeting, complaint = await asyncio.gather(
        _ask(database.engine, _greet(database.engine)), _ask(database.read_engine, schema)
    )
    if isinstance(greeting, _Fault) or isinstance(complaint, _Fault):
        raise NotReadyError(_reasons({"writing": greeting, "reading": complaint}))
    return complaint


def _reasons(answers: Mapping[str, object]) -> list[str]:
    if all(answer is _Fault.UNREACHABLE for answer in answers.values()):
        return ["the database cannot be reached"]
    return [f"the {pool} pool {answer.value}" for pool, answer in answers.items() if isinstance(answer, _Fault)]


class _Fault(Enum):
    UNREACHABLE = "cannot reach the database"
    EXHAUSTED = "has no free connection"


async def _ask[T](engine: AsyncEngine, question: Coroutine[Any, Any, T]) -> T | _Fault:
    task = asyncio.ensure_future(question)
    _asked.add(task)
    task.add_done_callback(_asked.discard)
    await asyncio.wait({task}, timeout=_TIMEOUT)
    fault = _fault(engine)
    try:
        # One that has not ended does so on its own time: giving up a connection that has gone silent takes as long again.
        return fault if task.cancel() else task.result()
    except Exception as error:
        if not is_transient(error):
            raise
        return fault


def _fault(engine: AsyncEngine) -> _Fault:
    pool: Any = engine.pool
    return _Fault.EXHAUSTED if pool.checkedout() >= pool.size() else _Fault.UNREACHABLE


async def _greet(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execute(_GREETING)
