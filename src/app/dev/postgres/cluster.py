"""A private PostgreSQL server for development and tests. It runs as long as the process that started it."""

import errno
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
from typing import NoReturn, Self

import psycopg
from psycopg.sql import SQL, Identifier

from app.core.environment import forget_libpq
from app.dev.ports import free_port
from app.dev.postgres.binaries import EmbeddedPostgresError, PostgresBinaries, find_binaries
from app.dev.postgres.lock import (
    POLL_INTERVAL,
    RETRY_TIMEOUT,
    ClusterFiles,
    ClusterInUseError,
    locked,
    read_lines,
    remove_stale_pid_file,
)
from app.dev.postgres.process import WatchedProcess
from app.dev.postgres.run_as import choose_run_as

__all__ = ["Cluster", "ClusterInUseError", "EmbeddedPostgresError", "server_for_tests"]

_START_TIMEOUT = 60.0
_STATUS_LINE = 8
_BUILTIN_LOCALE_SINCE = 17

_SETTINGS = (
    "listen_addresses=127.0.0.1",
    # The path of a socket is limited to about 100 characters, and the path of a clone can be longer.
    "unix_socket_directories=",
    "max_connections=200",
    "timezone=UTC",
    "log_timezone=UTC",
)
_NON_DURABLE_SETTINGS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
# Another process took the chosen port, or the kernel has not released the resources of a crashed server yet.
_TRANSIENT = re.compile(r"could not create any TCP/IP sockets|shared memory block|lock file .* already exists")


class Cluster:
    """A server with its data and its password in one directory, separate for each major version of PostgreSQL.

    The process that starts the server owns it. The server shuts down when the owner stops it, and also when the owner dies.
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
        # Each start chooses a free port unless one is given.
        self.port = port or 0
        self._given_port = port
        self._settings = settings
        self._binaries = binaries
        self._password = ""
        self._server: WatchedProcess | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+asyncpg://postgres:{self._password}@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str) -> None:
        """Create a database unless it exists."""
        with self._connect() as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))

    def drop_databases(self) -> None:
        with self._connect() as connection:
            names = connection.execute(
                "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'"
            ).fetchall()
            for (name,) in names:
                connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))

    def _connect(self) -> psycopg.Connection:
        # libpq would add the variables of a developer's shell, which may refer to another database.
        forget_libpq()
        return psycopg.connect(self.url().replace("+asyncpg", ""), autocommit=True)

    def start(self) -> None:
        with _readable_errors(self.directory):
            binaries = self._binaries or find_binaries()
            self.directory.mkdir(parents=True, exist_ok=True)
            run_as = choose_run_as(binaries, self.directory)
            files = ClusterFiles(run_as, self.directory)
            with locked(files) as lock:
                self._start_locked(files, lock)

    def stop(self) -> None:
        if self._server:
            self._server.stop()
            self._server = None

    def _start_locked(self, files: ClusterFiles, lock: int) -> None:
        _create_if_missing(files, lock, durable=self.durable)
        try:
            self._start_server(files, lock)
        except EmbeddedPostgresError:
            if self.durable:
                raise
            # Without fsync, a power failure can corrupt the files. The data of old test runs is not needed.
            shutil.rmtree(files.home)
            _create_if_missing(files, lock, durable=False)
            self._start_server(files, lock)

    def _start_server(self, files: ClusterFiles, lock: int) -> None:
        remove_stale_pid_file(files)
        self._password = files.password.read_text().strip()
        deadline = time.monotonic() + RETRY_TIMEOUT
        while not self._try_start_server(files, lock):
            reason = files.log.read_text(errors="replace")
            if time.monotonic() > deadline or not _TRANSIENT.search(reason):
                _fail("PostgreSQL did not start", reason, files)
            time.sleep(0.1)

    def _try_start_server(self, files: ClusterFiles, lock: int) -> bool:
        self.port = self._given_port or free_port()
        settings = [*_SETTINGS, f"port={self.port}", *(() if self.durable else _NON_DURABLE_SETTINGS), *self._settings]
        options = [f"--{setting}" for setting in settings]
        with files.log.open("wb") as log:
            self._server = WatchedProcess(files.run_as, lock, "postgres", "-D", str(files.data), *options, output=log)
        is_ready = False
        try:
            is_ready = _is_ready(self._server, files, self.port)
        finally:
            if not is_ready:
                self.stop()
        return is_ready


def _create_if_missing(files: ClusterFiles, lock: int, *, durable: bool) -> None:
    # A staging directory is left if the owner died during initdb. It is incomplete, so it is deleted.
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
    # The user that runs PostgreSQL must be able to enter this directory with any umask. The data and the password have
    # stricter permissions.
    files.staging.chmod(0o755)
    data.mkdir(mode=0o700)
    password.touch(mode=0o600)
    password.write_text(secrets.token_urlsafe(24))
    files.run_as.give_ownership(data)
    files.run_as.give_ownership(password)
    options = [
        "-D",
        str(data),
        "--username=postgres",
        f"--pwfile={password}",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
    ]
    options += _locale_options(files.run_as.binaries)
    if not durable:
        options.append("--no-sync")
    initdb = WatchedProcess(files.run_as, lock, "initdb", *options, output=subprocess.PIPE)
    try:
        output, _ = initdb.communicate()
    finally:
        initdb.stop()
    if initdb.returncode != 0:
        _fail("The database cluster could not be created", output.decode(errors="replace"), files)


def _locale_options(binaries: PostgresBinaries) -> list[str]:
    if binaries.major >= _BUILTIN_LOCALE_SINCE:
        return ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    # The C library of macOS has no C.UTF-8 locale.
    return ["--locale=C" if sys.platform == "darwin" else "--locale=C.UTF-8"]


def _is_ready(server: WatchedProcess, files: ClusterFiles, port: int) -> bool:
    """Wait until the server accepts connections. Return False if it exits."""
    pid_file = files.data / "postmaster.pid"
    deadline = time.monotonic() + _START_TIMEOUT
    while server.poll() is None:
        lines = read_lines(pid_file)
        if len(lines) >= _STATUS_LINE and lines[3] == str(port) and lines[7].strip() == "ready":
            return True
        if time.monotonic() > deadline:
            message = f"PostgreSQL was not ready after {_START_TIMEOUT:.0f} s: see {files.log}."
            raise EmbeddedPostgresError(message)
        time.sleep(POLL_INTERVAL)
    return False


def _fail(what: str, output: str, files: ClusterFiles) -> NoReturn:
    if os.strerror(errno.ENOSPC) in output:
        raise _disk_is_full(files.home)
    reasons = (
        re.findall(r"(?:FATAL|PANIC|error): +(.*)", output) or output.splitlines()[-1:] or ["it reported no reason"]
    )
    message = f"{what} in {files.home}: {reasons[0]}."
    raise EmbeddedPostgresError(message)


def _disk_is_full(path: Path) -> EmbeddedPostgresError:
    return EmbeddedPostgresError(f"The disk that holds {path} is full: free some space and try again.")


@contextmanager
def _readable_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise _disk_is_full(directory) from error
        message = f"The database in {directory} cannot be started: {error.strerror} ({error.filename})."
        raise EmbeddedPostgresError(message) from error


@contextmanager
def server_for_tests(root: Path, environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Provide the URL of a server for test databases: DATABASE_URL if set, else a cluster that no other test run uses."""
    if url := environment.get("DATABASE_URL"):
        yield url
        return
    cluster = _start_first_free(root / ".local" / "test-postgres")
    try:
        yield cluster.url()
    finally:
        cluster.stop()


def _start_first_free(directory: Path) -> Cluster:
    number = 1
    while True:
        cluster = Cluster(directory / str(number), durable=False)
        with suppress(ClusterInUseError):
            cluster.start()
            # A killed test run leaves its databases behind. No other run uses this server, so all of them can be dropped.
            cluster.drop_databases()
            return cluster
        number += 1
