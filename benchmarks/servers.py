"""Server processes that are pinned to their own cores, with CPU time and memory from `/proc`."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Self

from app.dev.ports import free_port
from benchmarks.load import LoadError

ROOT = Path(__file__).parent.parent
_TIMEOUT = 60.0
_POLL = 0.002
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
# Prefixes of variables that a server must not inherit: settings, and PYTHONDONTWRITEBYTECODE, which slows every start.
_NOT_INHERITED = ("APP_", "DATABASE_URL", "PORT", "PYTHON")


@dataclass(frozen=True)
class Cores:
    """The cores of the servers, and those of the load generator, the database and this process."""

    server: tuple[int, ...]
    load: tuple[int, ...]

    @property
    def all(self) -> tuple[int, ...]:
        """All cores."""
        return tuple(sorted({*self.server, *self.load}))


def split_cores() -> Cores:
    """Reserve one core for the server. Move this process, and so its children, to the others."""
    *rest, last = sorted(os.sched_getaffinity(0))
    cores = Cores(server=(last,), load=tuple(rest) or (last,))
    os.sched_setaffinity(0, cores.load)
    return cores


@dataclass(frozen=True)
class Command:
    """How a server is started. It gets its port as `PORT`, and in arguments in place of `{port}`."""

    arguments: tuple[str, ...]
    environment: dict[str, str] = field(repr=False)


class Server:
    """A running server. Its output goes to a file."""

    def __init__(self, command: Command, cores: Sequence[int], log: Path) -> None:
        self.port = free_port()
        self._log = log
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
        self.started = time.perf_counter()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *("taskset", "--cpu-list", ",".join(map(str, cores)), sys.executable),
                    *(argument.format(port=self.port) for argument in command.arguments),
                ],
                env=inherited | command.environment | {"PORT": str(self.port)},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # The process group identifies its workers, and is killed as a whole.
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        try:
            self.seconds_to_first_response = self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _wait(self) -> float:
        while not self._is_live():
            if self._process.poll() is not None or time.perf_counter() - self.started > _TIMEOUT:
                message = f"the server did not start:\n{self._log.read_text(errors='replace')[-2000:]}"
                raise LoadError(message)
            time.sleep(_POLL)
        return time.perf_counter() - self.started

    def _is_live(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return self._status("/livez") == HTTPStatus.OK
        return False

    def _status(self, path: str) -> int:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    def stop(self) -> None:
        """Stop the server, and kill the processes of its group that remain."""
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def pid(self) -> int:
        """The id of the process that was started. Its workers are its children."""
        return self._process.pid

    def cpu_seconds(self) -> float:
        """Return the CPU time of all its processes."""
        return sum(int(fields[11]) + int(fields[12]) for fields in self._stats()) / _TICKS

    def memory_mb(self) -> float:
        """Return the resident memory of its largest process, which is a worker and not the supervisor."""
        return max(int(fields[21]) * _PAGE for fields in self._stats()) / 1e6

    def _stats(self) -> list[list[str]]:
        """Read `/proc/PID/stat` of each process of the group. The first field is the state, field 3 in proc(5)."""
        found = []
        for file in Path("/proc").glob("[0-9]*/stat"):
            # A process may exit during the search.
            with suppress(OSError):
                fields = file.read_text().rpartition(") ")[2].split()
                if int(fields[2]) == self._process.pid:
                    found.append(fields)
        return found
