"""Finds the code that needs a feature, and the texts that speak of it."""

import ast
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from app.dev.removal import shipped
from app.dev.removal.feature import Installed, imported

_PYTHON = ("src", "tests", "benchmarks", "scripts")
# History, and files that the removal or `make docs` writes.
_NOT_READ = (
    "CHANGELOG.md",
    "docs/changelog.md",
    "docs/adding-a-feature.md",
    "docs/configuration.md",
    "docs/security/asvs.md",
    "docs/security/facts.md",
    "src/app/dev/removal/shipped.py",
    "src/app/migrations/versions/",
    "tests/migrations.sha256",
)


def needs(feature: Installed) -> Iterator[str]:
    """Yield a sentence for each import and each foreign key of other code."""
    packages = tuple(f"{module}." for module in feature.modules)
    for path in _others(feature):
        text = path.read_text()
        # Only a file that contains one of these words can import the feature or refer to its tables.
        words = {module.rpartition(".")[2] for module in feature.modules} | feature.tables
        if not any(word in text for word in words):
            continue
        place, tree = path.relative_to(feature.root), ast.parse(text)
        if any(f"{name}.".startswith(packages) for name in imported(tree)):
            yield f"{place} imports {feature.name}"
        if "migrations" not in path.parts:
            yield from (f"{place}:{line} has {what}" for line, what in _foreign_keys(tree, feature.tables))


def _others(feature: Installed) -> Iterator[Path]:
    for directory in _PYTHON:
        yield from (path for path in sorted((feature.root / directory).rglob("*.py")) if not feature.owns(path))


def _foreign_keys(tree: ast.AST, tables: set[str]) -> Iterator[tuple[int, str]]:
    """Yield the line and the field of each foreign key to one of these tables."""
    fields = [node for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)]
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2].startswith("ForeignKey"):
            for table in sorted(tables & _tables_in(call)):
                held = [field for field in fields if field.lineno <= call.lineno <= (field.end_lineno or field.lineno)]
                field = f" {ast.unparse(held[-1].target)}" if held else ""
                yield call.lineno, f"the foreign key{field} to {table}"


def _tables_in(call: ast.Call) -> set[str]:
    texts = (node.value for node in ast.walk(call) if isinstance(node, ast.Constant))
    return {text.partition(".")[0] for text in texts if isinstance(text, str) and "." in text}


def mentions(feature: Installed, changed: Mapping[str, str]) -> Iterator[str]:
    """Yield each file that still speaks of the feature after the removal, with its lines."""
    pattern = _pattern(feature)
    for name in _texts(feature):
        text = changed.get(name) or _read(feature.root / name)
        lines = [str(number) for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)]
        if lines:
            yield f"{name}: line{'s' if len(lines) > 1 else ''} {', '.join(lines)}"


def _pattern(feature: Installed) -> re.Pattern[str]:
    urls = {operation.partition(" ")[2].split("/{")[0] for operation in feature.operations}
    places = {place for module in feature.modules for place in (module, module.replace(".", "/"))}
    rows = {f"{module.partition('.')[2]}.jobs" for module in feature.modules}
    texts = "|".join(map(re.escape, sorted((feature.names | urls | places | rows) - {""})))
    patterns = [rf"(?<![\w.])(?:{texts})(?![\w\[-])", rf"\bAPP_{feature.name.upper()}__"]
    if words := shipped.WORDS.get(feature.name):
        patterns.append(words)
    return re.compile("|".join(patterns))


def _texts(feature: Installed) -> Iterator[str]:
    for name in [*_tracked(feature.root), *(path.name for path in sorted(feature.root.glob(".env*")))]:
        if not name.startswith(_NOT_READ) and not feature.owns(feature.root / name) and (feature.root / name).is_file():
            yield name


def _tracked(root: Path) -> list[str]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return sorted({name for name in done.stdout.split("\0") if name and not name.startswith(".env")})


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError:
        # An image or another binary file.
        return ""
