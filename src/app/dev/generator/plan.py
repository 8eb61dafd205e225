"""Computes every new and changed file of a feature before the first one is written."""

import difflib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from app.dev.generator import edit
from app.dev.generator.conflicts import refuse_conflicts
from app.dev.generator.errors import GeneratorError
from app.dev.generator.feature import Feature
from app.dev.generator.parse import parse
from app.dev.generator.render import render, render_lookup
from app.dev.generator.repository import Repository, Revision

_DIGESTS = "tests/migrations.sha256"


@dataclass(frozen=True)
class Plan:
    """Texts of files by their path: new ones, and existing ones with their changes."""

    root: Path
    feature: Feature
    created: Mapping[str, str] = field(default_factory=dict)
    changed: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.created or self.changed)

    def preview(self) -> Iterator[str]:
        """Yield each new file, and the difference of each existing one."""
        for path, text in self.created.items():
            yield f"--- {path}\n{text}"
        for path, text in self.changed.items():
            before = (self.root / path).read_text().splitlines(keepends=True)
            yield "".join(difflib.unified_diff(before, text.splitlines(keepends=True), path, path))

    def write(self) -> None:
        """Write all files. If one cannot be written, remove and restore the others."""
        before = {path: (self.root / path).read_text() for path in self.changed}
        try:
            for path, text in {**self.created, **self.changed}.items():
                (self.root / path).parent.mkdir(parents=True, exist_ok=True)
                (self.root / path).write_text(text)
        except OSError as error:
            self._undo(before)
            message = f"{error.filename} cannot be written: {error.strerror}. Nothing was changed."
            raise GeneratorError(message) from error

    def _undo(self, before: Mapping[str, str]) -> None:
        for path in self.created:
            (self.root / path).unlink(missing_ok=True)
        for directory in {(self.root / path).parent for path in self.created}:
            if directory.exists() and not any(directory.iterdir()):
                directory.rmdir()
        for path, text in before.items():
            (self.root / path).write_text(text)


def plan(root: Path, name: str, fields: str, one: str = "", scope: str = "", *, is_public: bool = False) -> Plan:
    """Return what to write. It is empty if the feature exists exactly as it would be generated.

    Raises `GeneratorError` for names and types that cannot be used.
    """
    repository = Repository(root)
    feature = parse(name, fields, one, scope, is_public=is_public, targets=repository.target)
    if _exists_as_generated(repository, feature):
        return Plan(root, feature)
    refuse_conflicts(repository, feature)
    revision = next_revision(repository, feature, datetime.now(UTC).strftime("%Y%m%d"))
    files = render(root, feature, revision)
    changed = {
        edit.FILE: edit.added((root / edit.FILE).read_text(), feature.name),
        _DIGESTS: _with_digest(root, revision, files),
    }
    for target in feature.lookups:
        for path, text in render_lookup(root, target).items():
            (changed if (root / path).exists() else files)[path] = text
    return Plan(root, feature, files, changed)


def next_revision(repository: Repository, feature: Feature, date: str) -> Revision:
    """Return the name of the migration. Its date is not earlier than that of the migration before it."""
    return Revision(f"{max(date, repository.head[:8])}_{feature.name}", repository.head)


def _with_digest(root: Path, revision: Revision, files: Mapping[str, str]) -> str:
    text = files[f"src/app/migrations/versions/{revision.name}.py"]
    return f"{(root / _DIGESTS).read_text()}{hashlib.sha256(text.encode()).hexdigest()}  {revision.name}.py\n"


def _exists_as_generated(repository: Repository, feature: Feature) -> bool:
    revision = repository.revision_of(feature.name)
    if revision is None or feature.name not in edit.listed((repository.root / edit.FILE).read_text()):
        return False
    files = render(repository.root, feature, revision)
    return all(_has_text(repository.root / path, text) for path, text in files.items())


def _has_text(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text
