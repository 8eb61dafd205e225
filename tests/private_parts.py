"""Reads docs/private-parts.md, and finds the private parts of other libraries that src/app uses."""

import ast
import inspect
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import app
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "private-parts.md"
SOURCE = ROOT / "src" / "app"
LIBRARIES = (
    *("alembic", "asyncpg", "fastapi", "fastapi_offline", "httptools", "joserfc", "procrastinate", "prometheus_client"),
    *("pydantic_settings", "sqlalchemy", "starlette", "structlog", "uvicorn"),
)
# Classes without documentation. Each use of them is a private part, also of a name without an underscore.
UNDOCUMENTED_CLASSES = frozenset(
    {
        "procrastinate.manager.JobManager",
        "sqlalchemy.pool.AsyncAdaptedQueuePool",
        "uvicorn.Server",
        "uvicorn.protocols.http.flow_control.FlowControl",
        "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol",
        "uvicorn.protocols.http.httptools_impl.RequestResponseCycle",
        "uvicorn.server.ServerState",
    }
)
# Modules without documentation. Each import from them is a private part.
UNDOCUMENTED_MODULES = frozenset(
    {
        *("fastapi.dependencies.models", "procrastinate.manager", "procrastinate.worker"),
        *("prometheus_client.metrics_core", "prometheus_client.utils", "sqlalchemy.engine.result"),
        *("sqlalchemy.util.concurrency", "uvicorn.protocols.http.httptools_impl", "uvicorn.server"),
    }
)
# Attributes that hold an object of an undocumented class.
HOLDERS = {
    "config": "uvicorn.Config",
    "cycle": "uvicorn.protocols.http.httptools_impl.RequestResponseCycle",
    "flow": "uvicorn.protocols.http.flow_control.FlowControl",
    "server_state": "uvicorn.server.ServerState",
}
# The documented names of NamedTuple, of `os` and `sys`, and an argument of pydantic-settings begin with an underscore.
_DOCUMENTED = frozenset({"_asdict", "_current_frames", "_exit", "_fields", "_make", "_replace"})
# Keys of the ASGI scope that belong to FastAPI.
_SCOPE_KEY = re.compile(r"fastapi_\w+_astack|effective_route_context")


@dataclass(frozen=True)
class Row:
    """One row of the page."""

    library: str
    owner: str
    parts: frozenset[str]
    where: frozenset[str]


@dataclass(frozen=True, order=True)
class Use:
    """A use of a private part, found in the source."""

    owner: str
    part: str
    file: str


@cache
def rows() -> tuple[Row, ...]:
    table = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    return tuple(
        Row(library, owner.strip("`"), frozenset(_spans(parts)), frozenset(_spans(where)))
        for library, owner, parts, where, _why, _replacement in table
    )


def _spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def resolve(owner: str) -> Any:
    """Import a module, or a class by its full name."""
    try:
        return import_module(owner)
    except ModuleNotFoundError:
        module, _, name = owner.rpartition(".")
        return getattr(import_module(module), name)


def uses() -> set[Use]:
    """Find the private parts that the source uses, as far as a program can find them."""
    found: set[Use] = set()
    for path in SOURCE.rglob("*.py"):
        file = path.relative_to(SOURCE).as_posix()
        tree = ast.parse(path.read_text())
        found |= {Use(owner, part, file) for owner, part in (*_accesses(tree), *_imports(tree), *_scope_keys(tree))}
    for module in _modules():
        for name, cls in vars(module).items():
            if inspect.isclass(cls) and cls.__module__ == module.__name__ and not name.startswith("__"):
                file = Path(inspect.getfile(module)).relative_to(SOURCE).as_posix()
                found |= {Use(owner, part, file) for owner, part in _inherited(cls)}
    return found


def _modules() -> Iterator[ModuleType]:
    for info in pkgutil.walk_packages(app.__path__, "app."):
        # These run a command when they are imported, or belong to Alembic.
        if not info.name.endswith("__main__") and info.name != "app.migrations.env" and ".versions" not in info.name:
            yield import_module(info.name)


def _accesses(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield each private attribute of an object that is not `self`, and each attribute of a holder."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        base = node.value
        is_own = (isinstance(base, ast.Name) and base.id in {"self", "cls"}) or (
            isinstance(base, ast.Call) and isinstance(base.func, ast.Name) and base.func.id == "super"
        )
        if node.attr.startswith("_") and not node.attr.startswith("__") and not is_own and node.attr not in _DOCUMENTED:
            yield ast.unparse(base), node.attr
        if isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name) and base.value.id == "self":
            owner = HOLDERS.get(base.attr)
            if owner and has_part(owner, node.attr):
                yield owner, node.attr


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield each name that is imported from an undocumented module, and each private name of a library."""
    owners = {row.owner for row in rows()}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in LIBRARIES:
            module = node.module or ""
            for alias in node.names:
                path = f"{module}.{alias.name}"
                is_private = any(re.match(r"_[^_]", name) for name in path.split("."))
                if is_private or (module in UNDOCUMENTED_MODULES and path not in owners):
                    yield module, alias.name


def _scope_keys(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _SCOPE_KEY.fullmatch(node.value):
            yield "fastapi.routing", f'"{node.value}"'


def _inherited(cls: type) -> Iterator[tuple[str, str]]:
    """Yield the private parts of foreign base classes that a class overrides or uses."""
    bases = [base for base in cls.__mro__ if base.__module__.partition(".")[0] in LIBRARIES]
    if not bases:
        return
    tree = ast.parse(dedent(inspect.getsource(cls)))
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_self(node.value)}
    for name in names:
        for base in bases:
            if not name.startswith("__") and _defines(base, name):
                owner = _owner_of(bases, base)
                if name.startswith("_") or owner in UNDOCUMENTED_CLASSES:
                    yield owner, name
                break


def _is_self(node: ast.AST) -> bool:
    return (isinstance(node, ast.Name) and node.id in {"self", "cls"}) or (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    )


def _owner_of(bases: list[type], definer: type) -> str:
    """Return the class of the page that provides a part: the definer, or a class that inherits from it."""
    listed = [row.owner for row in rows() if inspect.isclass(resolve(row.owner)) and resolve(row.owner) in bases]
    heirs = [owner for owner in listed if issubclass(resolve(owner), definer)]
    return heirs[0] if heirs else f"{definer.__module__}.{definer.__qualname__}"


def has_part(owner: str, part: str) -> bool:
    """Return whether a library still has a part."""
    found = resolve(owner)
    if part.startswith('"'):
        name = part.strip('"')
        if (Path(inspect.getfile(found)).parent / name).is_file():
            return True
        return name in inspect.getsource(found)
    if inspect.isclass(found):
        return any(_defines(base, part) for base in found.__mro__)
    return hasattr(found, part)


@cache
def _defines(cls: type, name: str) -> bool:
    if name in vars(cls) or name in vars(cls).get("__annotations__", {}):
        return True
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):
        return False
    return re.search(rf"\bself\.{name}\b\s*(:[^=\n]+)?=[^=]", source) is not None
