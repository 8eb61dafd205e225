"""Joins the migrations of a clone and those that arrive, which follow the same revision."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from app.dev.upgrade import git
from app.dev.upgrade.git import Tree
from app.dev.upgrade.merge import Merged
from app.dev.upgrade.prepare import DIGESTS

_VERSIONS = "src/app/migrations/versions"
_REVISION = re.compile(r"^revision(?:: \w+)? = ['\"](.+?)['\"]", re.MULTILINE)
_DOWN = re.compile(r"^(down_revision(?:: [\w| ]+)?) = ['\"](?P<parent>.+?)['\"].*$", re.MULTILINE)
# A test of Bedplate requires that a migration has no earlier date than the one that it follows. The words exempt it.
_LINE = r'\1 = "{}"  # Set by make upgrade; before: \g<parent>'


@dataclass(frozen=True)
class Migration:
    path: str
    text: str

    @property
    def revision(self) -> str | None:
        return found[1] if (found := _REVISION.search(self.text)) else None

    @property
    def parent(self) -> str | None:
        return found["parent"] if (found := _DOWN.search(self.text)) else None


def join(merged: Merged, clone: Tree, new: Tree) -> list[str]:
    """Let the first migrations that arrive follow the newest one of the clone. Return the files that this changes.

    Nobody has run in the clone what arrives now, so its parent may change. A clone with several heads stays as it is.
    """
    head, *others = _heads(_migrations(clone)) or {None}
    arriving = _migrations({path: entry for path, entry in new.items() if path in merged.files and path not in clone})
    first = [each for each in arriving if each.parent not in {None, head, *(each.revision for each in arriving)}]
    if others or head is None:
        return []
    for each in first:
        _change_parent(merged, each, head)
    return [each.path for each in first]


def _migrations(files: Tree) -> list[Migration]:
    paths = (path for path in files if str(PurePosixPath(path).parent) == _VERSIONS and path.endswith(".py"))
    found = (Migration(path, git.text(files, path)) for path in paths)
    return [each for each in found if each.revision]


def _heads(migrations: Iterable[Migration]) -> set[str | None]:
    listed = [*migrations]
    return {each.revision for each in listed} - {each.parent for each in listed}


def _change_parent(merged: Merged, migration: Migration, parent: str) -> None:
    text = _DOWN.sub(_LINE.format(parent), migration.text)
    merged.files[migration.path] = git.replaced(merged.files, migration.path, text)
    name = PurePosixPath(migration.path).name
    digest = hashlib.sha256(text.encode()).hexdigest()
    digests = re.sub(rf"^\w+(?=  {re.escape(name)}$)", digest, git.text(merged.files, DIGESTS), flags=re.MULTILINE)
    merged.files[DIGESTS] = git.replaced(merged.files, DIGESTS, digests)
