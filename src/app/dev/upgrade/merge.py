"""Merges in memory, and resolves the conflicts that have one right answer."""

import ast
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from app.dev.upgrade import git
from app.dev.upgrade.git import Entry
from app.dev.upgrade.prepare import Sides

# Lists in which each line stands for itself. Those of Bedplate come first, because its features come before those of a clone.
LISTS = ("docs/README.md", "pyproject.toml", "src/app/features.py")
# Partly generated: the new text of a conflict is right, and `make docs` completes it.
_GUIDE = "docs/adding-a-feature.md"
_HUNK = re.compile(
    r"^<<<<<<< .*\n(?P<clone>(?:.*\n)*?)\|{7} .*\n(?P<base>(?:.*\n)*?)=======\n(?P<new>(?:.*\n)*?)>>>>>>> .*\n",
    re.MULTILINE,
)
_BASE, _CLONE, _NEW = 1, 2, 3
_PARSERS: Mapping[str, Callable[[str], object]] = {".py": ast.parse, ".toml": tomllib.loads}


@dataclass
class Merged:
    """The files of the result, with the conflicts that are left: the versions of a file by their stage in the index."""

    files: dict[str, Entry]
    conflicts: dict[str, Mapping[int, Entry]] = field(default_factory=dict)


def merge(sides: Sides) -> Merged:
    base = git.commit_tree(git.write(sides.base))
    yours, new = (git.commit_tree(git.write(side), base) for side in (sides.clone, sides.new))
    output = git.run("merge-tree", "--write-tree", "-z", "--no-messages", yours, new, accept=(0, 1))
    tree, *conflicts = output.decode(errors="surrogateescape").rstrip("\0").split("\0")
    merged = Merged(git.read(tree), _by_path(conflicts))
    for path, stages in [*merged.conflicts.items()]:
        _resolve(merged, path, stages)
    for path in merged.conflicts.keys() & merged.files.keys():
        named = git.text(merged.files, path).replace(f"<<<<<<< {yours}", "<<<<<<< yours")
        merged.files[path] = git.replaced(merged.files, path, named.replace(f">>>>>>> {new}", ">>>>>>> Bedplate"))
    return merged


def _by_path(conflicts: Iterable[str]) -> dict[str, Mapping[int, Entry]]:
    found: dict[str, dict[int, Entry]] = {}
    for conflict in conflicts:
        facts, _, path = conflict.partition("\t")
        mode, blob, stage = facts.split()
        found.setdefault(path, {})[int(stage)] = Entry(mode, blob)
    return dict(found)


def _resolve(merged: Merged, path: str, stages: Mapping[int, Entry]) -> None:
    if {*stages} == {_BASE, _NEW}:
        # Deleted in the clone: it stays deleted.
        merged.files.pop(path, None)
        del merged.conflicts[path]
    elif {*stages} >= {_CLONE, _NEW} and (text := _resolved(path, stages)) is not None:
        merged.files[path] = Entry(stages[_CLONE].mode, git.store(text))
        del merged.conflicts[path]


def _resolved(path: str, stages: Mapping[int, Entry]) -> str | None:
    """Return the text of a list or of the guide, or None if a person has to decide."""
    if path in LISTS:
        text = _HUNK.sub(_both_changes, _with_markers(stages))
        return text if _is_valid(path, text) else None
    if path == _GUIDE:
        return _HUNK.sub(lambda hunk: hunk["new"], _with_markers(stages))
    return None


def _with_markers(stages: Mapping[int, Entry]) -> str:
    """Merge the versions of one file. The result shows the base of each conflict, in markers of seven characters."""
    base = stages[_BASE].blob if _BASE in stages else git.store("")
    names = [stages[_CLONE].blob, base, stages[_NEW].blob]
    # The object database has no command that merges three blobs before git 2.43.
    with git.files(names) as paths:
        return git.run("merge-file", "-p", "--diff3", *paths, accept=range(128)).decode(errors="surrogateescape")


def _both_changes(hunk: re.Match[str]) -> str:
    """Apply the changes of the clone to the new lines, unless both sides changed or deleted the same line."""
    clone, base, new = (hunk[side].splitlines(keepends=True) for side in ("clone", "base", "new"))
    deleted = {*base} - {*clone}
    if deleted - {*new}:
        return hunk[0]
    kept = [line for line in new if line not in deleted]
    return "".join([*kept, *(line for line in clone if line not in {*base, *new})])


def _is_valid(path: str, text: str) -> bool:
    try:
        _PARSERS.get(PurePosixPath(path).suffix, str)(text)
    except (SyntaxError, tomllib.TOMLDecodeError):
        return False
    return True
