"""Serves the application in a child process, and starts that process again when a file of the application changes."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from app.dev.serving import GO, LOAD, READY

SOURCE = Path(__file__).resolve().parents[1]
_POLL_INTERVAL = 0.25
_MIGRATIONS = "migrations/versions/"
# Seconds for requests and jobs in progress to finish before the process is killed.
_STOP_TIMEOUT = 5.0

log = logging.getLogger(__name__)

# Time of the last change, size and inode of a file. One of them changes when the file does.
type State = tuple[int, int, int]


class ServingError(Exception):
    """The application did not start. Its process has printed the reason."""


def serve_and_reload(variables: Mapping[str, str], announce: Callable[[], None], source: Path = SOURCE) -> None:
    """Serve until KeyboardInterrupt. `announce` is called once, when the first process accepts connections."""
    files = _Files(source)
    served = spare = _Served(variables)
    try:
        served.load()
        served.begin()
        if not served.wait_until_ready():
            message = "The application did not start; the lines above say why."
            raise ServingError(message)
        announce()
        spare = _Served(variables)
        while True:
            time.sleep(_POLL_INTERVAL)
            if changed := files.changed():
                log.info("reloading", extra={"changed": changed})
                if any(path.startswith(_MIGRATIONS) for path in changed):
                    log.warning("a migration has changed; the next make run will run it")
                spare.load()
                served.stop()
                served = spare
                served.begin()
                spare = _Served(variables)
            elif served.has_just_ended():
                log.error("the application has stopped; it starts again when a file changes")
    finally:
        spare.stop()
        served.stop()


class _Files:
    """The files of the application, with their states at the last look."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._known = self._look()

    def changed(self) -> list[str]:
        """Return the files that have changed since the last call."""
        before = self._known
        self._known = self._look()
        if self._known == before:
            return []
        self._settle()
        paths = (path for path in before.keys() | self._known.keys() if before.get(path) != self._known.get(path))
        return sorted(str(path.relative_to(self._source)) for path in paths)

    def _settle(self) -> None:
        """Wait until no more files change: an editor or `git switch` may still be writing."""
        while True:
            time.sleep(_POLL_INTERVAL / 2)
            latest = self._look()
            if latest == self._known:
                return
            self._known = latest

    def _look(self) -> Mapping[Path, State]:
        found = {}
        for path in _files(self._source):
            # The file may be the temporary one of an editor, and be deleted meanwhile.
            with suppress(OSError):
                state = path.stat()
                found[path] = (state.st_mtime_ns, state.st_size, state.st_ino)
        return found


def _files(source: Path) -> Iterator[Path]:
    for directory, directories, names in source.walk():
        directories[:] = [name for name in directories if name != "__pycache__" and not name.startswith(".")]
        yield from (directory / name for name in names if not name.startswith(".") and not name.endswith("~"))


class _Served:
    """A process that serves the application. It imports the libraries at once, and does everything else when it is told to."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._is_ended = False
        self._control, theirs = socket.socketpair()
        with theirs, _blocked(signal.SIGINT):
            self._process = subprocess.Popen(
                [sys.executable, "-m", "app.dev.serving", str(theirs.fileno())],
                env=os.environ | variables,
                pass_fds=[theirs.fileno()],
            )

    def load(self) -> None:
        """Let the process import the application. Later changes of its files have no effect."""
        self._tell(LOAD)

    def begin(self) -> None:
        """Let the process listen. The port must be free."""
        self._tell(GO)

    def _tell(self, command: bytes) -> None:
        # If the process has ended, because a module cannot be imported, it has printed the reason.
        with suppress(OSError):
            self._control.sendall(command)

    def wait_until_ready(self) -> bool:
        """Return False if the process ends before it accepts connections."""
        return self._control.recv(len(READY)) == READY

    def has_just_ended(self) -> bool:
        """Return True once, if the process has ended by itself."""
        if self._is_ended or self._process.poll() is None:
            return False
        self._is_ended = True
        return True

    def stop(self) -> None:
        """Let requests and jobs in progress finish. A second Ctrl-C kills the process."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            log.warning("the application did not stop in time and was killed")
        finally:
            self._process.kill()
            self._process.wait()
            self._control.close()


@contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    """Block a signal here, and in a process that the block starts, until that process unblocks it.

    Ctrl-C reaches the whole process group, and Python would print a traceback while it starts.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
