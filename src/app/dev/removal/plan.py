"""Computes every deleted, changed and new file of a removal before the first one is written."""

import difflib
import hashlib
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.dev.generator import edit
from app.dev.removal import dropping, migrations, references, rows, shipped
from app.dev.removal.errors import RemovalError
from app.dev.removal.feature import Installed
from app.dev.removal.migrations import Migration

_DIGESTS = "tests/migrations.sha256"
_VERSIONS = "src/app/migrations/versions"
# A sentence names this many files.
_NAMED = 3


@dataclass(frozen=True)
class Removal:
    """What the removal of a feature writes and deletes. `undone` are the deleted migrations, the oldest first.

    In the first of two releases, the models and the tables stay.
    """

    feature: Installed
    deleted: Sequence[str]
    changed: Mapping[str, str]
    created: Mapping[str, str] = field(default_factory=dict)
    undone: Sequence[str] = ()
    is_first_release: bool = False

    @property
    def root(self) -> Path:
        return self.feature.root

    def preview(self) -> Iterator[str]:
        """Yield each deleted file, the difference of each changed one, and each new one."""
        yield "\n".join(f"--- {path} is deleted" for path in self.deleted)
        for path, text in self.changed.items():
            before = (self.root / path).read_text().splitlines(keepends=True)
            yield "".join(difflib.unified_diff(before, text.splitlines(keepends=True), path, path))
        for path, text in self.created.items():
            yield f"+++ {path}\n{text}"

    def mentions(self) -> list[str]:
        return list(references.mentions(self.feature, self.changed))

    def write(self) -> None:
        """Write and delete all files. If one cannot be, restore the others."""
        before = {path: (self.root / path).read_bytes() for path in (*self.changed, *self.deleted)}
        try:
            for path, text in {**self.created, **self.changed}.items():
                (self.root / path).write_text(text)
            for path in self.deleted:
                (self.root / path).unlink()
        except OSError as error:
            self._undo(before)
            message = f"{error.filename} cannot be written or deleted: {error.strerror}. Nothing was changed."
            raise RemovalError(message) from error
        for directory in self.feature.paths:
            if not any(path.suffix != ".pyc" and path.is_file() for path in (self.root / directory).rglob("*")):
                shutil.rmtree(self.root / directory, ignore_errors=True)

    def _undo(self, before: Mapping[str, bytes]) -> None:
        for path in self.created:
            (self.root / path).unlink(missing_ok=True)
        for path, content in before.items():
            (self.root / path).write_bytes(content)


def plan(root: Path, name: str, *, is_deployed: bool = False, is_forced: bool = False) -> Removal:
    """Return what to write. Raises `RemovalError` if the feature cannot be removed."""
    feature = _installed(root, name.replace("-", "_"))
    if needed := list(references.needs(feature)):
        message = f"Other code needs {feature.name}. Change it first: {'; '.join(needed)}."
        raise RemovalError(message)
    history = migrations.history(root)
    own = migrations.own(feature, history)
    removal = _planned(feature, history, own, is_deployed=is_deployed)
    if not is_forced:
        _refuse_uncommitted(root, removal.deleted)
    return removal


def _installed(root: Path, name: str) -> Installed:
    listed = edit.listed((root / edit.FILE).read_text())
    parts = {part: paths for part, paths in shipped.PARTS.items() if (root / paths[0]).exists()}
    removable = ", ".join([*(each for each in listed if each not in shipped.KEPT), *parts])
    if reason := shipped.KEPT.get(name):
        message = f"{name} cannot be removed: {reason} These can: {removable}."
        raise RemovalError(message)
    if name not in listed and name not in parts:
        unknown = f'There is no feature "{name}".' if name else "The name is missing."
        message = f"{unknown} These can be removed: {removable}."
        raise RemovalError(message)
    own = (f"src/app/{name}", f"tests/{name}", *shipped.REMOVABLE.get(name, ()))
    return Installed(root, name, parts.get(name, own))


def _planned(
    feature: Installed, history: Sequence[Migration], own: Sequence[Migration], *, is_deployed: bool
) -> Removal:
    if not (is_deployed and own):
        return _without_migrations(feature, history, own)
    if code := [path for path in feature.files if path not in feature.files_of_models]:
        return Removal(feature, code, rows.without_rows(feature), is_first_release=True)
    revision, text = dropping.drop(feature.root, feature.name, own, history[-1].name)
    created = {f"{_VERSIONS}/{revision}.py": text}
    return Removal(feature, feature.files, _changed(feature, [], created), created)


def _without_migrations(feature: Installed, history: Sequence[Migration], own: Sequence[Migration]) -> Removal:
    names = [each.name for each in own]
    deleted = [*feature.files, *(f"{_VERSIONS}/{name}.py" for name in names)]
    relinked = {f"{_VERSIONS}/{name}.py": text for name, text in migrations.relinked(history, own).items()}
    return Removal(feature, deleted, relinked | _changed(feature, names, relinked), undone=names)


def _changed(feature: Installed, removed: Sequence[str], written: Mapping[str, str]) -> dict[str, str]:
    """Return the new texts of the list of features, of the digests, and of the files with rows of the feature."""
    features, digests = ((feature.root / path).read_text() for path in (edit.FILE, _DIGESTS))
    changed = {**rows.without_rows(feature)}
    if feature.name in edit.listed(features):
        changed[edit.FILE] = edit.removed(features, feature.name)
    return changed | ({_DIGESTS: _digests(digests, removed, written)} if removed or written else {})


def _refuse_uncommitted(root: Path, paths: Sequence[str]) -> None:
    command = ["git", "status", "--porcelain", "--untracked-files=all", "--", *paths]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        message = (
            f"git cannot tell whether these files are committed: {done.stderr.strip()} FORCE=1 deletes them anyway."
        )
        raise RemovalError(message)
    if lost := [line[3:] for line in done.stdout.splitlines()]:
        more = len(lost[_NAMED:])
        message = (
            f"{', '.join(lost[:_NAMED])}{f' and {more} more' if more else ''} would be lost, because of changes that are not "
            "committed. Commit them, or delete them with FORCE=1."
        )
        raise RemovalError(message)


def _digests(text: str, removed: Sequence[str], written: Mapping[str, str]) -> str:
    """Return the list of digests without removed migrations, and with those of written ones."""
    gone = {f"{name}.py" for name in removed}
    new = {Path(path).name: hashlib.sha256(text.encode()).hexdigest() for path, text in written.items()}
    lines = [line.split("  ", 1) for line in text.splitlines()]
    kept = [(new.pop(name, digest), name) for digest, name in lines if name not in gone]
    return "".join(f"{digest}  {name}\n" for digest, name in [*kept, *((digest, name) for name, digest in new.items())])
