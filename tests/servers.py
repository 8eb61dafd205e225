"""Real server processes on a free port, for the time of a test."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from httpx2 import AsyncClient, HTTPError, Response

from app.dev.ports import free_port
from tests.conftest import KEY_SET

SERVE = (sys.executable, "-m", "app", "serve")
_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 20.0
_POLL = 0.02
_APPLICATION_VARIABLES = ("APP_", "DATABASE_URL", "PORT")
# Error texts of uvicorn and granian, and of gunicorn.
_PORT_IN_USE = ("ddress already in use", "Connection in use")


@dataclass(frozen=True)
class Server:
    """A running server. Its output goes to a file, so that it never blocks on a full pipe."""

    base_url: str
    process: asyncio.subprocess.Process
    log_file: Path

    def lines(self) -> list[str]:
        """Return the lines written so far."""
        return self.log_file.read_text(errors="replace").splitlines()

    def records(self, event: str | None = None) -> list[dict[str, Any]]:
        """Return the structured lines written so far: all, or those of one event."""
        records = [json.loads(line) for line in self.lines() if line.startswith("{")]
        return [record for record in records if event in {None, record.get("event")}]

    async def wait_for_line(self, text: str, *, within: float = 5.0) -> str:
        """Wait for a line that contains `text`."""
        async with asyncio.timeout(within):
            while True:
                for line in self.lines():
                    if text in line:
                        return line
                await asyncio.sleep(_POLL)

    def processes(self) -> set[int]:
        """Return the ids of its running processes: its own, and those that it has started."""
        return {int(entry.name) for entry in Path("/proc").glob("[0-9]*") if self._has(entry)}

    def _has(self, entry: Path) -> bool:
        try:
            state, _, _, session, *_ = (entry / "stat").read_text().rpartition(") ")[2].split()
        except OSError:
            return False
        return int(session) == self.process.pid and state != "Z"

    async def stop(self, *, within: float = _STOP_TIMEOUT) -> int:
        """Stop the server, kill it and its workers after a timeout, and return the exit code."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        with suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), within)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return await self.process.wait()


@asynccontextmanager
async def real_server(database_url: str, *arguments: str, **environment: str) -> AsyncIterator[Server]:
    """Run `app serve` with these arguments and settings until the block ends. The block begins when the server is ready."""
    async with server_by((*SERVE, *arguments), database_url, environment) as server:
        yield server


@asynccontextmanager
async def server_by(command: tuple[str, ...], database_url: str, environment: dict[str, str]) -> AsyncIterator[Server]:
    """Run the command of a server until the block ends. `{port}` in an argument stands for the port."""
    with TemporaryDirectory(prefix="server-") as directory:
        server = await _start(Path(directory), database_url, command, environment)
        try:
            yield server
        finally:
            await server.stop()


async def _start(directory: Path, database_url: str, command: tuple[str, ...], environment: dict[str, str]) -> Server:
    while True:
        server = await _launch(directory, database_url, command, environment)
        try:
            await _wait_until_ready(server)
        except BaseException as error:
            await server.stop()
            output = "\n".join(server.lines())
            port_in_use = (f"port {server.base_url.rpartition(':')[2]} is in use", *_PORT_IN_USE)
            # Another process has opened the port in the meantime.
            if "PORT" not in environment and any(text in output for text in port_in_use):
                continue
            error.add_note(output)
            raise
        return server


async def _launch(directory: Path, database_url: str, command: tuple[str, ...], environment: dict[str, str]) -> Server:
    port = environment.get("PORT") or str(free_port())
    settings = {
        "APP_ENVIRONMENT": "test",
        "APP_AUTH__SIGNING_KEYS": KEY_SET,
        "APP_AUTH__BCRYPT_COST": "4",
        "DATABASE_URL": database_url,
        "PORT": port,
        **environment,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_APPLICATION_VARIABLES)}
    log_file = directory / f"{port}.log"
    with log_file.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(argument.replace("{port}", port) for argument in command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=inherited | settings,
            # In its own process group, it can be killed with its workers, and Ctrl-C does not reach it.
            start_new_session=True,
        )
    return Server(f"http://127.0.0.1:{port}", process, log_file)


async def _wait_until_ready(server: Server) -> None:
    async with asyncio.timeout(_START_TIMEOUT), AsyncClient(base_url=server.base_url) as client:
        while not await _is_ready(client):
            if server.process.returncode is not None:
                message = f"the server exited with code {server.process.returncode} before it was ready"
                raise RuntimeError(message)
            await asyncio.sleep(_POLL)


async def _is_ready(client: AsyncClient) -> bool:
    with suppress(HTTPError):
        response: Response = await client.get("/readyz")
        return response.status_code == 200
    return False


async def paste(lines: str, **environment: str) -> str:
    """Run lines of a document in a shell, and return their output. An error response of a server is a failure, too."""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", 'curl() { command curl --fail-with-body "$@"; }\n' + lines),
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()
