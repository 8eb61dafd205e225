"""What the generator needs to know about the repository. It reads the files, because the code may be of another copy."""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from app.dev.generator.errors import GeneratorError
from app.dev.generator.feature import Target

_TABLE = re.compile(r'^    __tablename__ = "(\w+)"$', re.MULTILINE)
_CODE = re.compile(r'^    code = "(\w+)"$', re.MULTILINE)
_ENDPOINT = re.compile(r"^async def (\w+)\(", re.MULTILINE)
_SCOPE = re.compile(r'"([\w-]+):\w+": "')
_NOT_FOUND = re.compile(r"^class (\w+)\(NotFoundError\):$", re.MULTILINE)
_REVISION = re.compile(r'^(down_)?revision = "(\w+)"$', re.MULTILINE)


@dataclass(frozen=True)
class Revision:
    """The name of a migration, and of the one before it."""

    name: str
    follows: str


@dataclass(frozen=True)
class Repository:
    """A copy of this repository."""

    root: Path

    @property
    def source(self) -> Path:
        return self.root / "src" / "app"

    @property
    def versions(self) -> Path:
        return self.source / "migrations" / "versions"

    def tables(self) -> set[str]:
        return set(self._found(_TABLE, "**/*.py"))

    def error_codes(self) -> set[str]:
        return set(self._found(_CODE, "**/errors.py"))

    def endpoints(self) -> set[str]:
        return set(self._found(_ENDPOINT, "**/router.py"))

    def scopes(self) -> set[str]:
        return set(self._found(_SCOPE, "**/scopes.py"))

    def target(self, name: str) -> Target:
        """Return what a field needs to know to refer to a feature. Raises `GeneratorError` if it cannot refer to it."""
        if not (self.source / name).is_dir():
            message = f"There is no feature {name}. Generate it first: make feature NAME={name} …"
            raise GeneratorError(message)
        functions = self._functions(name)
        arguments = [each.arg for each in functions["get"].args.args] if "get" in functions else []
        errors = list(self._found(_NOT_FOUND, f"{name}/errors.py"))
        is_owned = arguments[1:2] == ["owner_id"]
        if name not in self.tables() or not errors or len(arguments) != 2 + is_owned or not functions["get"].returns:
            message = (
                f"A field cannot refer to {name}. It needs a feature with a table of this name, a service with "
                "get(session, owner_id, …_id) or get(session, …_id), and an error for an unknown id."
            )
            raise GeneratorError(message)
        cls = ast.unparse(functions["get"].returns)
        return Target(name, cls, arguments[-1], errors[0], is_owned, has_lookup="get_many" in functions)

    def can_extend(self, feature: str) -> bool:
        """Return whether a feature has a service that imports the feature's `crud.py`, so that the generator can add a function to both."""
        service, crud = (self.source / feature / f"{module}.py" for module in ("service", "crud"))
        imports = re.compile(rf"^from app\.{feature} import .*\bcrud\b", re.MULTILINE)
        return crud.is_file() and service.is_file() and bool(imports.search(service.read_text()))

    def _functions(self, feature: str) -> Mapping[str, ast.AsyncFunctionDef]:
        """Return the functions of a service."""
        path = self.source / feature / "service.py"
        statements = ast.parse(path.read_text()).body if path.is_file() else []
        return {node.name: node for node in statements if isinstance(node, ast.AsyncFunctionDef)}

    @cached_property
    def head(self) -> str:
        """The newest migration. Raises `GeneratorError` if there are two."""
        heads = {each.name for each in self.revisions()} - {each.follows for each in self.revisions()}
        if len(heads) != 1:
            message = f"The migrations have {len(heads)} heads ({', '.join(sorted(heads))}). Leave one first."
            raise GeneratorError(message)
        return heads.pop()

    def revisions(self) -> Iterator[Revision]:
        for path in sorted(self.versions.glob("*.py")):
            found = dict(_REVISION.findall(path.read_text()))
            if "" in found:
                yield Revision(found[""], found.get("down_", ""))

    def revision_of(self, feature: str) -> Revision | None:
        """Return the migration that created the table of a feature."""
        return next((each for each in self.revisions() if each.name[9:] == feature), None)

    def _found(self, pattern: re.Pattern[str], files: str) -> Iterator[str]:
        for path in self.source.glob(files):
            yield from pattern.findall(path.read_text())
