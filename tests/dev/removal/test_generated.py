"""Features of every type, generated into one copy of the repository, are removed in random orders and leave nothing."""

import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.dev.generator.plan import plan as generate
from app.dev.removal.errors import RemovalError
from app.dev.removal.plan import plan
from tests.dev.removal.conftest import commit, git
from tests.dev.test_generated_features import FEATURES, program
from tests.listings import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def full(committed: Path) -> Path:
    """A copy with all features."""
    root = Path(shutil.copytree(committed, committed.with_name("full")))
    for name, (fields, options) in FEATURES.items():
        generate(root, name, fields, **options).write()
    commit(root)
    return root


def remove_all(root: Path, order: list[str]) -> Iterator[str]:
    """Remove the features in this order. One that others refer to is removed after them. Yield each removed one."""
    waiting = list(order)
    while waiting:
        before = len(waiting)
        for name in list(waiting):
            try:
                plan(root, name, is_forced=True).write()
            except RemovalError as error:
                assert "has the foreign key" in str(error), error  # noqa: PT017  # Another refusal is an error.
            else:
                waiting.remove(name)
                yield name
        assert len(waiting) < before, f"none of {waiting} can be removed"


@pytest.mark.parametrize("seed", range(3))
def test_removing_all_features_in_a_random_order_restores_the_repository(full: Path, tmp_path: Path, seed: int) -> None:
    copy = Path(shutil.copytree(full, tmp_path / "copy"))
    order = random.Random(seed).sample(list(FEATURES), len(FEATURES))  # noqa: S311  # The order of a test.

    assert sorted(remove_all(copy, order)) == sorted(FEATURES)

    git(copy, "reset", "--quiet", "--soft", "HEAD~1")
    git(copy, "add", "--all")
    assert git(copy, "status", "--porcelain") == ""


async def test_the_checks_pass_when_half_of_the_features_are_removed(
    full: Path, tmp_path: Path, clone_url: str
) -> None:
    copy = Path(shutil.copytree(full, tmp_path / "copy"))
    order = random.Random(3).sample(list(FEATURES), len(FEATURES))  # noqa: S311  # The order of a test.
    removing = remove_all(copy, order)
    removed = [next(removing) for _ in range(len(FEATURES) // 2)]
    contracts, sql = tmp_path / "contracts.toml", tmp_path / "migrations.sql"

    await run(copy, program("ruff"), "check", "--no-cache", "src", "tests")
    contracts.write_text(await run(copy, sys.executable, "-m", "app.dev", "contracts"))
    await run(copy, program("lint-imports"), "--no-cache", "--config", str(contracts))
    sql.write_text(await run(copy, sys.executable, "-m", "app.dev", "migrations"))
    await run(copy, sys.executable, "-m", "app", "migrate", DATABASE_URL=clone_url, APP_ENVIRONMENT="local")
    output = await run(copy, sys.executable, "-m", "alembic", "check", DATABASE_URL=clone_url)

    assert "No new upgrade operations detected" in output
    assert not [name for name in removed if f"CREATE TABLE {name} (" in sql.read_text()]
