import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCE = ROOT / "src"
QUERIES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*crud.py") if "core" not in path.parts)


@cache
def imported(path: Path) -> tuple[str, ...]:
    """Return the full name of each import in a file."""
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", QUERIES, ids=str)
def test_only_the_feature_itself_imports_its_crud(module: Path) -> None:
    # The contract of import-linter covers only modules called `crud`. This test also covers names that end in `crud`.
    feature = module.parts[1]
    queries = ".".join(module.with_suffix("").parts)

    importers = [
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if not path.is_relative_to(SOURCE / "app" / feature)
        and any(f"{name}.".startswith(f"{queries}.") for name in imported(path))
    ]

    assert importers == [], f"use app.{feature}.service instead of {queries}"
