"""The migration files, read by Alembic. Errors name the files and say what to do."""

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

# Alembic's version table stores it as VARCHAR(32).
_LONGEST_REVISION = 32


def config() -> Config:
    """Give Alembic's configuration: the scripts are part of the package, wherever it is installed."""
    configuration = Config()
    configuration.set_main_option("script_location", str(revisions.DIRECTORY).replace("%", "%%"))
    configuration.set_main_option("path_separator", "os")
    return configuration


def read() -> ScriptDirectory:
    """Load every migration file; raise a `MigrationFileError` unless each can be loaded and reached."""
    modules = {file: _load(file) for file in _files()}
    _refuse_duplicates(modules)
    _refuse_missing(modules)
    _refuse_circles(modules)
    scripts = ScriptDirectory.from_config(config())
    try:
        # Alembic reads the files now.
        scripts.get_heads()
    except (CommandError, RevisionError) as error:
        message = f"Alembic refuses the migration files: {error}"
        raise MigrationFileError(message) from None
    return scripts


def head(scripts: ScriptDirectory) -> str:
    """Give the one revision that no other follows or depends on; raise a `MigrationFileError` if there are several."""
    heads = scripts.get_heads(consider_depends_on=True)
    if not heads:
        message = f"there is no migration in {revisions.DIRECTORY / 'versions'}"
        raise MigrationFileError(message)
    if len(heads) > 1:
        raise MigrationFileError(several_heads(scripts, heads))
    return heads[0]


def several_heads(scripts: ScriptDirectory, heads: list[str]) -> str:
    """Say which files follow the same migration, and with which command they are joined."""
    files = _names(Path(scripts.get_revision(name).path) for name in heads)
    joined = _name_of_merge(scripts, heads)
    return (
        f"{files} are the newest migrations of separate branches; join them: "
        f'.venv/bin/alembic merge heads --rev-id {joined} -m "Join branches."'
    )


@contextmanager
def telling() -> Iterator[None]:
    """Turn what Alembic refuses, and a mistake in a migration, into a `MigrationError`."""
    try:
        yield
    except (DBAPIError, MigrationError):
        raise
    except CommandError as error:
        raise MigrationError(str(error)) from error
    except Exception as error:
        if (place := _culprit(error)) is None:
            raise
        message = f"{place}: this migration fails ({type(error).__name__}: {error}); correct the file"
        raise MigrationError(message) from error


def _culprit(error: Exception) -> str | None:
    """Name the migration file and the line that an error comes from; None if it comes from elsewhere."""
    if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType) and _is_migration(error.obj.__file__):
        # Alembic asks the file for `upgrade` or `downgrade`.
        return Path(str(error.obj.__file__)).name
    if isinstance(error, SyntaxError) and _is_migration(error.filename):
        return f"{Path(str(error.filename)).name}, line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_migration(frame.filename)]
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else None


def _is_migration(file: str | None) -> bool:
    return file is not None and Path(file).parent == (revisions.DIRECTORY / "versions").absolute()


def _files() -> list[Path]:
    # What Alembic takes for a migration.
    files = (revisions.DIRECTORY / "versions").absolute().glob("*.py")
    return sorted(file for file in files if not file.name.startswith((".#", "__init__")))


def _load(file: Path) -> ModuleType:
    try:
        module = load_python_file(file.parent, file.name)
    except Exception as error:
        place = _culprit(error) or file.name
        message = f"{place}: this migration cannot be loaded ({type(error).__name__}: {error}); correct the file"
        raise MigrationFileError(message) from error
    _refuse_unnamed(file, module)
    return module


def _refuse_unnamed(file: Path, module: ModuleType) -> None:
    revision = getattr(module, "revision", None)
    if not isinstance(revision, str) or not hasattr(module, "down_revision"):
        complaint = "it needs `revision`, its own name, and `down_revision`, the name of the migration before it"
    elif not all(isinstance(name, str) for name in _needs(module)):
        complaint = "`down_revision` and `depends_on` take None, a revision or a tuple of revisions"
    elif len(revision) > _LONGEST_REVISION:
        complaint = (
            f"the revision {revision} has {len(revision)} characters; Alembic stores {_LONGEST_REVISION}: shorten it"
        )
    else:
        return
    message = f"{file.name}: {complaint}"
    raise MigrationFileError(message)


def _named(module: ModuleType, attribute: str) -> tuple[object, ...]:
    value = getattr(module, attribute, None)
    if value is None:
        return ()
    return tuple(value) if isinstance(value, tuple | list | set | frozenset) else (value,)


def _refuse_duplicates(modules: dict[Path, ModuleType]) -> None:
    files: dict[str, Path] = {}
    for file, module in modules.items():
        other = files.setdefault(module.revision, file)
        if other != file:
            message = f"{_names([other, file])} have the same revision {module.revision}; give one of them another"
            raise MigrationFileError(message)


def _refuse_missing(modules: dict[Path, ModuleType]) -> None:
    known = {name for module in modules.values() for name in (module.revision, *_named(module, "branch_labels"))}
    for file, module in modules.items():
        for attribute in ("down_revision", "depends_on"):
            if absent := [name for name in _named(module, attribute) if name not in known]:
                message = (
                    f"{file.name}: `{attribute}` names {absent[0]}, which no migration file defines; "
                    "restore that file or name another revision"
                )
                raise MigrationFileError(message)


def _refuse_circles(modules: dict[Path, ModuleType]) -> None:
    labels = {label: module.revision for module in modules.values() for label in _named(module, "branch_labels")}
    needs = {module.revision: {labels.get(name, name) for name in _needs(module)} for module in modules.values()}
    # Each round removes the migrations that need none of the rest, or that none of the rest needs.
    while ends := [name for name in needs if not needs[name] or not any(name in others for others in needs.values())]:
        needs = {name: others.difference(ends) for name, others in needs.items() if name not in ends}
    if needs:
        circle = _names(file for file, module in modules.items() if module.revision in needs)
        message = f"{circle}: a circle of migrations has no first one; correct `down_revision` or `depends_on`"
        raise MigrationFileError(message)


def _needs(module: ModuleType) -> list[object]:
    return [*_named(module, "down_revision"), *_named(module, "depends_on")]


def _name_of_merge(scripts: ScriptDirectory, heads: list[str]) -> str:
    # Migrations are dated in their order.
    date = max([f"{datetime.now(UTC):%Y%m%d}", *(name[:8] for name in heads if name[:8].isdigit())])
    taken = {script.revision for script in scripts.walk_revisions()}
    names = (f"{date}_join{f'_{number}' if number > 1 else ''}" for number in count(1))
    return next(name for name in names if name not in taken)


def _names(files: Iterable[Path]) -> str:
    return " and ".join(sorted(file.name for file in files))
