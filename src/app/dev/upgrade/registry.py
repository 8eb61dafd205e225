"""Moves the features of a clone from before `src/app/features.py` out of the central lists of that time."""

import ast
import re
from collections.abc import Iterator

from app.dev.upgrade import git
from app.dev.upgrade.git import Entry, Tree
from app.dev.upgrade.prepare import Sides

_FEATURES = "src/app/features.py"
_ACCESS = "tests/test_access.py"
# A feature added lines to these. They arrive as they are now; what else a clone changed in them is printed.
_LISTS = (
    "src/app/auth/dependencies.py",
    "src/app/cli.py",
    "src/app/core/config.py",
    "src/app/main.py",
    "src/app/models.py",
    "src/app/users/roles.py",
    "src/app/worker.py",
    _ACCESS,
)
_PACKAGE = re.compile(r"src/app/(\w+)/")
_OPERATION = re.compile(r"\w+ /(?:api/v1/)?([\w-]+)")
_ROWS = """from collections.abc import Mapping

from tests.access import {names}

ACCESS: Mapping[str, Access] = {{
{rows}}}
"""


def is_from_before(sides: Sides) -> bool:
    return _FEATURES in sides.new and _FEATURES not in sides.base


def move_features(sides: Sides) -> list[str]:
    """Declare each feature of the clone in its own folder. Return the files whose other changes have to be moved by hand."""
    features = sorted(_features(sides.clone) - _features(sides.base))
    rows = _rows(git.text(sides.clone, _ACCESS), git.text(sides.base, _ACCESS))
    own: dict[str, Entry] = {}
    for feature in features:
        router = f"src/app/{feature}/router.py"
        if router in sides.clone:
            own[router] = git.replaced(sides.clone, router, _declared(git.text(sides.clone, router)))
        mine = "".join(row for operation, row in rows.items() if _feature_of(operation, features) == feature)
        if mine:
            path = f"tests/{feature}/access.py"
            own[path] = git.replaced(sides.clone, path, _access(mine))
    changed = [path for path in _LISTS if path in sides.clone and sides.clone[path] != sides.base.get(path)]
    for path in changed:
        sides.base[path] = sides.clone[path]
    sides.clone = {**sides.clone, **own}
    listed = "".join(f'    "{feature}",\n' for feature in features)
    sides.new[_FEATURES] = git.replaced(
        sides.new, _FEATURES, re.sub(r"^\)$", f"{listed})", git.text(sides.new, _FEATURES), count=1, flags=re.MULTILINE)
    )
    return changed


def _features(side: Tree) -> set[str]:
    return {found[1] for path in side if (found := _PACKAGE.match(path))}


def _declared(text: str) -> str:
    """Add `ROUTERS` after the router of a feature."""
    for statement in ast.parse(text).body:
        if (
            isinstance(statement, ast.Assign)
            and ast.unparse(statement.targets[0]) == "router"
            and "\nROUTERS = " not in text
        ):
            lines = text.splitlines(keepends=True)
            return "".join([*lines[: statement.end_lineno], "ROUTERS = (router,)\n", *lines[statement.end_lineno :]])
    return text


def _rows(clone: str, base: str) -> dict[str, str]:
    """Return the rows of the access table that the clone has added, by their operation."""
    known = {operation for operation, _ in _table(base)}
    return {operation: row for operation, row in _table(clone) if operation not in known}


def _table(text: str) -> Iterator[tuple[str, str]]:
    for table in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Dict)):
        for key, value in zip(table.keys, table.values, strict=True):
            if isinstance(key, ast.Constant) and _OPERATION.match(str(key.value)):
                yield str(key.value), f"    {ast.unparse(key)}: {ast.unparse(value)},\n"


def _feature_of(operation: str, features: list[str]) -> str:
    found = _OPERATION.match(operation)
    name = found[1].replace("-", "_") if found else ""
    return name if name in features else features[0]


def _access(rows: str) -> str:
    """Return `access.py` with these rows. UNKNOWN_ID had another name."""
    rows = rows.replace("NOBODYS", "UNKNOWN_ID")
    used = [name for name in ("UNKNOWN_ID", "authenticated", "public", "scoped") if re.search(rf"\b{name}\b", rows)]
    return _ROWS.format(names=", ".join(sorted([*used, "Access"], key=str.swapcase)), rows=rows)
