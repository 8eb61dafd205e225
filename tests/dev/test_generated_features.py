"""Features of every type, generated into one copy of the repository, pass the checks and cover themselves by their tests."""

import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from app.dev.generator.plan import plan
from tests.conftest import ROOT, make_settings
from tests.factories import PASSWORD, make_user
from tests.listings import copy_repository, listings, run
from tests.servers import paste, real_server

pytestmark = pytest.mark.slow

README = [listing.text for listing in listings(ROOT / "README.md")]
(NOTES,) = (shlex.split(line)[2:] for text in README for line in text.splitlines() if line.startswith("make feature"))
SPECS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "notes": (NOTES[1].removeprefix("FIELDS="), {}),
    "projects": ("name:str:unique number:int:unique code:str:optional:unique is_open:bool", {}),
    "categories": ("name:str:unique note:text:optional", {"scope": "catalog"}),
    "legal_pages": ("body:text:optional", {"scope": "legal_pages"}),
    "testimonials": ("at:datetime", {}),
    "articles": (
        "slug:str:unique title:str body:text state:enum(draft,sent) category:ref(categories):optional notes:refs(notes)",
        {"is_public": True},
    ),
    "comments": ("body:text article:ref(articles)", {"is_public": True}),
    "orders": (
        (
            "number:int:unique project:ref(projects) category:ref(categories) testimonial:ref(testimonials):optional "
            "author:ref(notes) editor:ref(notes) watched:refs(projects) labels:refs(categories):optional"
        ),
        {},
    ),
    "products": ("name:str category:ref(categories) is_sold:bool articles:refs(articles)", {"scope": "products"}),
    "purchase_orders": (
        (
            "reference:str amount:decimal due:date:optional state:enum(draft,sent,paid) paid:bool quantity:int "
            "placed_at:datetime:optional supplier:uuid:optional memo:text day:date discount:decimal:optional "
            "priority:enum(low,high):optional"
        ),
        {},
    ),
}
# A clone may have features with these names.
FEATURES = {name: spec for name, spec in SPECS.items() if not (ROOT / "src" / "app" / name).exists()}
PYTEST = (sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider")
CONVENTIONS = [f"tests/test_{name}.py" for name in ("access", "boundaries", "conventions", "migrations", "statements")]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with all features."""
    copy = tmp_path_factory.mktemp("generated")
    copy_repository(ROOT, copy)
    with suppress(FileNotFoundError, shutil.Error):
        shutil.copytree(ROOT / ".mypy_cache", copy / ".mypy_cache", ignore=shutil.ignore_patterns("generated_client"))
    for name, (fields, options) in FEATURES.items():
        plan(copy, name, fields, **options).write()
    return copy


def program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


async def test_the_features_have_the_style_and_the_types_of_the_repository(copy: Path) -> None:
    folders = [f"{root}/{name}" for name in FEATURES for root in ("src/app", "tests")]

    await run(copy, program("ruff"), "check", "src", "tests")
    await run(copy, program("ruff"), "format", "--check", "src", "tests")
    await run(copy, program("mypy"), *folders, "src/app/features.py")


async def test_the_features_keep_the_import_contracts(copy: Path) -> None:
    contracts = copy / "contracts.toml"
    contracts.write_text(await run(copy, sys.executable, "-m", "app.dev", "contracts"))

    output = await run(copy, program("lint-imports"), "--no-cache", "--config", str(contracts))

    assert "The queries of purchase_orders are private to it KEPT" in output


async def test_the_migrations_are_safe_and_match_the_models(copy: Path, clone_url: str) -> None:
    sql = copy / "migrations.sql"
    sql.write_text(await run(copy, sys.executable, "-m", "app.dev", "migrations"))

    await run(copy, program("squawk"), str(sql))
    await run(copy, sys.executable, "-m", "app", "migrate", DATABASE_URL=clone_url, APP_ENVIRONMENT="local")
    output = await run(copy, sys.executable, "-m", "alembic", "check", DATABASE_URL=clone_url)

    assert "No new upgrade operations detected" in output


async def test_the_tests_of_the_features_cover_them(copy: Path, template_url: str) -> None:
    coverage = [f"--cov=app.{name}" for name in FEATURES]
    options = ("--cov-branch", "--cov-fail-under=100", "--cov-report=term-missing")

    output = await run(
        copy, *PYTEST, *coverage, *options, *(f"tests/{name}" for name in FEATURES), DATABASE_URL=template_url
    )

    assert re.search(r"^TOTAL +[1-9]", output, re.MULTILINE), output


@pytest.mark.skipif(not {"articles", "notes"} <= FEATURES.keys(), reason="this repository has features of these names")
async def test_references_survive_concurrent_changes(copy: Path, template_url: str) -> None:
    shutil.copy(ROOT / "tests" / "dev" / "generated_races.py", copy / "tests" / "races" / "test_generated.py")

    output = await run(copy, *PYTEST, "tests/races/test_generated.py", DATABASE_URL=template_url)

    assert re.search(r"^3 passed", output, re.MULTILINE), output


async def test_the_features_keep_the_conventions(copy: Path, template_url: str) -> None:
    relevant = (
        f"{' or '.join(FEATURES)} or table_names or test_boundaries or test_conventions or own_downgrade or test_migr"
    )

    output = await run(copy, *PYTEST, *CONVENTIONS, "-k", relevant, DATABASE_URL=template_url)

    assert re.search(r"^[1-9][0-9]+ passed", output, re.MULTILINE), output


@pytest.mark.skipif("notes" not in FEATURES, reason="this repository has notes of its own")
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_the_lines_of_the_readme_create_list_and_change_a_note(
    copy: Path, hasher: PasswordHasher, clone_url: str
) -> None:
    log_in, notes = (text for text in README if "curl" in text)
    await run(copy, sys.executable, "-m", "app", "migrate", DATABASE_URL=clone_url, APP_ENVIRONMENT="local")
    database = Database(make_settings(clone_url).database)
    async with database.begin() as session:
        await make_user(session, hasher, email="admin@example.com", role="admin")
    await database.dispose()

    async with real_server(clone_url, PYTHONPATH=str(copy / "src")) as server:
        lines = (log_in + notes).replace("http://127.0.0.1:8000", server.base_url)
        output = await paste(lines, PASSWORD=PASSWORD)

    assert output.count('"title":"Milk"') == 3
    assert output.count('"body":"Two litres"') == 1
