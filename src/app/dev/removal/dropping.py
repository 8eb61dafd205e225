"""The migration that drops the tables of a deployed feature. Its downgrade is the upgrade of the old migrations."""

import ast
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from app.dev.generator.render import formatted
from app.dev.removal.feature import text_of
from app.dev.removal.migrations import Migration

# Alembic's version table stores a revision as VARCHAR(32).
_LONGEST_REVISION = 32
_OWN_NAMES = {"revision", "down_revision", "branch_labels", "depends_on"}


def drop(root: Path, feature: str, old: Sequence[Migration], head: str) -> tuple[str, str]:
    """Return the revision and the text of the migration."""
    revision = _revision(feature, head)
    text = "\n\n".join(
        [
            f'"""Drop {feature.replace("_", " ")}."""',
            "\n".join(_imports(old)),
            f'revision = "{revision}"\ndown_revision = "{head}"',
            *_shared(old),
            _function("upgrade", _drops(old)),
            _function("downgrade", [each.source(line) for each in old for line in each.body("upgrade")]),
        ]
    )
    return revision, formatted(root, f"src/app/migrations/versions/{revision}.py", text)


def _revision(feature: str, head: str) -> str:
    today = f"{datetime.now(UTC):%Y%m%d}"
    return f"{max(today, head[:8]) if head[:8].isdigit() else today}_drop_{feature}"[:_LONGEST_REVISION]


def _drops(old: Sequence[Migration]) -> Iterator[str]:
    """Yield what the downgrades do, the newest first, but for what goes with a dropped table."""
    dropped = {table for each in old for table in each.created}
    for each in reversed(old):
        for statement in each.body("downgrade"):
            table = _dropped_by(statement)
            if table is not None:
                yield f'    op.execute("""\n        -- squawk-ignore ban-drop-table\n        DROP TABLE {table}\n    """)'
            elif not _is_about(statement, dropped):
                yield each.source(statement)


def _dropped_by(statement: ast.stmt) -> str | None:
    call = statement.value if isinstance(statement, ast.Expr) else None
    is_drop = isinstance(call, ast.Call) and ast.unparse(call.func) == "op.drop_table"
    return text_of(call.args[0]) if is_drop and isinstance(call, ast.Call) else None


def _is_about(statement: ast.stmt, tables: set[str]) -> bool:
    """Return whether a statement is one operation of Alembic on one of these tables."""
    call = statement.value if isinstance(statement, ast.Expr) else None
    if (
        not isinstance(call, ast.Call)
        or not ast.unparse(call.func).startswith("op.")
        or "execute" in ast.unparse(call.func)
    ):
        return False
    return bool(tables & {text_of(node) for node in ast.walk(call) if isinstance(node, ast.Constant)})


def _imports(old: Sequence[Migration]) -> list[str]:
    found = (
        each.source(node) for each in old for node in each.tree.body if isinstance(node, ast.Import | ast.ImportFrom)
    )
    return list(dict.fromkeys(["from alembic import op", *found]))


def _shared(old: Sequence[Migration]) -> list[str]:
    """Return the constants and functions that the old migrations use."""
    found = (each.source(node) for each in old for node in each.tree.body if _is_shared(node))
    return list(dict.fromkeys(found))


def _is_shared(node: ast.stmt) -> bool:
    if isinstance(node, ast.FunctionDef):
        return node.name not in {"upgrade", "downgrade"}
    return isinstance(node, ast.Assign | ast.AnnAssign) and not _OWN_NAMES & {
        name.id for name in ast.walk(node) if isinstance(name, ast.Name)
    }


def _function(name: str, lines: Iterable[str]) -> str:
    return "\n".join([f"def {name}() -> None:", *lines])
