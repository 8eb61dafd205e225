"""Loads and checks the migration files. Errors name the files and say what to do."""

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from types import ModuleType

from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError, load_python_file
from sqlalchemy.exc import DBAPIError

from app.migrations import revisions
from app.migrations.errors import MigrationError, MigrationFileError

# Alembic's version table stores a revision as VARCHAR(32).
_LONGEST_REVISION = 32


def config() -> Config:
    configuration = Config()
    configuration.set_main_option("script_location", str(revisions.DIRECTORY).replace("%", "%%"))
    configuration.set_main_option("path_separator", "os")
    return configuration


def read() -> ScriptDirectory:
    """Load the migration files. Raise a `MigrationFileError` if one is invalid or they do not form a history."""
    # The same files as Alembic's.
    files = sorted((revisions.DIRECTORY / "versions").absolute().glob("*.py"))
    modules = {file: _load(file) for file in files if not file.name.startswith((".#", "__init__"))}
    _check_duplicates(modules)
    _check_references(modules)
    _check_cycles(modules)
    scripts = ScriptDirectory.from_config(config())
    try:
        # This call makes Alembic read the files.
        scripts.get_heads()
    except (CommandError, RevisionError) as error:
        message = f"Alembic rejects the migration files: {error}"
        raise MigrationFileError(message) from None
    return scripts


def head(scripts: ScriptDirectory) -> str:
    """Return the only revision that no other follows or depends on. Raise a `MigrationFileError` if there are several."""
    heads = scripts.get_heads(consider_depends_on=True)
    if not heads:
        message = f"there is no migration in {revisions.DIRECTORY / 'versions'}"
        raise MigrationFileError(message)
    if len(heads) > 1:
        raise MigrationFileError(several_heads(scripts, heads))
    return heads[0]


def several_heads(scripts: ScriptDirectory, heads: list[str]) -> str:
    """Name the newest files of separate branches, and the command that merges the branches."""
    files = _file_names(Path(scripts.get_revision(name).path) for name in heads)
    merge = _merge_revision(scripts, heads)
    return (
        f"{files} are the newest migrations of separate branches; merge them: "
        f'.venv/bin/alembic merge heads --rev-id {merge} -m "Merge branches."'
    )


@contextmanager
def migration_errors() -> Iterator[None]:
    """Convert errors of Alembic and of a migration's own code to a `MigrationError`."""
    try:
        yield
    except (DBAPIError, MigrationError):
        raise
    except CommandError as error:
        raise MigrationError(str(error)) from error
    except Exception as error:
        if (place := _location_of(error)) is None:
            raise
        message = f"{place}: this migration fails ({type(error).__name__}: {error}); correct the file"
        raise MigrationError(message) from error


def _location_of(error: Exception) -> str | None:
    """Return the migration file and the line that raised an error, or None if the error has another origin."""
    if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType) and _is_migration(error.obj.__file__):
        # The file lacks `upgrade` or `downgrade`.
        return Path(str(error.obj.__file__)).name
    if isinstance(error, SyntaxError) and _is_migration(error.filename):
        return f"{Path(str(error.filename)).name}, line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_migration(frame.filename)]
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else None


def _is_migration(file: str | None) -> bool:
    return file is not None and Path(file).parent == (revisions.DIRECTORY / "versions").absolute()


def _load(file: Path) -> ModuleType:
    try:
        module = load_python_file(file.parent, file.name)
    except Exception as error:
        place = _location_of(error) or file.name
        message = f"{place}: this migration cannot be loaded ({type(error).__name__}: {error}); correct the file"
        raise MigrationFileError(message) from error
    _check_attributes(file, module)
    return module


def _check_attributes(file: Path, module: ModuleType) -> None:
    revision = getattr(module, "revision", None)
    if not isinstance(revision, str) or not hasattr(module, "down_revision"):
        problem = "define `revision`, its own name, and `down_revision`, the name of the previous migration"
    elif not all(isinstance(name, str) for name in _parents_of(module)):
        problem = "`down_revision` and `depends_on` must be None, a revision or a tuple of revisions"
    elif len(revision) > _LONGEST_REVISION:
        problem = f"the revision {revision} has {len(revision)} characters; shorten it to at most {_LONGEST_REVISION}"
    else:
        return
    message = f"{file.name}: {problem}"
    raise MigrationFileError(message)


def _values_of(module: ModuleType, attribute: str) -> tuple[object, ...]:
    value = getattr(module, attribute, None)
    if value is None:
        return ()
    return tuple(value) if isinstance(value, tuple | list | set | frozenset) else (value,)


def _check_duplicates(modules: dict[Path, ModuleType]) -> None:
    files: dict[str, Path] = {}
    for file, module in modules.items():
        other = files.setdefault(module.revision, file)
        if other != file:
            message = f"{_file_names([other, file])} have the same revision {module.revision}; change one of them"
            raise MigrationFileError(message)


def _check_references(modules: dict[Path, ModuleType]) -> None:
    known = {name for module in modules.values() for name in (module.revision, *_values_of(module, "branch_labels"))}
    for file, module in modules.items():
        for attribute in ("down_revision", "depends_on"):
            if absent := [name for name in _values_of(module, attribute) if name not in known]:
                message = (
                    f"{file.name}: `{attribute}` names {absent[0]}, which no migration file defines; "
                    "restore that file or name another revision"
                )
                raise MigrationFileError(message)


def _check_cycles(modules: dict[Path, ModuleType]) -> None:
    labels = {label: module.revision for module in modules.values() for label in _values_of(module, "branch_labels")}
    needs = {module.revision: {labels.get(name, name) for name in _parents_of(module)} for module in modules.values()}
    # Each round removes the migrations that need no other one, and those that no other one needs. Cycles remain.
    while ends := [name for name in needs if not needs[name] or not any(name in others for others in needs.values())]:
        needs = {name: others.difference(ends) for name, others in needs.items() if name not in ends}
    if needs:
        cycle = _file_names(file for file, module in modules.items() if module.revision in needs)
        message = f"{cycle}: these migrations form a cycle; correct `down_revision` or `depends_on`"
        raise MigrationFileError(message)


def _parents_of(module: ModuleType) -> list[object]:
    return [*_values_of(module, "down_revision"), *_values_of(module, "depends_on")]


def _merge_revision(scripts: ScriptDirectory, heads: list[str]) -> str:
    """Return an unused revision for a merge. Its date is not before those of the heads, so the files sort in their order."""
    date = max([f"{datetime.now(UTC):%Y%m%d}", *(name[:8] for name in heads if name[:8].isdigit())])
    taken = {script.revision for script in scripts.walk_revisions()}
    names = (f"{date}_merge{f'_{number}' if number > 1 else ''}" for number in count(1))
    return next(name for name in names if name not in taken)


def _file_names(files: Iterable[Path]) -> str:
    return " and ".join(sorted(file.name for file in files))
