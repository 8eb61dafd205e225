"""`make migrations`: types that a downgrade does not drop, and migrations that fail."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic import command

from app.dev.__main__ import program
from app.migrations import revisions, runner, scripts
from tests.conftest import ROOT

MIGRATIONS = ROOT / "src" / "app" / "migrations"

type Check = Callable[[], tuple[int, str, str]]


@pytest.fixture
def versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory that the application uses for its migrations."""
    for name in ("env.py", "script.py.mako"):
        shutil.copy(MIGRATIONS / name, tmp_path)
    monkeypatch.setattr(revisions, "DIRECTORY", tmp_path)
    revisions._revisions.cache_clear()
    (tmp_path / "versions").mkdir()
    yield tmp_path / "versions"
    revisions._revisions.cache_clear()


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """Run the check. Return its exit code, its output and its error output."""

    def run() -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["app.dev", "migrations"])
        with pytest.raises(SystemExit) as ended:
            program()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def write(versions: Path, up: str, down: str, *, name: str = "one", parent: str | None = None) -> None:
    (versions / f"{name}.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n\n"
        f"revision = {name!r}\ndown_revision = {parent!r}\n\n\n"
        f"def upgrade():\n    {up}\n\n\ndef downgrade():\n    {down}\n"
    )


TABLE = 'op.create_table("paints", sa.Column("colour", sa.Enum("red", "green", name="colour")))'


def test_the_migrations_of_the_application_drop_their_types(check: Check) -> None:
    assert check() == (0, runner.sql(), "")


@pytest.mark.parametrize(
    ("up", "name"),
    [
        (TABLE, "colour"),
        ("op.execute(\"CREATE TYPE colour AS ENUM ('red')\")", "colour"),
        ('op.execute("create type point3 as (x int, y int, z int)")', "point3"),
        ('op.execute("CREATE DOMAIN grade AS int CHECK (VALUE > 0)")', "grade"),
    ],
)
def test_a_type_that_a_downgrade_does_not_drop_is_named(check: Check, versions: Path, up: str, name: str) -> None:
    write(versions, up, 'op.execute("DROP TABLE IF EXISTS paints")')

    sentence = (
        f"one.py creates the type {name}, and its downgrade does not drop it; "
        f'end downgrade() with: op.execute("DROP TYPE {name}")\n'
    )
    assert check() == (1, "", sentence)


@pytest.mark.parametrize(
    "down",
    [
        'op.drop_table("paints"); op.execute("DROP TYPE colour")',
        'op.drop_table("paints"); op.execute("drop type if exists other, colour CASCADE")',
        'op.drop_table("paints"); sa.Enum(name="colour").drop(op.get_bind(), checkfirst=False)',
    ],
)
def test_a_type_that_the_downgrade_drops_is_accepted(check: Check, versions: Path, down: str) -> None:
    write(versions, TABLE, down)

    code, out, error = check()

    assert (code, error) == (0, "")
    assert "CREATE TYPE colour" in out


def test_the_type_in_a_draft_of_alembic_is_named(
    check: Check, versions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(versions, "pass", "pass")
    # This is what `alembic revision --autogenerate` writes for a table with an enumeration.
    shutil.copy(MIGRATIONS / "script.py.mako", versions.parent)
    command.revision(scripts.config(), message="Paints.", rev_id="two")
    (draft,) = versions.glob("two*.py")
    drafted = draft.read_text()
    draft.write_text(drafted.replace("pass", TABLE, 1).replace("pass", 'op.drop_table("paints")', 1))
    capsys.readouterr()

    code, _, error = check()

    assert code == 1
    assert error.startswith("two_paints.py creates the type colour, and its downgrade does not drop it; ")


def test_invalid_migrations_are_reported(check: Check, versions: Path) -> None:
    write(versions, "pass", "pass", parent="gone")

    code, out, error = check()

    assert (code, out, error.count("\n")) == (1, "", 1)
    assert error.startswith("one.py: `down_revision` names gone, ")


@pytest.mark.parametrize(
    ("down", "sentence"),
    [
        (
            "missing()",
            "one.py, line 13: this migration fails (NameError: name 'missing' is not defined); correct the file\n",
        ),
        (
            "pass\n\n\ndel downgrade",
            (
                "one.py: this migration fails (AttributeError: module 'one_py' has no attribute 'downgrade'); "
                "correct the file\n"
            ),
        ),
    ],
)
def test_a_downgrade_that_fails_is_reported(check: Check, versions: Path, down: str, sentence: str) -> None:
    write(versions, "pass", down)

    assert check() == (1, "", sentence)
