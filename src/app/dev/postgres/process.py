"""Runs a PostgreSQL program that ends with this process."""

import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from typing import IO

from app.dev.postgres.run_as import RunAs, watchdog_command

# Longer than all shutdown attempts of the watchdog together.
STOP_TIMEOUT = 25.0


class WatchedProcess(subprocess.Popen[bytes]):
    """A PostgreSQL program and its watchdog. Both inherit the lock, so it is released only when all processes have ended."""

    def __init__(self, run_as: RunAs, lock: int, program: str, *arguments: str, output: int | IO[bytes]) -> None:
        reader, writer = os.pipe()
        self._owner_pipe = os.fdopen(writer, "wb")
        with os.fdopen(reader, "rb"):
            super().__init__(
                watchdog_command(run_as.identity, str(run_as.binaries.directory / program), *arguments),
                pass_fds=[lock],
                stdin=reader,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
                # Ctrl-C signals every process of the terminal. The server must outlive the last request of the application.
                start_new_session=True,
            )

    def stop(self) -> None:
        self._owner_pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self.wait(STOP_TIMEOUT)


def _environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    # PGDATA, PGPORT, PGOPTIONS and similar variables refer to another server.
    return {name: value for name, value in environment.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
