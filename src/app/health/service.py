"""Whether this process is fit to be sent traffic."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from sqlalchemy import text

from app.core.database import Database, DatabaseUnavailableError, is_transient
from app.health.errors import NotReadyError

_TIMEOUT = 2.0
_REVISION = text("SELECT version_num FROM alembic_version")
_HAS_REVISIONS = text("SELECT to_regclass('alembic_version') IS NOT NULL")

# The event loop itself does not keep tasks alive.
_asked: set[asyncio.Task[Any]] = set()


async def check_readiness(database: Database, *, head: str, checks: Iterable[Callable[[], str | None]]) -> None:
    """Return when the database answers, its schema is the one this code was written for, and every check is content."""
    try:
        revision = await _in_time(_revision(database))
    except Exception as error:
        if not is_transient(error):
            raise
        raise NotReadyError(["the database cannot be reached"]) from error
    if revision != head:
        raise NotReadyError([f"the schema is at revision {revision or 'none'}, this program needs {head}"])
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


async def _revision(database: Database) -> str | None:
    async with database.read_sessions() as session:
        if not await session.scalar(_HAS_REVISIONS):
            return None
        revision: str | None = await session.scalar(_REVISION)
        return revision
