"""`make migration`: drafts a migration in a copy of the repository."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.dev.data.draft import DraftError
from app.dev.data.draft import draft as make_draft
from app.migrations.revisions import head
from tests.conftest import ROOT
from tests.listings import copy_repository

VERSIONS = Path("src/app/migrations/versions")
USER_MODELS = Path("src/app/users/models.py")
DIGESTS = Path("tests/migrations.sha256")

type Draft = Callable[..., tuple[int, str, str]]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    copy_repository(ROOT, tmp_path)
    return tmp_path


@pytest.fixture
def draft(copy: Path, template_url: str) -> Draft:
    """Run the command in the copy, on the server of the tests. Return its exit code, its output and its error output."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("APP_", "COV", "PYTEST_"))}
    variables = {"PYTHONPATH": str(copy / "src"), "DATABASE_URL": template_url}

    def run(name: str) -> tuple[int, str, str]:
        ended = subprocess.run(
            [sys.executable, "-m", "app.dev", "migration"],
            cwd=copy,
            env=inherited | variables | {"MIGRATION_NAME": name},
            capture_output=True,
            text=True,
            check=False,
        )
        return ended.returncode, ended.stdout, ended.stderr

    return run


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def add_nickname(copy: Path) -> None:
    edit(
        copy / USER_MODELS,
        "    full_name: Mapped[str | None]\n",
        "    full_name: Mapped[str | None]\n    nickname: Mapped[str | None]\n",
    )


def drafted(copy: Path) -> list[Path]:
    return sorted(
        set((copy / VERSIONS).glob("*.py")) - {copy / VERSIONS / path.name for path in (ROOT / VERSIONS).iterdir()}
    )


def test_a_draft_is_dated_formatted_and_recorded(copy: Path, draft: Draft) -> None:
    add_nickname(copy)

    code, output, error = draft("add nickname")

    assert (code, error) == (0, "")
    (path,) = drafted(copy)
    assert path.stem == f"{max(f'{datetime.now(UTC):%Y%m%d}', head()[:8])}_add_nickname"
    assert output.startswith(f"Drafted {path.relative_to(copy)} ")
    text = path.read_text()
    assert text.startswith('"""Add nickname."""\n')
    assert f'revision = "{path.stem}"\ndown_revision = "{head()}"\n' in text
    assert "procrastinate" not in text
    assert text.count("op.") == 2
    digests = (copy / DIGESTS).read_text().splitlines()
    assert f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" in digests
    assert sorted(digests, key=lambda line: line.split("  ")[1]) == digests
    for check in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *check, str(path)], cwd=copy, check=True)


def test_equal_models_and_migrations_give_no_draft(copy: Path, draft: Draft) -> None:
    assert draft("nothing") == (0, "Nothing to migrate: the migrations create what the models declare.\n", "")
    assert drafted(copy) == []
    assert (copy / DIGESTS).read_text() == (ROOT / DIGESTS).read_text()


def test_a_declared_choice_that_the_migrations_do_not_know_is_told(copy: Path, draft: Draft) -> None:
    roles = copy / "src/app/users/roles.py"
    edit(roles, '    ADMIN = "admin"\n', '    ADMIN = "admin"\n    EDITOR = "editor"\n')

    code, output, error = draft("editors")

    assert (code, error) == (0, "")
    assert "the check constraint ck_users_role of users" in output
    assert "editor" in output
    (path,) = drafted(copy)
    assert "    pass\n" in path.read_text()


def test_an_enumeration_is_told(copy: Path, draft: Draft) -> None:
    add_nickname(copy)
    column = 'mapped_column(Enum("a", "b", name="kind"))'
    edit(copy / USER_MODELS, "nickname: Mapped[str | None]", f"nickname: Mapped[str | None] = {column}")
    edit(copy / USER_MODELS, "from sqlalchemy import ", "from sqlalchemy import Enum, ")
    with (copy / USER_MODELS).open("a") as models:
        models.write('\n\nclass Paint(Base):\n    __tablename__ = "paints"\n    id: Mapped[PrimaryKey]\n')
        models.write('    colour: Mapped[str] = mapped_column(Enum("red", name="colour"))\n')

    code, output, _ = draft("kinds")

    assert code == 0
    assert "Alembic does not draft the enumeration kind of users: the migrations have none, the models a, b." in output
    assert "kinds.py creates the type colour, and its downgrade does not drop it" in output


def test_two_heads_are_refused(copy: Path, draft: Draft) -> None:
    parent = next(path for path in (copy / VERSIONS).glob("*.py") if f'revision = "{head()}"' in path.read_text())
    (copy / VERSIONS / "20261130_other.py").write_text(parent.read_text().replace(f'"{head()}"', '"20261130_other"'))

    code, output, error = draft("add nickname")

    assert (code, output, error.count("\n")) == (1, "", 1)
    assert "are the newest migrations of separate branches; merge them" in error


def test_a_name_that_is_taken_is_refused(copy: Path, draft: Draft) -> None:
    add_nickname(copy)
    draft("add nickname")

    code, output, error = draft("add nickname")

    assert (code, output) == (1, "")
    assert "_add_nickname.py exists already. Choose another NAME" in error


@pytest.mark.parametrize("name", ["", "  ", '"""', "1\n2", "../up"])
def test_a_name_that_cannot_name_a_file_is_refused(name: str) -> None:
    with pytest.raises(DraftError, match=r"Name the migration with letters, digits and spaces: make migration NAME="):
        list(make_draft(ROOT, "postgresql+asyncpg://nowhere", name))
