"""Whether this process is fit to be sent traffic."""

import asyncio
from collections.abc import Callable, Iterable

from sqlalchemy import text

from app.core.database import Database, is_transient
from app.health.errors import NotReadyError

_TIMEOUT = 2.0
_REVISION = text("SELECT version_num FROM alembic_version")
_HAS_REVISIONS = text("SELECT to_regclass('alembic_version') IS NOT NULL")


async def check_readiness(database: Database, *, head: str, checks: Iterable[Callable[[], str | None]]) -> None:
    """Return when the database answers, its schema is the one this code was written for, and every check is content."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            revision = await _revision(database)
    except Exception as error:
        if not is_transient(error):
            raise
        raise NotReadyError(["the database cannot be reached"]) from error
    if revision != head:
        raise NotReadyError([f"the schema is at revision {revision or 'none'}, this program needs {head}"])
    if waiting := [reason for check in checks if (reason := check())]:
        raise NotReadyError(waiting)


async def _revision(database: Database) -> str | None:
    async with database.read_sessions() as session:
        if not await session.scalar(_HAS_REVISIONS):
            return None
        revision: str | None = await session.scalar(_REVISION)
        return revision
