"""Finds the Alembic command that brings a schema to a revision, and describes the state of a schema."""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import override

from alembic import command
from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError

from app.migrations import scripts
from app.migrations.errors import MigrationError, UnknownRevisionError
from app.migrations.revisions import named

_RELATIVE = re.compile(r"[+-]\d+")
# Expressions that only Alembic's own commands accept: relative to a revision, in a branch, or a range.
_EXPRESSION = re.compile(r"[-+@:]")


# A command of Alembic, `upgrade` or `downgrade`, and its target.
type Step = tuple[Callable[[Config, str], None], str]


@dataclass(frozen=True)
class MigrationResult:
    """The revisions of a schema before and after a migration."""

    before: tuple[str, ...]
    after: tuple[str, ...]

    @override
    def __str__(self) -> str:
        if self.before == self.after:
            return f"The schema is already at {named(self.after)}. Nothing was changed."
        return f"The schema is at {named(self.after)} now; it was at {named(self.before)}."


def resolve(directory: ScriptDirectory, current: tuple[str, ...], revision: str) -> Step | None:
    """Return the step from the current revisions to a revision of the command line, or None if nothing has to be done."""
    applied = _applied(directory, current)
    target = (
        _relative(directory, current, int(revision))
        if _RELATIVE.fullmatch(revision)
        else _absolute(directory, revision)
    )
    if target == "base":
        return (command.downgrade, target) if current else None
    if target not in applied:
        return command.upgrade, target
    later = _descendants(directory, target) & applied
    if later.isdisjoint(directory.get_revision(target).nextrev) and later:
        message = f"{named(sorted(later))} depends on {target} from another branch; migrate to a revision of that branch first"
        raise MigrationError(message)
    return (command.downgrade, target) if later else None


def resolve_offline(directory: ScriptDirectory, revision: str) -> str:
    """Return the revision up to which SQL is written, starting from an empty database."""
    if _RELATIVE.fullmatch(revision) or revision == "base":
        message = f"--sql starts at an empty database and cannot migrate to {revision}; name a revision"
        raise MigrationError(message)
    return _absolute(directory, revision)


def status(directory: ScriptDirectory, current: tuple[str, ...]) -> str:
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
        place = f"The schema is at {named(current)}. {named(unknown)} belongs to a newer release."
    elif not current:
        place = "No migration has run yet."
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
    """Return every migration that has run: the current ones, their ancestors, and the dependencies of all of them."""
    if unknown := _unknown(directory, current):
        message = f"the schema is at revision {named(unknown)}, which belongs to a newer release of this program"
        raise UnknownRevisionError(message)
    return {script.revision for script in directory.iterate_revisions(current, "base")}


def _descendants(directory: ScriptDirectory, target: str) -> set[str]:
    """Return the migrations that need this one, directly or through others."""
    found = {target}
    for script in list(directory.walk_revisions())[::-1]:
        if found.intersection(_parents_of(directory, script)):
            found.add(script.revision)
    return found - {target}


def _parents_of(directory: ScriptDirectory, script: Script) -> list[str]:
    dependencies = [directory.get_revision(name).revision for name in _as_list(script.dependencies)]
    return [*_as_list(script.down_revision), *dependencies]


def _as_list(given: str | Collection[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())


def _absolute(directory: ScriptDirectory, revision: str) -> str:
    """Return the revision that `head`, a name or the beginning of a name stands for. `base` stays `base`."""
    if revision in {"head", "heads"}:
        return scripts.head(directory)
    if revision == "base":
        return revision
    if not revision or _EXPRESSION.search(revision):
        message = f"cannot migrate to {revision or "''"}; name a revision, `head`, `base`, or a number of steps such as -1 or +1"
        raise MigrationError(message)
    try:
        return directory.get_revision(revision).revision
    except CommandError:
        message = f"{revision} does not name exactly one migration; `app migrate --status` lists them"
        raise MigrationError(message) from None


def _relative(directory: ScriptDirectory, current: tuple[str, ...], steps: int) -> str:
    """Return the revision that is this number of steps after (or, if negative, before) the current one."""
    if len(current) > 1:
        message = f"the schema is at {named(current)}, so a number of steps is ambiguous; name a revision"
        raise MigrationError(message)
    revision = current[0] if current else "base"
    for _ in range(abs(steps)):
        revision = _next_revision(directory, revision, is_downgrade=steps < 0)
    return revision


def _next_revision(directory: ScriptDirectory, revision: str, *, is_downgrade: bool) -> str:
    script = None if revision == "base" else directory.get_revision(revision)
    if is_downgrade:
        neighbours = [] if script is None else _as_list(script.down_revision) or ["base"]
    else:
        neighbours = directory.get_bases() if script is None else sorted(script.nextrev)
    if len(neighbours) != 1:
        direction = "before" if is_downgrade else "after"
        found = f"{named(neighbours)} are" if neighbours else "no migration is"
        message = f"{found} {direction} {revision}; name a revision"
        raise MigrationError(message)
    return neighbours[0]
