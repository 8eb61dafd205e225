"""`docs/adding-a-feature.md`, followed to the letter in a copy of the repository."""

import asyncio
import os
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from app.migrations.revisions import head
from tests.conftest import ROOT, outside
from tests.listings import apply, copy_repository, listings

GUIDE = ROOT / "docs" / "adding-a-feature.md"
LISTINGS = [listing for listing in listings(GUIDE) if listing.path]
NEW = [listing.path for listing in LISTINGS if listing.path and listing.language == "python"]
(MIGRATION,) = (listing for listing in LISTINGS if "/versions/" in str(listing.path))
TOUCHED = {listing.path for listing in LISTINGS if listing.language == "diff"}
PYTEST = (sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider")
# The rules that bind a new feature; the rest of these files would pass or fail without it just the same.
BINDING = (
    "notes or table_names or test_boundaries or test_conventions "
    "or own_downgrade or schema_agree or in_use or by_its_date or is_recorded"
)
CONVENTIONS = [f"tests/test_{name}.py" for name in ("access", "boundaries", "conventions", "migrations")]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which somebody has followed the guide."""
    copy = tmp_path_factory.mktemp("guide")
    copy_repository(ROOT, copy)
    # What has been checked in the original need not be checked again. Somebody may be checking it at this moment: what
    # cannot be copied then is checked again after all.
    with suppress(FileNotFoundError, shutil.Error):
        shutil.copytree(ROOT / ".mypy_cache", copy / ".mypy_cache", ignore=shutil.ignore_patterns("generated_client"))
    for listing in LISTINGS:
        apply(listing, copy)
    return copy


async def run(copy: Path, *command: str, **environment: str) -> str:
    """Run a command in the copy, and give what it wrote."""
    inherited = {name: value for name, value in outside().items() if not name.startswith(("APP_", "PYTEST_", "COV"))}
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=copy,
        env=inherited | {"PYTHONPATH": str(copy / "src")} | environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_the_copy_is_what_is_imported(copy: Path) -> None:
    output = await run(copy, sys.executable, "-c", "import app.notes; print(app.notes.__file__)")

    assert output.strip() == str(copy / "src" / "app" / "notes" / "__init__.py")


def test_the_guide_adds_one_line_to_one_existing_file() -> None:
    assert {"src/app/features.py"} == TOUCHED
    (added,) = (listing.text.count("\n+") for listing in LISTINGS if listing.language == "diff")
    assert added == 1
    assert [path for path in NEW if (ROOT / path).exists()] == []


def test_the_guides_migration_follows_the_newest_one() -> None:
    followed = re.findall(r'^down_revision = "(.*)"$', MIGRATION.text, flags=re.MULTILINE)

    assert followed == [head()], "write the guide again: make docs"


async def test_the_guides_command_drafts_the_file_that_the_guide_shows(tmp_path: Path, clone_url: str) -> None:
    copy_repository(ROOT, tmp_path)
    for listing in LISTINGS[: LISTINGS.index(MIGRATION)]:
        apply(listing, tmp_path)
    (tmp_path / ".local").mkdir()
    (tmp_path / ".local" / "database-url").write_text(clone_url)
    (command,) = (listing.text for listing in listings(GUIDE) if "alembic revision" in listing.text)
    before = set((tmp_path / "src").rglob("*.py"))

    await run(tmp_path, "sh", "-euc", command.replace(".venv/bin/", f"{Path(sys.executable).parent}/"))

    (draft,) = set((tmp_path / "src").rglob("*.py")) - before
    assert str(draft.relative_to(tmp_path)) == MIGRATION.path
    # Black's quotes are not Alembic's.
    assert named(draft.read_text().replace("'", '"')) == named(MIGRATION.text)


def named(migration: str) -> set[str]:
    """Give what a migration says about itself, and what it makes."""
    return set(re.findall(r'^(?:down_)?revision = .*$|op\.f\("\w+"\)', migration, flags=re.MULTILINE))


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("ruff", "check", *NEW, *TOUCHED), id="style"),
        pytest.param(("ruff", "format", "--check", *NEW, *TOUCHED), id="layout"),
        pytest.param(("mypy", *NEW, *TOUCHED), id="types", marks=pytest.mark.slow),
    ],
)
async def test_what_the_guide_adds_passes_the_checks(copy: Path, command: tuple[str, ...]) -> None:
    await run(copy, str(Path(sys.executable).with_name(command[0])), *command[1:])


async def test_what_the_guide_adds_keeps_the_import_contracts(copy: Path) -> None:
    contracts = copy / "contracts.toml"
    contracts.write_text(await run(copy, sys.executable, "-m", "app.dev", "contracts"))

    said = await run(
        copy, str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--config", str(contracts)
    )

    assert "The queries of notes are private to it KEPT" in said


async def test_the_guides_migration_makes_what_its_model_says(copy: Path, clone_url: str) -> None:
    await run(copy, sys.executable, "-m", "app", "migrate", DATABASE_URL=clone_url, APP_ENVIRONMENT="local")

    said = await run(copy, sys.executable, "-m", "alembic", "check", DATABASE_URL=clone_url)

    assert "No new upgrade operations detected" in said


@pytest.mark.slow
async def test_the_guides_tests_pass_and_the_feature_keeps_the_conventions(copy: Path, template_url: str) -> None:
    said = await run(copy, *PYTEST, "tests/notes", *CONVENTIONS, "-k", BINDING, DATABASE_URL=template_url)

    assert re.search(r"^[1-9][0-9]+ passed", said, re.MULTILINE), said


@pytest.mark.skipif("GUIDE" not in os.environ, reason="takes minutes: make guide")
async def test_the_guides_tests_cover_the_feature(copy: Path, template_url: str) -> None:
    coverage = ("--cov=app.notes", "--cov-branch", "--cov-fail-under=100", "--cov-report=term-missing")

    said = await run(copy, *PYTEST, *coverage, "tests/notes", DATABASE_URL=template_url)

    assert re.search(r"^TOTAL +[1-9]", said, re.MULTILINE), said


@pytest.mark.skipif("GUIDE" not in os.environ, reason="takes minutes: make guide")
async def test_everything_passes_in_the_copy(copy: Path) -> None:
    """What the guide's reader runs before committing, environment and database included."""
    bare = dict.fromkeys(("PYTHONPATH", "DATABASE_URL", "GUIDE"), "")
    await run(copy, "git", "init", "--quiet")

    await run(copy, "make", "check", **bare)
    await run(copy, "make", "test", "ALL=1", "ARGS=--ignore=tests/test_guide.py", **bare)
