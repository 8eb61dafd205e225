"""The database of `make run` loses the tables of a removed feature, and keeps those of later migrations."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import make_url

from app.dev import run as make_run
from app.dev.removal import command
from app.dev.removal.errors import RemovalError
from app.dev.removal.feature import Installed
from app.dev.removal.local import take_back
from app.dev.removal.plan import Removal
from app.migrations import revisions

_TABLES = "SELECT tablename FROM pg_tables WHERE tablename IN ('one', 'two', 'three', 'four') ORDER BY tablename"
_VERSION = "SELECT version_num FROM alembic_version"


@pytest.fixture
def migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Four migrations, each with a table of its name."""
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    for before, name in ((None, "one"), ("one", "two"), ("two", "three"), ("three", "four")):
        text = f'from alembic import op\n\nrevision = "{name}"\ndown_revision = {before!r}\n\n\ndef upgrade():\n    pass\n\n\n'
        (versions / f"{name}.py").write_text(f'{text}def downgrade():\n    op.drop_table("{name}")\n')
    monkeypatch.setattr(revisions, "DIRECTORY", versions.parent)
    revisions._revisions.cache_clear()
    yield
    monkeypatch.undo()
    revisions._revisions.cache_clear()


def execute(url: str, *statements: str) -> list[str]:
    """Execute statements on a connection of their own, and return the first column of the last one."""

    async def fetch() -> list[str]:
        connection = await asyncpg.connect(
            make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        )
        try:
            rows = [await connection.fetch(statement) for statement in statements]
        finally:
            await connection.close()
        return [row[0] for row in rows[-1]]

    return asyncio.run(fetch())


@pytest.fixture
def migrated(migrations: None, clone_url: str) -> str:  # noqa: ARG001  # The files that this database has applied.
    """A database at the third migration."""
    tables = [f"CREATE TABLE {name} ()" for name in ("one", "two", "three")]
    execute(clone_url, *tables, "UPDATE alembic_version SET version_num = 'three'")
    return clone_url


@pytest.mark.parametrize(
    ("undone", "found", "tables", "version"),
    [
        (["three"], ["three"], ["one", "two"], "two"),
        (["two"], ["two"], ["one", "three"], "three"),
        (["two", "three"], ["three", "two"], ["one"], "one"),
        (["two", "four"], ["two"], ["one", "three"], "three"),
        (["four"], [], ["one", "three", "two"], "three"),
    ],
)
def test_only_the_tables_of_the_feature_are_dropped(
    migrated: str, undone: list[str], found: list[str], tables: list[str], version: str
) -> None:
    written: list[str] = []

    assert take_back(migrated, undone, lambda: written.append("files")) == found

    assert execute(migrated, _TABLES) == tables
    assert execute(migrated, _VERSION) == [version]
    assert written == ["files"]


def test_the_tables_stay_if_the_files_cannot_be_deleted(migrated: str) -> None:
    def refuse() -> None:
        raise OSError(30, "Read-only file system")

    with pytest.raises(OSError, match="Read-only"):
        take_back(migrated, ["three"], refuse)

    assert execute(migrated, _TABLES) == ["one", "three", "two"]
    assert execute(migrated, _VERSION) == ["three"]


def test_a_database_without_a_schema_has_nothing_to_lose(migrated: str) -> None:
    execute(migrated, "DROP TABLE alembic_version, one, two, three")

    assert take_back(migrated, ["three"], lambda: None) == []


@pytest.mark.usefixtures("migrations")
def test_a_database_of_a_newer_release_is_left_alone(clone_url: str) -> None:
    execute(clone_url, "UPDATE alembic_version SET version_num = 'newer'")

    with pytest.raises(RemovalError, match="The database of make run is at revision newer"):
        take_back(clone_url, ["three"], lambda: pytest.fail("The files were deleted"))


@pytest.fixture
def removal(tmp_path: Path) -> Removal:
    """A removal of a feature that consists of one file and the third migration."""
    path = tmp_path / "src/app/violins/models.py"
    path.parent.mkdir(parents=True)
    path.write_text("")
    return Removal(
        Installed(tmp_path, "violins", ["src/app/violins"]), ["src/app/violins/models.py"], {}, undone=["three"]
    )


def test_the_running_database_of_the_clone_is_taken_back(
    removal: Removal, migrated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_run, "LOCAL", tmp_path / ".local")
    (tmp_path / ".local/postgres").mkdir(parents=True)
    (tmp_path / ".local/database-url").write_text(migrated)

    said = list(command.carry_out(removal))

    assert "The database of make run no longer has three." in said
    assert execute(migrated, _TABLES) == ["one", "two"]
    assert not (tmp_path / "src/app/violins").exists()


def test_a_clone_without_a_database_only_loses_its_files(
    removal: Removal, migrated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_run, "LOCAL", tmp_path / ".local")
    monkeypatch.setenv("DATABASE_URL", migrated)

    list(command.carry_out(removal))

    assert execute(migrated, _TABLES) == ["one", "three", "two"]
    assert not (tmp_path / "src/app/violins").exists()
