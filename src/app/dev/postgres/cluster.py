"""A private PostgreSQL server for development and tests, which lives exactly as long as the process that started it."""

import asyncio
import errno
import itertools
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

import asyncpg

from app.dev.ports import free_port
from app.dev.postgres.binaries import EmbeddedPostgresError, PostgresBinaries, find_binaries
from app.dev.postgres.lock import (
    POLL,
    RETRY_PATIENCE,
    ClusterFiles,
    ClusterInUseError,
    lines_of,
    locked,
    remove_stale_pid_file,
)
from app.dev.postgres.process import KeptProcess
from app.dev.postgres.run_as import find_footing

__all__ = ["Cluster", "ClusterInUseError", "EmbeddedPostgresError", "server_for_tests"]

_START_PATIENCE = 60.0
_STATUS_LINE = 8
_BUILTIN_LOCALE_SINCE = 17

_SETTINGS = (
    "listen_addresses=127.0.0.1",
    # The path of a socket may have about 100 characters, which the path of a clone can exceed.
    "unix_socket_directories=",
    "max_connections=200",
    "timezone=UTC",
    "log_timezone=UTC",
)
_FAST_AND_LOOSE = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
# A port that somebody took after we had chosen it, and what the kernel still holds for a moment after a crash.
_TRANSIENT = re.compile(r"could not create any TCP/IP sockets|shared memory block|lock file .* already exists")


class Cluster:
    """One server, its data and its password under one directory, separate for each major version of PostgreSQL.

    Whoever starts it owns it: it shuts down when they stop it, and also when they die, whatever they die of.
    """

    def __init__(
        self,
        directory: Path,
        *,
        durable: bool = True,
        binaries: PostgresBinaries | None = None,
        port: int | None = None,
        settings: Sequence[str] = (),
    ) -> None:
        self.directory = directory.absolute()
        self.durable = durable
        # Chosen anew at every start, unless one is given.
        self.port = port or 0
        self._given_port = port
        self._settings = settings
        self._binaries = binaries
        self._password = ""
        self._server: KeptProcess | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+asyncpg://postgres:{self._password}@127.0.0.1:{self.port}/{database}"

    def make_database(self, name: str) -> None:
        """Create a database unless it exists; the name is the program's own, never a person's."""
        asyncio.run(_make_database(self.url(), name))

    def start(self) -> None:
        with _clear_sentences(self.directory):
            binaries = self._binaries or find_binaries()
            self.directory.mkdir(parents=True, exist_ok=True)
            footing = find_footing(binaries, self.directory)
            files = ClusterFiles(footing, self.directory)
            with locked(files) as lock:
                self._start_locked(files, lock)

    def stop(self) -> None:
        if self._server:
            self._server.stop()
            self._server = None

    def _start_locked(self, files: ClusterFiles, lock: int) -> None:
        _create_if_missing(files, lock, durable=self.durable)
        try:
            self._serve(files, lock)
        except EmbeddedPostgresError:
            if self.durable:
                raise
            # Without fsync a power cut can leave anything behind, and nobody misses the data of old test runs.
            shutil.rmtree(files.home)
            _create_if_missing(files, lock, durable=False)
            self._serve(files, lock)

    def _serve(self, files: ClusterFiles, lock: int) -> None:
        remove_stale_pid_file(files)
        self._password = files.password.read_text().strip()
        deadline = time.monotonic() + RETRY_PATIENCE
        while not self._try_to_serve(files, lock):
            reason = files.log.read_text(errors="replace")
            if time.monotonic() > deadline or not _TRANSIENT.search(reason):
                _fail("PostgreSQL did not start", reason, files)
            time.sleep(0.1)

    def _try_to_serve(self, files: ClusterFiles, lock: int) -> bool:
        self.port = self._given_port or free_port()
        settings = [*_SETTINGS, f"port={self.port}", *(() if self.durable else _FAST_AND_LOOSE), *self._settings]
        options = itertools.chain.from_iterable(("-c", setting) for setting in settings)
        with files.log.open("wb") as log:
            self._server = KeptProcess(files.footing, lock, "postgres", "-D", str(files.data), *options, output=log)
        try:
            if _is_ready(self._server, files, self.port):
                return True
        except BaseException:
            self.stop()
            raise
        self.stop()
        return False


async def _make_database(url: str, name: str) -> None:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", name):
            await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()


def _create_if_missing(files: ClusterFiles, lock: int, *, durable: bool) -> None:
    # A cluster that was being made when its maker died is a staging directory still: it is thrown away and made again.
    shutil.rmtree(files.staging, ignore_errors=True)
    if files.home.exists():
        return
    try:
        _create(files, lock, durable=durable)
    except BaseException:
        shutil.rmtree(files.staging, ignore_errors=True)
        raise
    files.staging.rename(files.home)


def _create(files: ClusterFiles, lock: int, *, durable: bool) -> None:
    data, password = files.staging / "data", files.staging / "password"
    files.staging.mkdir()
    # Whoever runs PostgreSQL must be able to pass, whatever the umask; the data and the password have permissions of their own.
    files.staging.chmod(0o755)
    data.mkdir(mode=0o700)
    password.touch(mode=0o600)
    password.write_text(secrets.token_urlsafe(24))
    files.footing.give(data)
    files.footing.give(password)
    options = [
        "-D",
        str(data),
        "--username=postgres",
        f"--pwfile={password}",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
    ]
    options += _locale_options(files.footing.binaries)
    if not durable:
        options.append("--no-sync")
    initdb = KeptProcess(files.footing, lock, "initdb", *options, output=subprocess.PIPE)
    try:
        status, output = initdb.finish()
    finally:
        initdb.stop()
    if status != 0:
        _fail("The database cluster could not be created", output, files)


def _locale_options(binaries: PostgresBinaries) -> list[str]:
    if binaries.major >= _BUILTIN_LOCALE_SINCE:
        return ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    # The C library of macOS has no C.UTF-8.
    return ["--locale=C" if sys.platform == "darwin" else "--locale=C.UTF-8"]


def _is_ready(server: KeptProcess, files: ClusterFiles, port: int) -> bool:
    """Wait until the server accepts connections; False when it has ended instead."""
    pid_file = files.data / "postmaster.pid"
    deadline = time.monotonic() + _START_PATIENCE
    while server.is_running():
        lines = lines_of(pid_file)
        if len(lines) >= _STATUS_LINE and lines[3] == str(port) and lines[7].strip() == "ready":
            return True
        if time.monotonic() > deadline:
            message = f"PostgreSQL was not ready after {_START_PATIENCE:.0f} s: see {files.log}."
            raise EmbeddedPostgresError(message)
        time.sleep(POLL)
    return False


def _fail(what: str, output: str, files: ClusterFiles) -> NoReturn:
    if os.strerror(errno.ENOSPC) in output:
        raise _disk_is_full(files.home)
    complaints = (
        re.findall(r"(?:FATAL|PANIC|error): +(.*)", output) or output.splitlines()[-1:] or ["it gives no reason"]
    )
    message = f"{what} in {files.home}: {complaints[0]}."
    raise EmbeddedPostgresError(message)


def _disk_is_full(path: Path) -> EmbeddedPostgresError:
    return EmbeddedPostgresError(f"The disk that holds {path} is full: free some space and try again.")


@contextmanager
def _clear_sentences(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise _disk_is_full(directory) from error
        message = f"The database in {directory} cannot be started: {error.strerror} ({error.filename})."
        raise EmbeddedPostgresError(message) from error


@contextmanager
def server_for_tests(root: Path, environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """The URL of a server for test databases: DATABASE_URL, or else a cluster that no other test run of this clone uses."""
    if url := environment.get("DATABASE_URL"):
        yield url
        return
    cluster = _first_free(root / ".local" / "test-postgres")
    try:
        yield cluster.url()
    finally:
        cluster.stop()


def _first_free(directory: Path) -> Cluster:
    number = 1
    while True:
        cluster = Cluster(directory / str(number), durable=False)
        with suppress(ClusterInUseError):
            cluster.start()
            asyncio.run(_drop_leftovers(cluster.url()))
            return cluster
        number += 1


async def _drop_leftovers(url: str) -> None:
    # A test run that was killed could not drop its databases, and nobody else has any on this server.
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        leftovers = await connection.fetch(
            "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'"
        )
        for (name,) in leftovers:
            await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await connection.close()
