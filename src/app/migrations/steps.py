"""Which way a schema goes to reach a revision, and where it is."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import override

from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError

from app.migrations import scripts
from app.migrations.errors import MigrationError
from app.migrations.revisions import named

_RELATIVE = re.compile(r"[+-]\d+")
# What Alembic's own commands understand beyond a revision: relative to another one, a branch, a range.
_COMPOUND = re.compile(r"[-+@:]")


@dataclass(frozen=True)
class Move:
    """The revisions that a schema was at, and those that it is at now."""

    before: tuple[str, ...]
    after: tuple[str, ...]

    @override
    def __str__(self) -> str:
        if self.before == self.after:
            return f"The schema is already at {named(self.after)}. Nothing was changed."
        return f"The schema is at {named(self.after)} now; it was at {named(self.before)}."


@dataclass(frozen=True)
class Step:
    """One command of Alembic: forward or back, to a revision."""

    target: str
    is_back: bool


def resolve(directory: ScriptDirectory, current: tuple[str, ...], revision: str) -> Step | None:
    """Say how to get from the current revisions to one given as on the command line; None if nothing is to be done."""
    applied = _applied(directory, current)
    target = (
        _relative(directory, current, int(revision))
        if _RELATIVE.fullmatch(revision)
        else _absolute(directory, revision)
    )
    if target == "base":
        return Step(target, is_back=True) if current else None
    if target not in applied:
        return Step(target, is_back=False)
    later = _later(directory, target) & applied
    if later.isdisjoint(directory.get_revision(target).nextrev) and later:
        message = (
            f"{named(sorted(later))} depends on {target} from another branch: name a revision of that branch first"
        )
        raise MigrationError(message)
    return Step(target, is_back=True) if later else None


def resolve_offline(directory: ScriptDirectory, revision: str) -> str:
    """Find the revision up to which SQL is written, from an empty database."""
    if _RELATIVE.fullmatch(revision) or revision == "base":
        message = f"--sql starts at an empty database and cannot go to {revision}: name a revision"
        raise MigrationError(message)
    return _absolute(directory, revision)


def status(directory: ScriptDirectory, current: tuple[str, ...]) -> str:
    """List the migrations, and say where the schema is."""
    unknown = _unknown(directory, current)
    applied = set() if unknown else _applied(directory, current)
    history = list(directory.walk_revisions())[::-1]
    pending = [script.revision for script in history if script.revision not in applied]
    width = max(len(script.revision) for script in history)
    lines = [
        f"  {'unknown' if unknown else 'pending' if script.revision in pending else 'applied'}  "
        f"{script.revision:{width}}  {' '.join(script.doc.split())}"
        for script in history
    ]
    return "\n".join([_summary(directory, current, unknown, len(pending)), "", *lines])


def _summary(directory: ScriptDirectory, current: tuple[str, ...], unknown: list[str], pending: int) -> str:
    heads = directory.get_heads(consider_depends_on=True)
    if unknown:
        place = f"The schema is at {named(current)}. This release does not know {named(unknown)}: a newer one does."
    elif not current:
        place = "The schema is at no revision: no migration has run."
    else:
        place = f"The schema is at {named(current)}."
    if len(heads) > 1:
        return f"{place}\nNo migration can run: {scripts.several_heads(directory, heads)}"
    if pending and not unknown:
        return f"{place} Pending migrations: {pending}. Run `app migrate`."
    return place


def _unknown(directory: ScriptDirectory, current: Iterable[str]) -> list[str]:
    known = {script.revision for script in directory.walk_revisions()}
    return [name for name in current if name not in known]


def _applied(directory: ScriptDirectory, current: tuple[str, ...]) -> set[str]:
    """Give every migration that has run: the current ones, their ancestors, and what these depend on."""
    if unknown := _unknown(directory, current):
        message = (
            f"the schema is at revision {named(unknown)}, which this program does not know; it belongs to a newer one"
        )
        raise MigrationError(message)
    applied: set[str] = set()
    open_ = list(current)
    while open_:
        script = directory.get_revision(open_.pop())
        applied.add(script.revision)
        open_ += set(_needed(directory, script)) - applied
    return applied


def _later(directory: ScriptDirectory, target: str) -> set[str]:
    """Give the migrations that need this one, directly or through others."""
    found = {target}
    for script in list(directory.walk_revisions())[::-1]:
        if found.intersection(_needed(directory, script)):
            found.add(script.revision)
    return found - {target}


def _needed(directory: ScriptDirectory, script: Script) -> list[str]:
    """Give the migrations that run before this one: its parents, and those that it depends on."""
    dependencies = [directory.get_revision(name).revision for name in _names(script.dependencies)]
    return [*_names(script.down_revision), *dependencies]


def _names(given: str | Collection[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())


def _absolute(directory: ScriptDirectory, revision: str) -> str:
    if revision in {"head", "heads"}:
        return scripts.head(directory)
    if revision == "base":
        return revision
    if not revision or _COMPOUND.search(revision):
        message = (
            f"cannot go to {revision or "''"}: name a revision, `head`, `base`, or a number of steps such as -1 or +1"
        )
        raise MigrationError(message)
    try:
        return directory.get_revision(revision).revision
    except CommandError:
        message = f"no migration, or more than one, is called {revision}; `app migrate --status` lists them"
        raise MigrationError(message) from None


def _relative(directory: ScriptDirectory, current: tuple[str, ...], steps: int) -> str:
    """Walk from the current revision, down for -1 and up for +1."""
    if len(current) > 1:
        message = f"the schema is at {named(current)}, so steps can go several ways: name a revision"
        raise MigrationError(message)
    place = current[0] if current else "base"
    for _ in range(abs(steps)):
        place = _neighbour(directory, place, is_back=steps < 0)
    return place


def _neighbour(directory: ScriptDirectory, place: str, *, is_back: bool) -> str:
    script = None if place == "base" else directory.get_revision(place)
    neighbours = _parents(script) if is_back else _children(directory, script)
    if len(neighbours) != 1:
        found = f"several are: {', '.join(neighbours)}" if neighbours else "there is none"
        message = f"no one step leads {'back' if is_back else 'on'} from {place} ({found}): name a revision"
        raise MigrationError(message)
    return neighbours[0]


def _parents(script: Script | None) -> list[str]:
    return [] if script is None else _names(script.down_revision) or ["base"]


def _children(directory: ScriptDirectory, script: Script | None) -> list[str]:
    return directory.get_bases() if script is None else sorted(script.nextrev)
