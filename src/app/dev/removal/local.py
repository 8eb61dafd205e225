"""Takes the database of `make run` back to the state without the tables of a feature."""

import asyncio
from collections.abc import Callable, Sequence

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from app.dev.removal.errors import RemovalError
from app.migrations import revisions, scripts

_MOVE = text("UPDATE alembic_version SET version_num = :after WHERE version_num = :before")


def take_back(url: str, undone: Sequence[str], then: Callable[[], None]) -> list[str]:
    """Run the downgrades of those migrations that this database has, the newest first. Return their names.

    Calls `then` in the same transaction: if it fails, the tables stay. Later migrations stay applied.
    """
    return asyncio.run(_take_back(url, undone, then))


async def _take_back(url: str, undone: Sequence[str], then: Callable[[], None]) -> list[str]:
    directory = scripts.read()
    # Without a pool, the connection is closed at the end of the block.
    async with create_async_engine(url, poolclass=NullPool).begin() as connection:
        await connection.execute(text("SET LOCAL lock_timeout = '10s'"))
        applied = await revisions.applied(connection)
        _refuse_unknown(directory, applied)
        has_run = {script.revision for script in directory.iterate_revisions(tuple(applied), "base")}
        found = [name for name in reversed(undone) if name in has_run]
        await connection.run_sync(_downgrade, directory, found)
        for before in set(applied) & set(found):
            await connection.execute(_MOVE, {"before": before, "after": _kept(directory, before, undone)})
        then()
    return found


def _refuse_unknown(directory: ScriptDirectory, applied: Sequence[str]) -> None:
    if unknown := set(applied) - {script.revision for script in directory.walk_revisions()}:
        message = (
            f"The database of make run is at revision {revisions.named(sorted(unknown))}, which this branch does not have. "
            "Switch to the branch that has it, or delete the data: make reset"
        )
        raise RemovalError(message)


def _downgrade(connection: Connection, directory: ScriptDirectory, found: Sequence[str]) -> None:
    with Operations.context(MigrationContext.configure(connection)):
        for name in found:
            directory.get_revision(name).module.downgrade()


def _kept(directory: ScriptDirectory, name: str, undone: Sequence[str]) -> str:
    """Return the newest migration before this one that stays."""
    while name in undone:
        name = str(directory.get_revision(name).down_revision)
    return name
