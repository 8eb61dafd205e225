"""Shared functions of the commands: command groups, and database access."""

import asyncio
from collections.abc import Awaitable, Callable

import typer

from app.core.config import DatabaseSettings
from app.core.db.database import Database, WriteSession


def command_group(name: str, description: str) -> typer.Typer:
    """Return a command group, `app NAME …`. A feature lists its groups in `COMMANDS` of its `commands.py`."""
    # No rich markup: importing rich would double the time of `--help`.
    return typer.Typer(name=name, no_args_is_help=True, help=description, rich_markup_mode=None)


def with_database[T](settings: DatabaseSettings, call: Callable[[Database], Awaitable[T]]) -> T:
    """Run a function with a new `Database`, and dispose of it afterwards."""

    async def run() -> T:
        database = Database(settings)
        try:
            return await call(database)
        finally:
            await database.dispose()

    return asyncio.run(run())


def in_transaction[T](settings: DatabaseSettings, call: Callable[[WriteSession], Awaitable[T]]) -> T:
    """Run a function in one transaction and commit it. An error rolls it back."""

    async def run(database: Database) -> T:
        async with database.begin() as session:
            return await call(session)

    return with_database(settings, run)
