"""The listings of `docs/adding-a-feature.md` work in a copy of the repository."""

import hashlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from app.dev.generator.plan import plan
from app.migrations.revisions import head
from tests.conftest import ROOT
from tests.listings import apply, copy_repository, listings, run

pytestmark = pytest.mark.skipif(
    (ROOT / "src" / "app" / "notes").exists(), reason="this repository has the feature of the guide"
)

GUIDE = ROOT / "docs" / "adding-a-feature.md"
LISTINGS = [listing for listing in listings(GUIDE) if listing.path]
NEW = [listing.path for listing in LISTINGS if listing.path and listing.language == "python"]
(MIGRATION,) = (listing for listing in LISTINGS if "/versions/" in str(listing.path))
TOUCHED = {listing.path for listing in LISTINGS if listing.language == "diff"}
PYTEST = (sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider")
# The tests of these files that check a new feature. The result of the others does not depend on it.
RELEVANT = (
    "notes or table_names or test_boundaries or test_conventions "
    "or own_downgrade or schema_agree or in_use or its_date or not_dated or is_recorded"
)
CONVENTIONS = [f"tests/test_{name}.py" for name in ("access", "boundaries", "conventions", "migrations")]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository after all steps of the guide."""
    copy = tmp_path_factory.mktemp("guide")
    copy_repository(ROOT, copy)
    # The cache saves mypy time. It may be incomplete, because another mypy may be writing it at this moment.
    with suppress(FileNotFoundError, shutil.Error):
        shutil.copytree(ROOT / ".mypy_cache", copy / ".mypy_cache", ignore=shutil.ignore_patterns("generated_client"))
    for listing in LISTINGS:
        apply(listing, copy)
    digest = hashlib.sha256(MIGRATION.text.encode()).hexdigest()
    with (copy / "tests" / "migrations.sha256").open("a") as digests:
        digests.write(f"{digest}  {Path(str(MIGRATION.path)).name}\n")
    return copy


async def test_the_copy_is_imported(copy: Path) -> None:
    output = await run(copy, sys.executable, "-c", "import app.notes; print(app.notes.__file__)")

    assert output.strip() == str(copy / "src" / "app" / "notes" / "__init__.py")


def test_the_guide_adds_one_line_to_one_existing_file() -> None:
    assert {"src/app/features.py"} == TOUCHED
    (added,) = (listing.text.count("\n+") for listing in LISTINGS if listing.language == "diff")
    assert added == 1
    assert [path for path in NEW if (ROOT / path).exists()] == []


def test_the_command_of_the_guide_writes_its_listings() -> None:
    (command,) = (listing.text for listing in listings(GUIDE) if "make feature" in listing.text)
    name, fields = (argument.partition("=")[2] for argument in shlex.split(command)[2:])

    written = plan(ROOT, name, fields).created

    listed = {str(listing.path): listing.text for listing in LISTINGS if listing.language == "python"}
    assert undated(written) == undated(listed)


def undated(files: Mapping[str, str]) -> dict[str, str]:
    """Return the files without the date of the migration, which is today's in the one and the newest migration's in the other."""
    own = re.compile(r"20\d{6}_notes")
    return {own.sub("notes", path): own.sub("notes", text) for path, text in files.items()}


def test_the_migration_of_the_guide_follows_the_newest_one() -> None:
    followed = re.findall(r'^down_revision = "(.*)"$', MIGRATION.text, flags=re.MULTILINE)

    assert followed == [head()], "update the guide: make docs"


async def test_alembic_drafts_the_same_migration(tmp_path: Path, clone_url: str) -> None:
    copy_repository(ROOT, tmp_path)
    for listing in LISTINGS[: LISTINGS.index(MIGRATION)]:
        apply(listing, tmp_path)
    before = set((tmp_path / "src").rglob("*.py"))
    revision = Path(str(MIGRATION.path)).stem

    draft_command = ("revision", "--autogenerate", "--rev-id", revision, "-m", "notes")
    await run(tmp_path, sys.executable, "-m", "alembic", *draft_command, DATABASE_URL=clone_url)

    (draft,) = set((tmp_path / "src").rglob("*.py")) - before
    assert str(draft.relative_to(tmp_path)) == MIGRATION.path
    # Alembic writes single quotes.
    assert named(draft.read_text().replace("'", '"')) == named(MIGRATION.text)


def named(migration: str) -> set[str]:
    """Return the revisions of a migration and the names of the objects that it creates."""
    return set(re.findall(r'^(?:down_)?revision = .*$|op\.f\("\w+"\)', migration, flags=re.MULTILINE))


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("ruff", "check", *NEW, *TOUCHED), id="style"),
        pytest.param(("ruff", "format", "--check", *NEW, *TOUCHED), id="layout"),
        pytest.param(("mypy", *NEW, *TOUCHED), id="types", marks=pytest.mark.slow),
    ],
)
async def test_the_code_of_the_guide_passes_the_checks(copy: Path, command: tuple[str, ...]) -> None:
    await run(copy, str(Path(sys.executable).with_name(command[0])), *command[1:])


async def test_the_code_of_the_guide_keeps_the_import_contracts(copy: Path) -> None:
    contracts = copy / "contracts.toml"
    contracts.write_text(await run(copy, sys.executable, "-m", "app.dev", "contracts"))

    output = await run(
        copy, str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--config", str(contracts)
    )

    assert "The queries of notes are private to it KEPT" in output


async def test_the_migration_of_the_guide_matches_its_model(copy: Path, clone_url: str) -> None:
    await run(copy, sys.executable, "-m", "app", "migrate", DATABASE_URL=clone_url, APP_ENVIRONMENT="local")

    output = await run(copy, sys.executable, "-m", "alembic", "check", DATABASE_URL=clone_url)

    assert "No new upgrade operations detected" in output


@pytest.mark.slow
async def test_the_tests_of_the_guide_and_the_conventions_pass(copy: Path, template_url: str) -> None:
    output = await run(copy, *PYTEST, "tests/notes", *CONVENTIONS, "-k", RELEVANT, DATABASE_URL=template_url)

    assert re.search(r"^[1-9][0-9]+ passed", output, re.MULTILINE), output


@pytest.mark.skipif("GUIDE" not in os.environ, reason="takes minutes: make guide")
async def test_the_tests_of_the_guide_cover_the_feature(copy: Path, template_url: str) -> None:
    coverage = ("--cov=app.notes", "--cov-branch", "--cov-fail-under=100", "--cov-report=term-missing")

    output = await run(copy, *PYTEST, *coverage, "tests/notes", DATABASE_URL=template_url)

    assert re.search(r"^TOTAL +[1-9]", output, re.MULTILINE), output


@pytest.mark.skipif("GUIDE" not in os.environ, reason="takes minutes: make guide")
async def test_make_check_and_make_test_pass_in_the_copy(copy: Path) -> None:
    """Run the same commands as a reader of the guide, with a new environment and database."""
    bare = dict.fromkeys(("PYTHONPATH", "DATABASE_URL", "GUIDE"), "")
    await run(copy, "git", "init", "--quiet")

    await run(copy, "make", "check", **bare)
    await run(copy, "make", "test", "ALL=1", "ARGS=--ignore=tests/test_guide.py", **bare)
