"""The migrations of a feature, found in their files: which tables each changes, and to which it refers."""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from app.dev.generator.repository import Repository
from app.dev.removal.errors import RemovalError
from app.dev.removal.feature import Installed, tables_of, text_of

# The positions of the arguments that name a table, if it is not the first one.
_CHANGED = {
    "create_index": (1,),
    "drop_index": (1,),
    "drop_constraint": (1,),
    "create_foreign_key": (1,),
    "create_unique_constraint": (1,),
    "create_check_constraint": (1,),
    "create_primary_key": (1,),
    "rename_table": (0, 1),
}
_REFERENCE = re.compile(r"\bREFERENCES\s+\W?(\w+)", re.IGNORECASE)


@dataclass(frozen=True)
class Migration:
    """A migration file. `follows` is empty for the first one."""

    name: str
    follows: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def changed(self) -> set[str]:
        """The tables that it creates or changes, and every other word of its SQL."""
        words = (word for sql in self._sql for word in re.findall(r"\w+", _REFERENCE.sub("", sql)))
        return {table for call in self._operations for table in _changed_by(call)}.union(words)

    @cached_property
    def created(self) -> list[str]:
        """The tables that it creates with `op.create_table`, in this order."""
        calls = sorted(self._calls("op.create_table"), key=lambda call: call.lineno)
        return [text_of(call.args[0]) for call in calls if call.args]

    @cached_property
    def referenced(self) -> set[str]:
        """The tables to which its foreign keys refer."""
        names = {text_of(node) for call in self._calls("ForeignKey") for node in ast.walk(call)}
        added = {text_of(argument) for call in self._calls("create_foreign_key") for argument in call.args[2:3]}
        written = {table for sql in self._sql for table in _REFERENCE.findall(sql)}
        return {name.partition(".")[0] for name in names if "." in name} | added | written

    @property
    def _operations(self) -> list[ast.Call]:
        return self._calls("op.")

    @property
    def _sql(self) -> list[str]:
        executed = [text_of(call.args[0]) for call in self._calls("execute") if call.args]
        return executed + [text_of(node.value) for node in self.tree.body if isinstance(node, ast.Assign)]

    def body(self, function: str) -> list[ast.stmt]:
        functions = (node for node in self.tree.body if isinstance(node, ast.FunctionDef))
        return next((node.body for node in functions if node.name == function), [])

    def source(self, node: ast.stmt) -> str:
        return "\n".join(self.text.splitlines()[node.lineno - 1 : node.end_lineno])

    def _calls(self, name: str) -> list[ast.Call]:
        calls = (node for node in ast.walk(self.tree) if isinstance(node, ast.Call))
        return [call for call in calls if name in ast.unparse(call.func)]


def _changed_by(call: ast.Call) -> Iterator[str]:
    positions = _CHANGED.get(ast.unparse(call.func).partition(".")[2], (0,))
    yield from (text_of(call.args[at]) for at in positions if at < len(call.args))
    yield from (text_of(each.value) for each in call.keywords if each.arg in {"table_name", "source_table"})


def history(root: Path) -> list[Migration]:
    """Return all migrations, the oldest first."""
    repository = Repository(root)
    by_parent = {
        each.follows: Migration(each.name, each.follows, (repository.versions / f"{each.name}.py").read_text())
        for each in repository.revisions()
    }
    found: list[Migration] = []
    while (last := found[-1].name if found else "") in by_parent:
        found.append(by_parent[last])
    if len(found) != len(list(repository.revisions())):
        message = "The migrations do not form one line. Remove the feature on a branch where they do, or by hand."
        raise RemovalError(message)
    return found


def own(feature: Installed, migrations: Sequence[Migration]) -> list[Migration]:
    """Return the migrations of a feature. Raises `RemovalError` if one also changes other tables, or if others need its tables."""
    known = {table for each in migrations for table in each.created} | {*tables_of(feature.root / "src" / "app")}
    owned = feature.tables
    mine = [each for each in migrations if each.changed & owned]
    for each in mine:
        if others := sorted((each.changed & known) - owned):
            message = (
                f"The migration {each.name} changes tables of {feature.name} and also {', '.join(others)}. Split it into two "
                "first; if it has been deployed, delete the feature by hand, and write a migration that drops its tables."
            )
            raise RemovalError(message)
    for each in migrations:
        if each not in mine and (tables := sorted(each.referenced & owned)):
            message = f"The migration {each.name} has a foreign key to {', '.join(tables)}, so {feature.name} must stay before it."
            raise RemovalError(message)
    return mine


def relinked(migrations: Sequence[Migration], removed: Sequence[Migration]) -> Mapping[str, str]:
    """Return the new text, by name, of each migration that follows a removed one."""
    parents = {each.name: each.follows for each in removed}
    texts = {}
    for each in migrations:
        parent = each.follows
        while parent in parents:
            parent = parents[parent]
        if parent != each.follows and each.name not in parents:
            texts[each.name] = each.text.replace(f'down_revision = "{each.follows}"', f'down_revision = "{parent}"')
    return texts
