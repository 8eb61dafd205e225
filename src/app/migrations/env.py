"""Alembic's environment. It uses the connection of the runner, or opens its own for `alembic revision`."""

import asyncio
import re
from datetime import UTC, datetime
from typing import Any

from alembic import context
from alembic.operations import MigrationScript
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from app.core.db import tls
from app.migrations.revisions import is_ours
from app.models import Base
from app.settings import load_settings

# Alembic's version table stores a revision as VARCHAR(32). The date and its underscore take 9 characters.
_LONGEST_SLUG = 23


def _set_revision_id(running: MigrationContext, _revision: object, drafts: list[MigrationScript]) -> None:
    """Name a draft after today's date and its message, unless `--rev-id` or the caller's `rev_id` gives its name."""
    if not running.opts["revision_context"].command_args["rev_id"]:
        for draft in drafts:
            slug = re.sub(r"[^a-z0-9]+", "_", (draft.message or "draft").lower())[:_LONGEST_SLUG].strip("_")
            draft.rev_id = f"{datetime.now(UTC):%Y%m%d}_{slug}"


_OPTIONS: dict[str, Any] = {
    "target_metadata": Base.metadata,
    "include_name": is_ours,
    # One transaction per migration: when one fails, the earlier ones stay applied.
    "transaction_per_migration": True,
    "compare_type": True,
    "compare_server_default": True,
    "process_revision_directives": _set_revision_id,
}


def _run(connection: Connection) -> None:
    context.configure(connection=connection, **_OPTIONS)
    with context.begin_transaction():
        context.run_migrations()


def _write_sql() -> None:
    context.configure(dialect_name="postgresql+asyncpg", literal_binds=True, **_OPTIONS)
    context.execute("SET lock_timeout = '2s'")
    context.execute("SET statement_timeout = '10min'")
    with context.begin_transaction():
        context.run_migrations()


async def _connect_and_run() -> None:
    url = load_settings(environment="local").database.sqlalchemy_url()
    engine = create_async_engine(url, connect_args={"async_creator_fn": tls.connect})
    async with engine.connect() as connection:
        await connection.run_sync(_run)
        await connection.commit()
    await engine.dispose()


if context.is_offline_mode():
    _write_sql()
elif (given := context.config.attributes.get("connection")) is not None:
    _run(given)
else:
    asyncio.run(_connect_and_run())
