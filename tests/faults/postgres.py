"""A PostgreSQL server for one test, which can be killed, suspended, restarted, demoted and replicated."""

import asyncio
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import asyncpg
from pydantic import SecretStr

from app.core.config import DatabaseSettings
from app.dev.ports import free_port
from app.dev.postgres.binaries import find_binaries
from app.dev.postgres.cluster import Cluster
from app.dev.postgres.lock import ClusterFiles
from app.dev.postgres.run_as import choose_run_as
from app.migrations import runner
from tests.volume import plain

_STOP_TIMEOUT = 30.0
_CATCH_UP_TIMEOUT = 60.0


class PrivatePostgres:
    """A durable server. It keeps its port after a restart."""

    def __init__(self, directory: Path, *settings: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.files = ClusterFiles(choose_run_as(find_binaries(), directory), directory)
        self._cluster = Cluster(directory, port=free_port(), settings=settings)

    @property
    def url(self) -> str:
        return self._cluster.url()

    @property
    def port(self) -> int:
        return self._cluster.port

    async def start(self) -> None:
        await asyncio.to_thread(self._cluster.start)

    async def stop(self) -> None:
        """Shut the server down with all its sessions."""
        await asyncio.to_thread(self._cluster.stop)

    async def migrate(self) -> None:
        await runner.upgrade(DatabaseSettings(url=SecretStr(self.url)))

    def processes(self) -> list[int]:
        """Return the pids of the server, the postmaster first."""
        postmaster = int((self.files.data / "postmaster.pid").read_text().splitlines()[0])
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        return [postmaster, *map(int, children)]

    def send(self, number: signal.Signals) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    async def kill(self) -> None:
        """Kill all processes with SIGKILL, without a checkpoint."""
        self.send(signal.SIGKILL)
        await self.stop()

    def suspend(self) -> None:
        """Suspend all processes. Their sockets stay open."""
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        self.send(signal.SIGCONT)

    async def shut_down(self, number: signal.Signals) -> None:
        """Shut down as `pg_ctl` does: SIGTERM is smart, SIGINT fast, SIGQUIT immediate."""
        postmaster = self.processes()[0]
        os.kill(postmaster, number)
        await asyncio.to_thread(_wait_for_end, postmaster)
        await self.stop()

    async def execute(self, *statements: str) -> None:
        connection = await asyncpg.connect(plain(self.url))
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def fetch(self, query: str, *values: object) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(plain(self.url))
        try:
            rows: list[asyncpg.Record] = await connection.fetch(query, *values)
            return rows
        finally:
            await connection.close()

    def follow(self, primary: "PrivatePostgres") -> None:
        """Configure this server as a standby of another one with the same data, from the next start on."""
        password = primary.url.partition("postgres:")[2].partition("@")[0]
        source = f"host=127.0.0.1 port={primary.port} user=postgres password={password}"
        (self.files.data / "standby.signal").touch()
        with (self.files.data / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"primary_conninfo = '{source}'\n")

    async def promote(self) -> None:
        await self.execute("SELECT pg_promote()")


def _wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + _STOP_TIMEOUT
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "the server did not shut down"
        time.sleep(0.02)


async def standby_of(primary: PrivatePostgres, directory: Path, *settings: str) -> PrivatePostgres:
    """Create a standby from a copy of the primary. This restarts the primary."""
    standby = PrivatePostgres(directory, *settings)
    await primary.stop()
    command = ["cp", "-a", str(primary.files.home), str(standby.files.home)]
    await asyncio.to_thread(subprocess.run, command, check=True)
    standby.follow(primary)
    await primary.start()
    await standby.start()
    return standby


async def caught_up(primary: PrivatePostgres, standby: PrivatePostgres) -> None:
    """Wait until the standby has applied all writes."""
    written = (await primary.fetch("SELECT pg_current_wal_flush_lsn()::text"))[0][0]
    async with asyncio.timeout(_CATCH_UP_TIMEOUT):
        while not (await standby.fetch("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", written))[0][0]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
