"""What belongs to a feature: its files, tables, operations and names. It reads the files, because they may be of another copy."""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_EVENT = re.compile(r"[a-z_]+\.[a-z_]+")
_METRICS = {"Counter", "Gauge", "Histogram"}


@dataclass(frozen=True)
class Installed:
    """A feature of the repository at `root`, or a part of one. `paths` are its files and directories."""

    root: Path
    name: str
    paths: Sequence[str]

    def owns(self, path: Path) -> bool:
        return path.relative_to(self.root).as_posix().startswith(tuple(self.prefixes))

    @cached_property
    def prefixes(self) -> list[str]:
        """What the paths of its files begin with."""
        return [path if Path(path).suffix else f"{path}/" for path in self.paths]

    @property
    def documents(self) -> list[str]:
        """The names of its pages in `docs`."""
        return [Path(path).name for path in self.paths if path.endswith(".md")]

    @cached_property
    def files(self) -> list[str]:
        """The paths of all files, without bytecode."""
        found = (path for each in self.paths for path in (self.root / each, *sorted((self.root / each).rglob("*"))))
        return [
            path.relative_to(self.root).as_posix()
            for path in found
            if path.is_file() and "__pycache__" not in path.parts
        ]

    @property
    def modules(self) -> list[str]:
        """The names of its packages and modules, such as `app.users`."""
        code = (path for path in self.paths if not path.startswith("docs/"))
        return [path.removeprefix("src/").removesuffix(".py").replace("/", ".") for path in code]

    @cached_property
    def files_of_models(self) -> set[str]:
        """The paths of `models.py` and of the modules of this feature that it imports."""
        found = {f"src/app/{self.name}/__init__.py"}
        waiting = [f"src/app/{self.name}/models.py"]
        while waiting:
            if (path := waiting.pop()) in self.files and path not in found:
                found.add(path)
                waiting += [
                    f"src/{name.replace('.', '/')}.py" for name in imported(ast.parse((self.root / path).read_text()))
                ]
        return found

    @cached_property
    def tables(self) -> set[str]:
        return {table for path in self.paths for table in tables_of(self.root / path)}

    @cached_property
    def operations(self) -> set[str]:
        """The operations in its `access.py`, such as `GET /api/v1/users`."""
        tables = (self.root / path for path in self.files if path.startswith("tests/") and path.endswith("access.py"))
        dictionaries = (node for path in tables for node in _nodes(path) if isinstance(node, ast.Dict))
        keys = (text_of(key) for each in dictionaries for key in each.keys)
        return {key for key in keys if re.match(r"[A-Z]+ /", key)}

    @cached_property
    def names(self) -> set[str]:
        """The scopes, limits and metrics, and the audit events that only the code of this feature names."""
        named = {text_of(node) for path in self._sources(own=True) for node in _nodes(path)}
        others = [path.read_text() for path in self._sources(own=False)]
        events = {name for name in named if _EVENT.fullmatch(name)}
        return {name for name in events if not any(f'"{name}"' in text for text in others)} | self._declared

    @cached_property
    def _declared(self) -> set[str]:
        """The scopes, and the first argument of each metric and limit."""
        nodes = [node for path in self._sources(own=True) for node in _nodes(path)]
        calls = (node for node in nodes if isinstance(node, ast.Call) and node.args)
        named = {text_of(node.args[0]) for node in calls if _called(node) in {*_METRICS, "Limit"}}
        scopes = (path for path in self._sources(own=True) if path.name == "scopes.py")
        keys = (node for path in scopes for node in _nodes(path) if isinstance(node, ast.Dict))
        return ({text_of(key) for each in keys for key in each.keys} | named) - {""}

    def _sources(self, *, own: bool) -> Iterator[Path]:
        return (path for path in (self.root / "src" / "app").rglob("*.py") if self.owns(path) == own)


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the name of each imported module, and of each imported name as if it were a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def tables_of(directory: Path) -> Iterator[str]:
    """Yield the tables that the models below a directory declare."""
    for path in directory.rglob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "__tablename__" in text or "Table(" in text else ():
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__tablename__":
                yield text_of(node.value)
            elif isinstance(node, ast.Call) and _called(node) == "Table" and node.args:
                yield text_of(node.args[0])


def _nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text()))


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func).rpartition(".")[2]


def text_of(node: ast.AST | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
