"""Changes both versions of Bedplate before they are merged into a clone, so that fewer files conflict.

A merge takes a file from the side that changed it. So a file that stays as it is in the clone gets the clone's text in both versions, and
a file that arrives whole gets the clone's text in the older version.
"""

import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath

from app.dev.upgrade import git, product_name
from app.dev.upgrade.git import Entry, Tree
from app.dev.upgrade.requirements import with_own_pins

# An adopter rewrites these. What a clone has changed or deleted stays so; a folder is one unit.
YOURS = (
    ".editorconfig",
    ".github",
    "AGENTS.md",
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
)
REQUIREMENTS = ("requirements/base.txt", "requirements/dev.txt")
# `make docs` writes these. A test compares them with app.dev.docs.DOCUMENTS; the guide is partly written by hand.
GENERATED = ("docs/configuration.md", "docs/security/asvs.md", "docs/security/facts.md")
DIGESTS = "tests/migrations.sha256"
# Lines with a value of the clone.
_OWN_LINES = {
    "pyproject.toml": re.compile(r"^(version|description|authors|license|readme) = .*$", re.MULTILINE),
    product_name.PRODUCT: re.compile(r"^(NAME|SLUG|DESCRIPTION|API_VERSION) = .*$", re.MULTILINE),
}


@dataclass
class Sides:
    """The files of the three sides of a merge. Preparation changes the sides of Bedplate."""

    base: dict[str, Entry]
    clone: Tree
    new: dict[str, Entry]
    left_out: list[str] = field(default_factory=list)
    """New files of folders that the clone has deleted."""


def prepare(sides: Sides) -> None:
    _rename_product(sides)
    for path, lines in _OWN_LINES.items():
        _keep_lines(sides, path, lines)
    _keep_yours(sides)
    _leave_out_deleted_folders(sides)
    for path in GENERATED:
        _take_new(sides, path, git.text(sides.new, path))
    for path in REQUIREMENTS:
        _take_new(sides, path, with_own_pins(*(git.text(side, path) for side in (sides.base, sides.clone, sides.new))))
    _take_new(sides, DIGESTS, _union(git.text(sides.new, DIGESTS), git.text(sides.clone, DIGESTS)))


def _rename_product(sides: Sides) -> None:
    """Give both versions the name of the clone."""
    name = product_name.identity(git.text(sides.clone, product_name.PRODUCT))
    for side in (sides.base, sides.new):
        former = product_name.identity(git.text(side, product_name.PRODUCT))
        if name and former and name != former:
            for path in filter(product_name.contains_name, [*side]):
                side[path] = git.replaced(side, path, product_name.renamed(path, git.text(side, path), former, name))


def _keep_lines(sides: Sides, path: str, lines: re.Pattern[str]) -> None:
    own = {line[1]: line[0] for line in lines.finditer(git.text(sides.clone, path))}
    for side in (sides.base, sides.new):
        if path in side:
            side[path] = git.replaced(side, path, lines.sub(partial(_own_line, own), git.text(side, path)))


def _own_line(own: dict[str, str], line: re.Match[str]) -> str:
    return own.get(line[1], line[0])


def _keep_yours(sides: Sides) -> None:
    for place in YOURS:
        yours, base = (_below(side, place) for side in (sides.clone, sides.base))
        if yours != base:
            for side in (sides.base, sides.new):
                for path in _below(side, place):
                    del side[path]
                side.update(yours)


def _below(side: Tree, place: str) -> dict[str, Entry]:
    return {path: entry for path, entry in side.items() if path == place or path.startswith(f"{place}/")}


def _leave_out_deleted_folders(sides: Sides) -> None:
    """Leave out the new files of a folder that the clone has deleted, such as a feature that it does not need."""
    deleted = _folders(sides.base) - _folders(sides.clone)
    for path in [*sides.new]:
        if path not in sides.base and str(PurePosixPath(path).parent) in deleted:
            del sides.new[path]
            sides.left_out.append(path)


def _folders(side: Tree) -> set[str]:
    return {str(folder) for path in side for folder in PurePosixPath(path).parents}


def _take_new(sides: Sides, path: str, text: str) -> None:
    """Let the text arrive whole, unless one side has deleted the file."""
    if path in sides.clone and path in sides.new:
        sides.base[path] = sides.clone[path]
        sides.new[path] = git.replaced(sides.new, path, text)


def _union(*texts: str) -> str:
    """Return the lines of all texts, each once. The first digest of a file counts: the clone may have an older one."""
    lines = {line.split(maxsplit=1)[-1]: line for text in reversed(texts) for line in text.splitlines()}
    return "".join(f"{lines[name]}\n" for name in sorted(lines))
