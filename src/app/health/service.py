"""Whether this process is fit to be sent traffic."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from sqlalchemy import text

from app.core.database import Database
from app.core.failures import DatabaseUnavailableError, is_transient
from app.health.errors import NotReadyError
from app.migrations.revisions import named

_TIMEOUT = 2.0
_REVISIONS = text("SELECT version_num FROM alembic_version ORDER BY version_num")
_HAS_REVISIONS = text("SELECT to_regclass('alembic_version') IS NOT NULL")

# The event loop itself does not keep tasks alive.
_asked: set[asyncio.Task[Any]] = set()


class SchemaWatch:
    """Whether this program may work on a schema: on its own, and on a newer one that came while it was at work.

    Migrations keep the program before them working, so those that run when a release arrives must not be taken out of
    rotation by it. A program that starts on a schema it has never heard of may be years too old.
    """

    def __init__(self, *, head: str, known: frozenset[str], accepts_newer: bool) -> None:
        self._head = head
        self._known = known
        self._accepts_newer = accepts_newer

    def unready(self, revisions: Sequence[str]) -> str | None:
        """Say what is wrong with a schema at these revisions: none when empty, several between a branch and its merge."""
        if list(revisions) == [self._head]:
            self._accepts_newer = True
            return None
        is_newer = not self._known.issuperset(revisions)
        if is_newer and self._accepts_newer:
            return None
        return f"the schema is at revision {named(revisions)}, this program needs {self._head}"


async def check_readiness(
    database: Database, *, schema: Callable[[Sequence[str]], str | None], checks: Iterable[Callable[[], str | None]]
) -> None:
    """Return when the database answers, this code can work on its schema, and every check is content."""
    try:
        revisions = await _in_time(_revisions(database))
    except Exception as error:
        if not is_transient(error):
            raise
        raise NotReadyError(["the database cannot be reached"]) from error
    if reason := schema(revisions):
        raise NotReadyError([reason])
    if waiting := [reason for check in checks if (reason := check())]:
        raise NotReadyError(waiting)


async def _in_time[T](question: Coroutine[Any, Any, T]) -> T:
    task = asyncio.ensure_future(question)
    _asked.add(task)
    task.add_done_callback(_asked.discard)
    await asyncio.wait({task}, timeout=_TIMEOUT)
    if not task.done():
        # It ends on its own time: giving up a connection that has gone silent takes as long again.
        task.cancel()
        raise DatabaseUnavailableError
    return task.result()


async def _revisions(database: Database) -> Sequence[str]:
    async with database.read_sessions() as session:
        if not await session.scalar(_HAS_REVISIONS):
            return ()
        return (await session.scalars(_REVISIONS)).all()
