"""The import contract about second factors."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_contracts import check


@pytest.mark.slow
async def test_a_table_of_second_factors_that_knows_sessions_fails_the_check(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "src" / "app" / "factors" / "models.py").open("a") as file:
        file.write("\nimport app.auth.models\n")

    code, output = await check(tmp_path)

    assert code == 1, output
    assert any(
        line.startswith("Second factors know no login sessions") and "BROKEN" in line for line in output.splitlines()
    )
