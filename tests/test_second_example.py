"""The listings of `docs/second-example.md` work in a copy of the repository."""

import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.listings import RUN, apply, copy_repository, listings, run

pytestmark = pytest.mark.skipif(
    (ROOT / "src" / "app" / "essays").exists(), reason="this repository has the feature of the page"
)

PAGE = ROOT / "docs" / "second-example.md"
PYTEST = ("python", "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider")
COVERAGE = ("--cov=app.essays", "--cov=app.users.views", "--cov-branch", "--cov-fail-under=100", "--cov-report=term")
# The tests of these files that check a new feature. The result of the others does not depend on it.
CONVENTIONS = [f"tests/test_{name}.py" for name in ("access", "boundaries", "conventions", "migrations", "statements")]
RELEVANT = "essays or table_names or test_boundaries or test_conventions or own_downgrade or test_migr"
# Without `setup`: the copy has the environment of this run.
MAKE = "make -o setup"


@pytest.fixture(scope="module")
async def copy(tmp_path_factory: pytest.TempPathFactory, template_url: str) -> Path:
    """A copy of the repository after all steps of the page."""
    copy = tmp_path_factory.mktemp("second")
    copy_repository(ROOT, copy)
    (copy / ".venv").symlink_to(sys.prefix)
    # The cache saves mypy time. It may be incomplete, because another mypy may be writing it at this moment.
    with suppress(FileNotFoundError, shutil.Error):
        shutil.copytree(ROOT / ".mypy_cache", copy / ".mypy_cache", ignore=shutil.ignore_patterns("generated_client"))
    for listing in listings(PAGE):
        if listing.path == RUN:
            await run(copy, "sh", "-euc", listing.text.replace("make", MAKE), DATABASE_URL=template_url)
        else:
            apply(listing, copy)
    return copy


async def test_the_tests_of_the_page_pass_and_cover_the_feature(copy: Path, template_url: str) -> None:
    output = await run(copy, *PYTEST, *COVERAGE, "tests/essays", DATABASE_URL=template_url)

    assert re.search(r"^TOTAL +[1-9]", output, re.MULTILINE), output


async def test_the_listings_have_the_style_of_the_repository(copy: Path) -> None:
    folders = ("src/app/essays", "src/app/users", "src/app/migrations/versions", "tests/essays")

    await run(copy, "ruff", "check", *folders)
    await run(copy, "ruff", "format", "--check", *folders)


@pytest.mark.slow
async def test_make_check_passes_in_the_copy(copy: Path) -> None:
    output = await run(copy, *MAKE.split(), "check")

    assert "The queries of essays are private to it KEPT" in output


@pytest.mark.slow
async def test_the_conventions_are_kept_in_the_copy(copy: Path, template_url: str) -> None:
    output = await run(copy, *PYTEST, *CONVENTIONS, "-k", RELEVANT, DATABASE_URL=template_url)

    assert re.search(r"^[1-9][0-9]+ passed", output, re.MULTILINE), output


@pytest.mark.slow
async def test_make_seed_adds_the_essays(copy: Path, clone_url: str) -> None:
    await run(copy, "python", "-m", "app", "migrate", DATABASE_URL=clone_url, APP_ENVIRONMENT="local")

    output = await run(copy, *MAKE.split(), "seed", DATABASE_URL=clone_url, APP_ENVIRONMENT="local")

    assert "essays: added Notes on the engine, Nanoseconds" in output
