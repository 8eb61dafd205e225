"""Locks the files of a cluster: one owner at a time, after all processes of the previous owner have ended."""

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
from app.dev.postgres.process import STOP_TIMEOUT
from app.dev.postgres.run_as import RunAs

RETRY_TIMEOUT = 10.0
POLL_INTERVAL = 0.005


class ClusterInUseError(EmbeddedPostgresError):
    """Another process uses this cluster."""


class ClusterFiles:
    """The paths of one cluster."""

    def __init__(self, run_as: RunAs, directory: Path) -> None:
        major = str(run_as.binaries.major)
        self.run_as = run_as
        self.home = run_as.directory / major
        self.staging = run_as.directory / f"{major}.new"
        self.data = self.home / "data"
        self.password = self.home / "password"
        # Outside of `home`: the lock and the log must stay in place when the staging directory is renamed to `home`.
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
    """Take the lock. If the owner died, wait until its server has shut down."""
    deadline = time.monotonic() + RETRY_TIMEOUT + STOP_TIMEOUT
    while not try_lock(lock):
        owner = _read_pid(files.lock)
        if owner and not _is_alive(owner):
            _interrupt_orphan(files)
        if owner and (_is_alive(owner) or time.monotonic() > deadline):
            message = f"The database in {files.home} is in use by process {owner}."
            raise ClusterInUseError(message)
        time.sleep(POLL_INTERVAL)


def _interrupt_orphan(files: ClusterFiles) -> None:
    # Usually the watchdog is already shutting the server down. If the watchdog was killed too, Linux signals the server. On other
    # systems, only this function does.
    pid = _read_pid(files.data / "postmaster.pid")
    if pid and _runs_in(pid, files.data):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)


def try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove_stale_pid_file(files: ClusterFiles) -> None:
    # This process holds the lock, so the server that wrote the file has ended. PostgreSQL cannot know that. It refuses to
    # start while any process has the pid in the file, and this is common after a restart of a container.
    pid_file = files.data / "postmaster.pid"
    pid = _read_pid(pid_file)
    if pid and _runs_in(pid, files.data):
        message = (
            f"The database in {files.home} is in use by process {pid}, which was not started from here. Stop it first."
        )
        raise ClusterInUseError(message)
    pid_file.unlink(missing_ok=True)


def _runs_in(pid: int, data: Path) -> bool:
    if sys.platform == "linux":
        with suppress(OSError):
            return Path(f"/proc/{pid}/cwd").readlink() == data.resolve()
        return False
    shown = subprocess.run(["ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False)
    return str(data) in shown.stdout


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def _read_pid(path: Path) -> int | None:
    lines = read_lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def read_lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return []
