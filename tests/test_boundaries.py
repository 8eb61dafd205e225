import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCE = ROOT / "src"
QUERIES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*crud.py") if "core" not in path.parts)


def imported(path: Path) -> Iterator[str]:
    """Give the full name of everything a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", QUERIES, ids=str)
def test_only_the_feature_itself_imports_its_queries(module: Path) -> None:
    # import-linter's contract for this names every module of queries; this finds the ones that nobody has named.
    feature = module.parts[1]
    queries = ".".join(module.with_suffix("").parts)

    trespassers = [
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if not path.is_relative_to(SOURCE / "app" / feature)
        and any(f"{name}.".startswith(f"{queries}.") for name in imported(path))
    ]

    assert trespassers == [], f"ask app.{feature}.service instead of {queries}"
