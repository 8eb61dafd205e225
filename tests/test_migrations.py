"""The migrations: upgrades, downgrades, concurrent runners, locks, the written SQL, and digests of the files."""

import asyncio
import hashlib
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import to_tuple
from sqlalchemy import Connection, make_url

from app.core.config import DatabaseSettings
from app.core.db.connections import create_engine
from app.migrations import revisions, runner
from app.migrations.errors import MigrationError
from app.migrations.revisions import head, is_ours, known
from app.migrations.runner import check, sql, upgrade
from app.migrations.scripts import config
from app.models import Base
from tests.conftest import ROOT, make_settings
from tests.proxy import Proxy, proxied

VERSIONS = ROOT / "src" / "app" / "migrations" / "versions"
DIGESTS = ROOT / "tests" / "migrations.sha256"
TIMEOUT = 30.0
# Splits the written SQL as psql runs it: statements outside of transactions are executed one at a time.
TRANSACTION_OR_STATEMENT = re.compile(r"\s*(BEGIN;.*?^COMMIT;|[^;]+;)", re.DOTALL | re.MULTILINE)
# The objects of the schema, from PostgreSQL's catalogs.
SHAPE = """
SELECT 'column' AS kind, table_name || '.' || column_name AS name,
       concat_ws(' ', data_type, is_nullable, column_default, collation_name) AS definition
FROM information_schema.columns WHERE table_schema = 'public'
UNION ALL
SELECT 'constraint', conrelid::regclass || '.' || conname, pg_get_constraintdef(oid)
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL
SELECT 'index', indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL
-- Alembic replaces tabs by four spaces.
SELECT 'function', proname, md5(replace(prosrc, chr(9), '    ')) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
UNION ALL
SELECT 'trigger', tgrelid::regclass || '.' || tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
UNION ALL
SELECT 'type', typname, typtype::text FROM pg_type WHERE typnamespace = 'public'::regnamespace
ORDER BY 1, 2, 3
"""


def settings_of(url: str, **changes: Any) -> DatabaseSettings:
    return make_settings(url, database=changes).database


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(make_url(url).set(drivername="postgresql").render_as_string(hide_password=False))
    try:
        yield connection
    finally:
        await connection.close()


async def shape(url: str) -> list[tuple[Any, ...]]:
    async with connected(url) as connection:
        return [tuple(row) for row in await connection.fetch(SHAPE)]


async def revision(url: str) -> str | None:
    async with connected(url) as connection:
        found: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
        return found


@pytest.fixture
async def empty_url(clone_url: str) -> str:
    """A database without a schema."""
    async with connected(clone_url) as connection:
        await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return clone_url


def scripts() -> list[Any]:
    """Return the migrations, oldest first."""
    return list(ScriptDirectory.from_config(config()).walk_revisions())[::-1]


def parents(script: Any) -> tuple[str, ...]:
    """Return the migrations that this one follows: two or more, if it merges branches."""
    followed: tuple[str, ...] = to_tuple(script.down_revision, default=())
    return followed


def ancestors(script: Any) -> set[str]:
    """Return the migrations that must be applied before this one."""
    lineage = ScriptDirectory.from_config(config()).iterate_revisions(script.revision, "base")
    return {one.revision for one in lineage} - {script.revision}


def test_head_and_known_revisions_are_those_of_alembic() -> None:
    scripts = ScriptDirectory.from_config(config())

    assert [head()] == list(scripts.get_heads())
    assert known() == {script.revision for script in scripts.walk_revisions()}


async def test_all_migrations_can_be_downgraded_and_upgraded_again(empty_url: str) -> None:
    settings = settings_of(empty_url)
    await upgrade(settings)
    first = await shape(empty_url)
    await upgrade(settings, "base")
    bottom = await shape(empty_url)

    await upgrade(settings)

    assert await shape(empty_url) == first
    assert all("alembic_version" in name for _, name, _ in bottom), "a downgrade leaves something behind"
    assert await revision(empty_url) == head()


async def test_each_migration_is_undone_by_its_own_downgrade(empty_url: str) -> None:
    settings = settings_of(empty_url)
    applied: set[str] = set()
    for script in scripts():
        if applied - ancestors(script):
            # The last migration was on another branch: a downgrade below the branches would undo it too.
            await upgrade(settings, "base")
        for parent in parents(script):
            await upgrade(settings, parent)
        before = await shape(empty_url) if parents(script) else None
        await upgrade(settings, script.revision)
        await upgrade(settings, parents(script)[0] if parents(script) else "base")
        after = await shape(empty_url)
        await upgrade(settings, script.revision)
        applied = ancestors(script) | {script.revision}

        assert before is None or after == before, f"the downgrade of {script.revision} leaves something behind"
        assert await revision(empty_url) == script.revision


async def test_migrating_to_the_current_revision_changes_nothing(clone_url: str) -> None:
    before = await shape(clone_url)

    await upgrade(settings_of(clone_url), head())

    assert await shape(clone_url) == before


async def test_the_models_and_the_schema_agree(database_url: str) -> None:
    engine = create_engine(settings_of(database_url))

    async with engine.connect() as connection:
        differences = await connection.run_sync(_differences)
    await engine.dispose()

    assert differences == [], 'write a migration: make migration NAME="…"'


def _differences(connection: Connection) -> list[Any]:
    options = {
        "compare_type": True,
        "compare_server_default": True,
        "include_name": is_ours,
    }
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata))


async def test_the_constraints_of_the_models_and_the_schema_agree(database_url: str, empty_url: str) -> None:
    # Autogenerate ignores check constraints. Here PostgreSQL formats those of the models and of the migrations.
    tables = list(Base.metadata.tables)
    engine = create_engine(settings_of(empty_url))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()

    declared, migrated = await _checks(empty_url, tables), await _checks(database_url, tables)
    differences = sorted(set(declared) ^ set(migrated))
    assert not differences, (
        f"the constraints of the models and of the migrations differ; write a migration: {differences}"
    )


async def _checks(url: str, tables: list[str]) -> list[tuple[Any, ...]]:
    query = """SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
               WHERE contype IN ('c', 'f', 'u', 'p') AND conrelid::regclass::text = ANY($1) ORDER BY 1, 2"""
    async with connected(url) as connection:
        return [tuple(row) for row in await connection.fetch(query, tables)]


async def test_concurrent_runners_all_succeed(empty_url: str) -> None:
    settings = settings_of(empty_url)

    await asyncio.gather(*(upgrade(settings) for _ in range(3)))

    assert await revision(empty_url) == head()


async def polls_for_the_lock(proxy: Proxy, runner_: asyncio.Task[Any]) -> None:
    """Wait until a runner has tried several times to get the lock, each time in a new transaction."""
    async with asyncio.timeout(TIMEOUT):
        # A runner that gets the lock sends fewer rollbacks.
        while proxy.sent.count(b"ROLLBACK") < 8:
            assert not runner_.done()
            await asyncio.sleep(0.01)


async def test_a_runner_waits_for_another_runner(clone_url: str) -> None:
    async with connected(clone_url) as other, proxied(clone_url) as proxy:
        await other.execute("SELECT pg_advisory_lock($1)", runner._LOCK_KEY)
        waiting = asyncio.create_task(upgrade(settings_of(proxy.url)))
        await polls_for_the_lock(proxy, waiting)

        await other.execute("SELECT pg_advisory_unlock($1)", runner._LOCK_KEY)
        await asyncio.wait_for(waiting, TIMEOUT)


async def test_a_runner_gives_up_waiting_after_its_timeout(clone_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_RUNNER_LOCK_TIMEOUT", 0)
    async with connected(clone_url) as other:
        await other.execute("SELECT pg_advisory_lock($1)", runner._LOCK_KEY)

        with pytest.raises(MigrationError, match="another migration has been running for 0 s; try again"):
            await upgrade(settings_of(clone_url))


async def test_a_waiting_runner_has_no_open_transaction(clone_url: str) -> None:
    query = """SELECT count(*) FROM pg_stat_activity WHERE state = 'idle' AND xact_start IS NULL
               AND application_name LIKE '%-migrate' AND datname = current_database()"""
    async with connected(clone_url) as other, proxied(clone_url) as proxy:
        await other.execute("SELECT pg_advisory_lock($1)", runner._LOCK_KEY)
        waiting = asyncio.create_task(upgrade(settings_of(proxy.url)))
        await polls_for_the_lock(proxy, waiting)

        # With an open transaction, a concurrent index build of the other runner would wait for this one: a deadlock.
        async with asyncio.timeout(TIMEOUT):
            while not await other.fetchval(query):  # noqa: ASYNC110  # Another connection changes the value.
                await asyncio.sleep(0.01)
        assert not waiting.done()
        await other.execute("SELECT pg_advisory_unlock($1)", runner._LOCK_KEY)
        await waiting


async def test_a_blocked_migration_fails_after_its_timeout_and_changes_nothing(
    clone_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_TABLE_LOCK_TIMEOUT", 0)
    before = await shape(clone_url)
    async with connected(clone_url) as other:
        transaction = other.transaction()
        await transaction.start()
        for table in Base.metadata.tables:
            await other.execute(f"LOCK TABLE {table} IN ACCESS SHARE MODE")

        with pytest.raises(MigrationError) as blocked:
            await upgrade(settings_of(clone_url, migration_lock_timeout="200ms"), "base")
        await transaction.rollback()

    assert str(blocked.value) == "a migration failed and was rolled back: canceling statement due to lock timeout"
    # Downgrades before the blocked one stay applied. They can only have removed what no model uses.
    assert set(await shape(clone_url)) <= set(before)
    await upgrade(settings_of(clone_url))
    assert await shape(clone_url) == before


async def test_other_statements_run_while_a_migration_retries_its_lock(
    clone_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runner, "_TABLE_LOCK_PAUSE", 0.3)
    settings = settings_of(clone_url, migration_lock_timeout="50ms")
    await upgrade(settings, "base")
    await upgrade(settings, "20261123_users")
    async with connected(clone_url) as other, connected(clone_url) as user:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("LOCK TABLE users IN ACCESS SHARE MODE")
        waiting = asyncio.ensure_future(upgrade(settings, "base"))
        passed = 0
        async with asyncio.timeout(30):
            while len(caplog.records) < 2:
                await user.fetchval("SELECT count(*) FROM users")
                passed += bool(caplog.records)
                await asyncio.sleep(0.01)
        await transaction.rollback()
        await waiting

    assert await revision(clone_url) is None
    assert {record.getMessage() for record in caplog.records} == {"migration did not get its lock and will be retried"}
    # These statements ran between two attempts.
    assert passed >= 5


@pytest.fixture
def _broken_third(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three migrations. The last one fails at its second statement."""
    versions = tmp_path / "versions"
    versions.mkdir()
    for source in ("env.py", "script.py.mako"):
        (tmp_path / source).write_text((VERSIONS.parent / source).read_text())
    statements = ("CREATE TABLE one (id int)", "CREATE TABLE two (id int)", "CREATE TABLE three (id int)")
    for number, statement in enumerate(statements, start=1):
        more = '\n    op.execute("SELECT 1 / 0")' if number == len(statements) else ""
        (versions / f"{number}.py").write_text(
            f"from alembic import op\nrevision = '{number}'\n"
            f"down_revision = {str(number - 1) if number > 1 else None!r}\n\n\n"
            f'def upgrade() -> None:\n    op.execute("{statement}"){more}\n'
        )
    monkeypatch.setattr(revisions, "DIRECTORY", tmp_path)


@pytest.mark.usefixtures("_broken_third")
async def test_only_the_failed_migration_is_rolled_back(empty_url: str) -> None:
    with pytest.raises(MigrationError) as failed:
        await upgrade(settings_of(empty_url))

    assert str(failed.value) == "a migration failed and was rolled back: division by zero"
    assert await revision(empty_url) == "2"
    async with connected(empty_url) as connection:
        tables = {
            row[0] for row in await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        }
    assert tables == {"alembic_version", "one", "two"}


async def test_migrations_can_run_again_after_a_failure(empty_url: str) -> None:
    async with connected(empty_url) as connection:
        await connection.execute("CREATE TABLE users (id int)")
    with pytest.raises(MigrationError, match='relation "users" already exists'):
        await upgrade(settings_of(empty_url))
    async with connected(empty_url) as connection:
        await connection.execute("DROP TABLE users")

    await upgrade(settings_of(empty_url))

    await check(settings_of(empty_url))


async def test_the_written_sql_creates_the_same_schema(empty_url: str, clone_url: str, database_url: str) -> None:
    async with connected(empty_url) as connection:
        for part in TRANSACTION_OR_STATEMENT.findall(sql()):
            await connection.execute(part)

    assert await shape(empty_url) == await shape(database_url)
    assert await revision(empty_url) == head()
    await check(settings_of(clone_url))


def test_the_written_sql_sets_timeouts() -> None:
    written = sql()

    assert written.index("SET lock_timeout") < written.index("CREATE TABLE")
    assert "SET statement_timeout" in written


def test_the_written_sql_runs_each_migration_in_a_transaction() -> None:
    parts = TRANSACTION_OR_STATEMENT.findall(sql())
    outside = [part for part in parts if not part.startswith("BEGIN;")]

    assert sum(part.count("version_num=") + part.count("INSERT INTO alembic_version") for part in parts) == len(
        scripts()
    )
    # PostgreSQL refuses to build an index concurrently inside a transaction. A constraint is validated without the lock that added it.
    allowed = r"SET |(CREATE|DROP) INDEX CONCURRENTLY |ALTER TABLE \w+ VALIDATE CONSTRAINT "
    assert [part for part in outside if not re.match(allowed, part)] == []


def test_squawk_accepts_the_migrations(tmp_path: Path) -> None:
    file = tmp_path / "migrations.sql"
    file.write_text(sql())

    ended = subprocess.run(
        [Path(sys.executable).with_name("squawk"), "--config", ROOT / ".squawk.toml", file],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout


def test_the_migrations_have_one_head_and_one_base() -> None:
    # Raises when two migrations follow the same one.
    assert head() == scripts()[-1].revision
    assert sum(script.down_revision is None for script in scripts()) == 1


@pytest.mark.parametrize("script", scripts(), ids=lambda script: script.revision)
def test_the_name_of_a_migration_has_its_date_and_its_purpose(script: Any) -> None:
    name = Path(script.path).stem

    assert re.fullmatch(r"20\d{6}_[a-z][a-z0-9_]{2,40}", name), f"rename {name}.py to YYYYMMDD_what_it_does.py"
    assert script.revision == name, f"the revision in {name}.py is {script.revision}; change it to {name}"
    assert script.doc.endswith("."), f"the docstring of {name}.py must be a sentence about its purpose"


@pytest.mark.parametrize("script", scripts(), ids=lambda script: script.revision)
def test_a_migration_is_not_dated_before_those_that_it_follows(script: Any) -> None:
    # What arrives with an upgrade follows the migrations of the clone, which may be younger.
    is_joined = "  # Set by make upgrade; before: " in Path(script.path).read_text()

    assert is_joined or [parent for parent in parents(script) if parent[:8] > script.revision[:8]] == []


def migration_files() -> list[Path]:
    return sorted(file for file in VERSIONS.iterdir() if file.suffix in {".py", ".sql"} and file.name != "__init__.py")


def test_a_migration_never_changes() -> None:
    recorded = dict(line.split("  ", 1)[::-1] for line in DIGESTS.read_text().splitlines())

    for file in migration_files():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()

        assert recorded.get(file.name, digest) == digest, (
            f"{file.name} has changed. Databases that have run it will not run it again; write a new migration instead. "
            f"If the migration was never committed, update its digest in tests/{DIGESTS.name}: {digest}"
        )


def test_every_migration_has_a_recorded_digest() -> None:
    recorded = {line.split("  ", 1)[1] for line in DIGESTS.read_text().splitlines()}

    missing = [file for file in migration_files() if file.name not in recorded]

    lines = "".join(f"\n{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in missing)
    assert not missing, f"add to tests/{DIGESTS.name}, which protects the files from changes:{lines}"
    assert not recorded - {file.name for file in migration_files()}, (
        "a migration that databases have run was deleted; restore it"
    )


@pytest.mark.parametrize("number", [90_000, 140_020])
async def test_an_old_server_is_refused(number: int) -> None:
    class OldServer:
        """A connection to an old server, with the two methods that the check calls."""

        async def scalar(self, _statement: object) -> str:
            return str(number)

        async def rollback(self) -> None:
            return

    connection: Any = OldServer()

    with pytest.raises(MigrationError) as refused:
        await runner._check_server_version(connection)

    assert str(refused.value) == f"PostgreSQL {number // 10_000} is too old; version 15 or newer is required"


def test_the_alembic_command_works(clone_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", clone_url)

    # Raises if autogenerate would create a migration.
    command.check(config())
