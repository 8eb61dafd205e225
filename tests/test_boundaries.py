import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCE = ROOT / "src"
FEATURES = sorted(path.parent.name for path in SOURCE.glob("app/*/crud.py") if path.parent.name != "core")


def imported(path: Path) -> Iterator[str]:
    """Give the full name of everything a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("feature", FEATURES)
def test_only_the_feature_itself_imports_its_queries(feature: str) -> None:
    # import-linter's contract for this names every feature; this finds the ones that nobody has named.
    queries = f"app.{feature}.crud"

    trespassers = [
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if not path.is_relative_to(SOURCE / "app" / feature)
        and any(f"{name}.".startswith(f"{queries}.") for name in imported(path))
    ]

    assert trespassers == [], f"ask app.{feature}.service instead of {queries}"
