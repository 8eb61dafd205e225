"""What the changelog asks of clones."""

import re
from collections.abc import Iterator

from app.dev.upgrade import git
from app.dev.upgrade.git import Tree

# The second one is the former place, where a clone has its own.
_CHANGELOGS = ("docs/changelog.md", "CHANGELOG.md")
_SECTION = re.compile(r"^### For clones\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
_ITEM = re.compile(r"^- .*\n(?:  .*\n?|\n(?=  ))*", re.MULTILINE)


def for_clones(base: Tree, new: Tree) -> list[str]:
    """Return what the newer changelog lists under "For clones" and the older one does not."""
    known = {*_items(base)}
    return [item for item in _items(new) if item not in known]


def _items(files: Tree) -> Iterator[str]:
    for path in _CHANGELOGS:
        for section in _SECTION.findall(git.text(files, path)):
            yield from (item.rstrip() for item in _ITEM.findall(section))
