"""A PostgreSQL program that ends with us."""

import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from typing import IO

from app.dev.postgres.run_as import Footing, keeper_command

# Longer than the keeper takes to go through every way of ending a server.
STOP_PATIENCE = 25.0


class KeptProcess:
    """A PostgreSQL program under its keeper; it inherits the lock, which is therefore free only when all of it has ended."""

    def __init__(self, footing: Footing, lock: int, program: str, *arguments: str, output: int | IO[bytes]) -> None:
        reader, writer = os.pipe()
        self._lifeline: int | None = writer
        try:
            self._process = subprocess.Popen(
                keeper_command(footing.identity, reader, str(footing.binaries.program(program)), *arguments),
                pass_fds=[reader, lock],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
                # Ctrl-C reaches all of the terminal's foreground; the server has to outlive the application's last request.
                start_new_session=True,
            )
        except BaseException:
            os.close(writer)
            raise
        finally:
            os.close(reader)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def finish(self) -> tuple[int, str]:
        output, _ = self._process.communicate()
        return self._process.returncode, output.decode(errors="replace")

    def stop(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_PATIENCE)


def _environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    # PGDATA, PGPORT, PGOPTIONS and their like mean some other server.
    return {name: value for name, value in environment.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
