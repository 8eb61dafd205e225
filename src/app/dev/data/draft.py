"""`make migration NAME="add nickname"`: drafts a migration from the difference between the models and the migrations."""

import asyncio
import hashlib
import io
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.operations import MigrationScript
from sqlalchemy import Connection, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from app.dev import migrations
from app.migrations import revisions, scripts
from app.models import Base

# Alembic's version table stores a revision as VARCHAR(32). The date and its underscore take 9 characters.
_LONGEST_SLUG = 23
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9 ,._-]*")
# What Alembic does not compare: conditions of tables, and the values of enumerations.
_RULES = text("""
SELECT conrelid::regclass::text, 'the check constraint ' || conname, pg_get_constraintdef(oid)
FROM pg_constraint
WHERE contype = 'c' AND conrelid <> 0 AND connamespace = current_schema()::regnamespace
UNION ALL
SELECT DISTINCT attrelid::regclass::text, 'the enumeration ' || typname,
       (SELECT string_agg(enumlabel, ', ' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = pg_type.oid)
FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
WHERE typtype = 'e' AND typnamespace = current_schema()::regnamespace AND attnum > 0 AND NOT attisdropped
""")
_TABLES = text("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")

type Rules = dict[tuple[str, str], str]


class DraftError(Exception):
    """No migration can be drafted. The text says why, and what to do."""


def draft(root: Path, server_url: str, name: str) -> Iterator[str]:
    """Draft a migration and record its digest. Yield sentences for the developer.

    The server gets two databases that exist only during the call: one with the migrations, one with the models.
    """
    revision = _revision(name)
    written, differences = asyncio.run(_compare_and_write(root, server_url, revision, _title(name)))
    if written is None:
        yield "Nothing to migrate: the migrations create what the models declare."
        return
    _record(root / "tests" / "migrations.sha256", written)
    yield f"Drafted {written.relative_to(root)} and recorded its digest. Read the file before you run it."
    yield from differences
    yield from (sentence for sentence in migrations.leftovers() if sentence.startswith(written.name))


def _title(name: str) -> str:
    name = name.strip().rstrip(".")
    return f"{name[0].upper()}{name[1:]}."


def _revision(name: str) -> str:
    """Return the revision of the draft: its date is not before that of the migration that it follows."""
    if not _NAME.fullmatch(name.strip()):
        message = 'Name the migration with letters, digits and spaces: make migration NAME="add nickname"'
        raise DraftError(message)
    head = scripts.head(scripts.read())
    today = f"{datetime.now(UTC):%Y%m%d}"
    date = max(today, head[:8]) if head[:8].isdigit() else today
    slug = re.sub(r"[^a-z0-9]+", "_", name.strip().lower())[:_LONGEST_SLUG].strip("_")
    revision = f"{date}_{slug}"
    if revision in revisions.known():
        message = f"{revision}.py exists already. Choose another NAME, or delete the file and its line in tests/migrations.sha256."
        raise DraftError(message)
    return revision


async def _compare_and_write(root: Path, server_url: str, revision: str, title: str) -> tuple[Path | None, list[str]]:
    async with _database(server_url) as migrated, _database(server_url) as declared:
        async with migrated.connect() as connection:
            await connection.run_sync(_upgrade, root)
        async with declared.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        differences = list(_differences(*await _rules(migrated), *await _rules(declared)))
        async with migrated.connect() as connection:
            written = await connection.run_sync(_write, root, revision, title, bool(differences))
    return written, differences


def _upgrade(connection: Connection, root: Path) -> None:
    """Run the migrations. The runner would refuse a database that rejects values that the code declares."""
    with scripts.migration_errors():
        command.upgrade(_config(connection, root), "head")


def _config(connection: Connection, root: Path) -> Config:
    """Return the options of the `alembic` command: the name of the file, and ruff."""
    configuration = Config(toml_file=root / "pyproject.toml")
    configuration.attributes["connection"] = connection
    return configuration


def _write(connection: Connection, root: Path, revision: str, title: str, is_needed: bool) -> Path | None:
    def drop_empty(_context: object, _revision: object, drafts: list[MigrationScript]) -> None:
        if not is_needed:
            drafts[:] = [one for one in drafts if one.upgrade_ops and not one.upgrade_ops.is_empty()]

    with redirect_stdout(io.StringIO()), scripts.migration_errors():
        command.revision(
            _config(connection, root), title, autogenerate=True, rev_id=revision, process_revision_directives=drop_empty
        )
    path = revisions.DIRECTORY / "versions" / f"{revision}.py"
    return path if path.exists() else None


@asynccontextmanager
async def _database(server_url: str) -> AsyncIterator[AsyncEngine]:
    """Create a database on this server, and drop it at the end."""
    name = f"draft_{secrets.token_hex(6)}"
    await _administer(server_url, f"CREATE DATABASE {name}")
    try:
        yield create_async_engine(make_url(server_url).set(database=name), poolclass=NullPool)
    finally:
        await _administer(server_url, f"DROP DATABASE {name} WITH (FORCE)")


async def _administer(server_url: str, statement: str) -> None:
    # The connection closes at once: nobody can clone a database while others are connected to it.
    server = create_async_engine(server_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    async with server.connect() as connection:
        await connection.execute(text(statement))


async def _rules(engine: AsyncEngine) -> tuple[Rules, set[str]]:
    """Return the rules of a database, and its tables."""
    async with engine.connect() as connection:
        rules = {(table, rule): definition for table, rule, definition in await connection.execute(_RULES)}
        return rules, set(await connection.scalars(_TABLES))


def _differences(migrated: Rules, old_tables: set[str], declared: Rules, new_tables: set[str]) -> Iterator[str]:
    """Yield a sentence for each rule of a table that Alembic does not draft. It drafts those of a new table with the table."""
    keys = declared.keys() | migrated.keys()
    for table, rule in sorted(key for key in keys if key[0] in old_tables & new_tables):
        before, after = migrated.get((table, rule)), declared.get((table, rule))
        if before != after:
            yield (
                f"Alembic does not draft {rule} of {table}: the migrations have {before or 'none'}, the models "
                f'{after or "none"}. Write that change yourself: docs/recipes.md, "Add a role", shows how.'
            )


def _record(digests: Path, migration: Path) -> None:
    lines = digests.read_text().splitlines()
    line = f"{hashlib.sha256(migration.read_bytes()).hexdigest()}  {migration.name}"
    ordered = sorted([*lines, line], key=lambda entry: entry.split("  ", 1)[1])
    digests.write_text("".join(f"{entry}\n" for entry in ordered))
