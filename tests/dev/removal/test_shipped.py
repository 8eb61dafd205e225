"""The removable parts of this project are removed in a copy, and the checks and tests of the copy pass.

`make removals` removes each one alone, and runs all tests.
"""

import os
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from app.dev.generator import edit
from app.dev.removal import shipped
from app.dev.removal.errors import RemovalError
from app.dev.removal.plan import plan
from tests.conftest import ROOT
from tests.dev.removal.conftest import commit
from tests.dev.test_generated_features import PYTEST, program
from tests.listings import run

PRESENT = [
    *(name for name in shipped.REMOVABLE if (ROOT / "src" / "app" / name).exists()),
    *(name for name, paths in shipped.PARTS.items() if (ROOT / paths[0]).exists()),
]
IS_FULL = os.environ.get("REMOVALS") == "full"
# What each copy loses, part by part. Types and tests are checked at its end.
LOSSES = [[name] for name in PRESENT] if IS_FULL else [PRESENT]
# The tests that concern every operation, event, setting, document or file. `make removals` runs all tests.
COMMON = ("boundaries", "conventions", "documents", "main", "security_report", "statements", "upgrading")


def test_the_parts_are_told_to_the_developer(committed: Path) -> None:
    with pytest.raises(RemovalError) as error:
        plan(committed, "auth")

    assert all(name in str(error.value) for name in PRESENT)


def test_every_shipped_feature_stays_or_can_be_removed() -> None:
    listed = edit.listed((ROOT / edit.FILE).read_text())

    assert {*shipped.KEPT, *shipped.REMOVABLE} >= {*listed[: listed.index("account") + 1]}
    assert not {*shipped.KEPT} & {*shipped.REMOVABLE, *shipped.PARTS}


@pytest.mark.parametrize("name", PRESENT)
def test_no_document_refers_to_a_page_or_a_test_that_is_deleted(committed: Path, name: str) -> None:
    removal = plan(committed, name)
    kept = [path for path in (committed / "docs").glob("*.md") if f"docs/{path.name}" not in removal.deleted]
    texts = [removal.changed.get(path.relative_to(committed).as_posix()) or path.read_text() for path in kept]

    for path in removal.deleted:
        page = path.removeprefix("docs/")
        assert not any(f"]({page})" in text or f"`{path}`" in text for text in texts), path


@pytest.mark.slow
@pytest.mark.parametrize("names", LOSSES, ids=", ".join)
async def test_the_checks_and_the_tests_pass_without_parts(
    committed: Path, tmp_path: Path, template_url: str, names: list[str]
) -> None:
    copy, contracts = Path(shutil.copytree(committed, tmp_path / "copy")), tmp_path / "contracts.toml"
    # The cache saves mypy time. It may be incomplete, because another mypy may be writing it at this moment.
    with suppress(FileNotFoundError, shutil.Error):
        shutil.copytree(ROOT / ".mypy_cache", copy / ".mypy_cache", ignore=shutil.ignore_patterns("generated_client"))
    for name in names:
        plan(copy, name).write()
        await run(copy, sys.executable, "-m", "app.dev", "docs")
        commit(copy)
        await run(copy, program("ruff"), "check", "--no-cache", ".")
        await run(copy, program("ruff"), "format", "--no-cache", "--check", ".")
        contracts.write_text(await run(copy, sys.executable, "-m", "app.dev", "contracts"))
        await run(copy, program("lint-imports"), "--no-cache", "--config", str(contracts))

    await run(copy, program("mypy"))
    tests = ["tests"] if IS_FULL else [f"tests/test_{each}.py" for each in COMMON]
    output = await run(copy, *PYTEST, "-m", "not slow", *tests, DATABASE_URL=template_url)

    assert re.search(r"^[1-9][0-9]+ passed", output, re.MULTILINE), output
