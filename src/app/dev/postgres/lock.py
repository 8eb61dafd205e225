"""Who may use the files of a cluster: one owner at a time, and only after every process of the last one has ended."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.dev.postgres.binaries import EmbeddedPostgresError
from app.dev.postgres.process import STOP_PATIENCE
from app.dev.postgres.run_as import Footing

RETRY_PATIENCE = 10.0
POLL = 0.005


class ClusterInUseError(EmbeddedPostgresError):
    """Another process runs this cluster."""


class ClusterFiles:
    """Where the parts of one cluster are."""

    def __init__(self, footing: Footing, directory: Path) -> None:
        major = str(footing.binaries.major)
        self.footing = footing
        self.home = footing.directory / major
        self.staging = footing.directory / f"{major}.new"
        self.data = self.home / "data"
        self.password = self.home / "password"
        # The lock and the log must not move when a finished home replaces its staging directory.
        self.lock = directory / f"{major}.lock"
        self.log = directory / f"{major}.log"


@contextmanager
def locked(files: ClusterFiles) -> Iterator[int]:
    lock = os.open(files.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _wait_for(lock, files)
        os.ftruncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        yield lock
    finally:
        os.close(lock)


def _wait_for(lock: int, files: ClusterFiles) -> None:
    """Take the lock at once, or as soon as the server of an owner who died has shut down."""
    deadline = time.monotonic() + RETRY_PATIENCE + STOP_PATIENCE
    while not _is_taken(lock):
        owner = _first_number(files.lock)
        if owner and not _is_alive(owner):
            _interrupt_orphan(files)
        if owner and (_is_alive(owner) or time.monotonic() > deadline):
            message = f"The database in {files.home} is in use by process {owner}."
            raise ClusterInUseError(message)
        time.sleep(POLL)


def _interrupt_orphan(files: ClusterFiles) -> None:
    # The keeper has seen the owner die and is doing this already, unless it was killed too on a system that tells nobody.
    pid = _first_number(files.data / "postmaster.pid")
    if pid and _works_in(pid, files.data):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)


def _is_taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove_stale_pid_file(files: ClusterFiles) -> None:
    # We hold the lock, so the server that wrote this file has ended. PostgreSQL itself cannot know: it would refuse to start
    # as long as any process, be it an editor, has the number in the file, as is common after a container restarts.
    pid_file = files.data / "postmaster.pid"
    pid = _first_number(pid_file)
    if pid and _works_in(pid, files.data):
        message = f"The database in {files.home} is in use by process {pid}, which was not started from here."
        raise ClusterInUseError(message)
    pid_file.unlink(missing_ok=True)


def _works_in(pid: int, data: Path) -> bool:
    if sys.platform == "linux":
        with suppress(OSError):
            return Path(f"/proc/{pid}/cwd").readlink() == data.resolve()
        return False
    shown = subprocess.run(["ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False)
    return str(data) in shown.stdout


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _first_number(path: Path) -> int | None:
    lines = lines_of(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def lines_of(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return []
