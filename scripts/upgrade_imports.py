"""Rewrites imports of modules that have moved, and names the lines that still mention a moved module.

The table in docs/upgrading.md lists the modules.

Use: .venv/bin/python scripts/upgrade_imports.py src/app/notes tests/notes
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "upgrading.md"
_ROW = re.compile(r"^\| `(app[\w.]*)` \| `(app[\w.]*)` \|$", re.MULTILINE)
_IMPORT = re.compile(
    r"^(?P<indent>[ \t]*)from (?P<module>app[\w.]*) import (?P<names>\([^()#]*\)|[^(#\n]+)$", re.MULTILINE
)
_DOTTED = re.compile(r"\bapp(?:\.\w+)+")


def moved_modules() -> dict[str, str]:
    """Read the table: the new name of each module by its former name."""
    return dict(_ROW.findall(PAGE.read_text()))


def rewrite(text: str, moved: Mapping[str, str]) -> str:
    """Replace the imports of moved modules. A statement with a comment stays as it is."""

    def replaced(statement: re.Match[str]) -> str:
        names = [name.strip() for name in statement["names"].strip("()").split(",") if name.strip()]
        parts: dict[str, list[str]] = {}
        for name in names:
            module, imported = _present(statement["module"], name, moved)
            parts.setdefault(module, []).append(imported)
        if [*parts] == [statement["module"]]:
            return statement[0]
        return "\n".join(f"{statement['indent']}from {module} import {', '.join(parts[module])}" for module in parts)

    return _IMPORT.sub(replaced, text)


def _present(module: str, name: str, moved: Mapping[str, str]) -> tuple[str, str]:
    """Give the module to import from, and what to import from it."""
    original, _, alias = name.partition(" as ")
    if new := moved.get(f"{module}.{original}"):
        package, _, last = new.rpartition(".")
        local = alias or original
        return package, last if last == local else f"{last} as {local}"
    # A module may have become a package of the same name: what is a module of the package has its new name already.
    if module in moved and not _exists(f"{module}.{original}"):
        return moved[module], name
    return module, name


def leftovers(text: str, moved: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Yield the line number and the name of each mention of a moved module: in a string, or in an import with a comment."""
    for number, line in enumerate(text.splitlines(), start=1):
        yield from ((number, name) for name in _DOTTED.findall(line) if _is_former(name, moved))


def _is_former(name: str, moved: Mapping[str, str]) -> bool:
    parts = name.split(".")
    prefixes = [".".join(parts[:length]) for length in range(2, len(parts) + 1)]
    return any(
        prefix in moved and not _exists(longer) for prefix, longer in zip(prefixes, [*prefixes[1:], name], strict=True)
    )


def _exists(module: str) -> bool:
    path = ROOT / "src" / Path(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def main(places: Iterable[str]) -> None:
    moved = moved_modules()
    for file in _python_files(places):
        before = file.read_text()
        if (after := rewrite(before, moved)) != before:
            file.write_text(after)
            sys.stdout.write(f"{file}\n")
        for number, name in leftovers(after, moved):
            sys.stdout.write(f"{file}:{number}: {name} has moved; change it by hand\n")


def _python_files(places: Iterable[str]) -> Iterator[Path]:
    for place in map(Path, places):
        yield from sorted(place.rglob("*.py")) if place.is_dir() else [place]


if __name__ == "__main__":
    main(sys.argv[1:])
