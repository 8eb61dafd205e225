"""Usable CPU cores, and the variables of Kubernetes and libpq."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from psycopg.pq import Conninfo

from app.auth.settings import AuthSettings
from app.core.environment import LIBPQ_VARIABLES, forget_libpq, kubernetes_variables, usable_cores

MANY = 512
IN_EVERY_POD = {
    "APP_SERVICE_HOST": "10.96.0.17",
    "APP_SERVICE_PORT": "8000",
    "APP_SERVICE_PORT_HTTP": "8000",
    "APP_PORT": "tcp://10.96.0.17:8000",
    "APP_PORT_8000_TCP": "tcp://10.96.0.17:8000",
    "APP_PORT_8000_TCP_PROTO": "tcp",
    "APP_PORT_8000_TCP_PORT": "8000",
    "APP_PORT_8000_TCP_ADDR": "10.96.0.17",
    # A service called app-server, on IPv6.
    "APP_SERVER_SERVICE_HOST": "fd00::17",
    "APP_SERVER_SERVICE_PORT": "53",
    "APP_SERVER_PORT": "udp://[fd00::17]:53",
    "APP_SERVER_PORT_53_UDP": "udp://[fd00::17]:53",
    "APP_SERVER_PORT_53_UDP_PROTO": "udp",
    "APP_SERVER_PORT_53_UDP_PORT": "53",
    "APP_SERVER_PORT_53_UDP_ADDR": "fd00::17",
}


def machine(root: Path, memberships: str, **files: str) -> Path:
    """Create the files that describe the cgroups of a process. Each keyword is a path below `root`."""
    for name, content in {"proc/self/cgroup": memberships, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with many cores. This process may use all of them."""
    monkeypatch.setattr(os, "process_cpu_count", lambda: MANY, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: MANY)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(MANY)), raising=False)


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize(
    ("memberships", "files", "cores"),
    [
        pytest.param("0::/\n", {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2, id="container"),
        pytest.param("0::/\n", {"sys/fs/cgroup/cpu.max": "5000 100000\n"}, 1, id="less than a core"),
        pytest.param("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, MANY, id="no limit"),
        pytest.param("0::/\n", {}, MANY, id="root cgroup of the machine, without a limit"),
        pytest.param(
            "0::/a.slice/b.service\n",
            {
                "sys/fs/cgroup/a.slice/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/a.slice/b.service/cpu.max": "max 100000\n",
            },
            3,
            id="limit of the parent",
        ),
        pytest.param(
            "0::/a.slice/b.service\n",
            {
                "sys/fs/cgroup/a.slice/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/a.slice/b.service/cpu.max": "200000 100000\n",
            },
            2,
            id="lowest of several limits",
        ),
        pytest.param(
            "4:cpu,cpuacct:/docker/abc\n3:memory:/x\n0::/\n",
            {
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/memory/cpu.cfs_period_us": "100000\n",
            },
            4,
            id="version 1, with the path of the host",
        ),
        pytest.param(
            "1:cpu:/\n",
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
            MANY,
            id="version 1 without a limit",
        ),
    ],
)
def test_a_cpu_quota_limits_the_usable_cores(
    tmp_path: Path, memberships: str, files: dict[str, str], cores: int
) -> None:
    assert usable_cores(machine(tmp_path, memberships, **files)) == cores


@pytest.mark.usefixtures("many_cores")
def test_without_cgroups_there_is_no_quota(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == MANY


@pytest.mark.usefixtures("many_cores")
def test_affinity_limits_the_usable_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)

    assert usable_cores(tmp_path) == 3


@pytest.mark.usefixtures("many_cores")
def test_without_affinity_all_cores_are_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")

    assert usable_cores(tmp_path) == MANY


def test_an_unknown_number_of_cores_counts_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "process_cpu_count", lambda: None, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)

    assert usable_cores(tmp_path) == 1


def test_the_default_of_hash_threads_is_the_number_of_usable_cores() -> None:
    assert AuthSettings().hash_threads == min(64, usable_cores())


@pytest.mark.parametrize("cores", [1, 2, 96, 512])
def test_the_default_of_hash_threads_is_valid_on_any_machine(cores: int) -> None:
    # The default is computed at import. It is validated as soon as one setting of the group is set.
    program = """
import os
os.process_cpu_count = os.cpu_count = lambda: {cores}
os.sched_getaffinity = lambda _: set(range({cores}))
from app.settings import load_settings
from app.auth.settings import AuthSettings
print(load_settings().of(AuthSettings).hash_threads)
"""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("APP_", "DATABASE_URL", "PORT"))},
        "APP_ENVIRONMENT": "test",
        "APP_AUTH__AUDIENCE": "anything",
        "DATABASE_URL": "postgresql://a@b/c",
    }

    finished = subprocess.run(
        [sys.executable, "-c", program.format(cores=cores)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert finished.returncode == 0, finished.stderr
    # The CPU quota of the machine that runs the tests applies too.
    assert 1 <= int(finished.stdout) <= min(64, cores)


def test_the_kubernetes_variables_of_a_service_are_recognized() -> None:
    assert kubernetes_variables(IN_EVERY_POD) == IN_EVERY_POD.keys()


@pytest.mark.parametrize(
    "changed",
    [
        {"APP_SERVICE_HOST": "db.internal"},
        {"APP_SERVICE_PORT": "http"},
        {"APP_SERVICE_PORT": ""},
        {"APP_PORT": "8000"},
        {"APP_PORT": "http://10.96.0.17:8000"},
    ],
)
def test_variables_that_only_resemble_a_service_are_not_recognized(changed: dict[str, str]) -> None:
    environment = {name: value for name, value in IN_EVERY_POD.items() if not name.startswith("APP_SERVER_")}

    assert kubernetes_variables(environment | changed) == set()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("APP_PORTS", "8000"),
        ("APP_PORT_8000_TCP_ADDR", "localhost"),
        ("APP_PORT_8000_TCP_PROTO", "http"),
        ("APP_SERVICE_PORT_HTTP", "eight thousand"),
        ("APP_SERVICE_NAME", "app"),
        ("APP_SERVICE_HOSTS", "10.96.0.17"),
    ],
)
def test_a_misspelt_setting_is_not_recognized_as_a_kubernetes_variable(name: str, value: str) -> None:
    assert name not in kubernetes_variables({**IN_EVERY_POD, name: value})


def test_all_variables_that_libpq_reads_are_removed() -> None:
    read_by_libpq = {option.envvar.decode() for option in Conninfo.get_defaults() if option.envvar}
    environment = dict.fromkeys((*LIBPQ_VARIABLES, *read_by_libpq, "PGADMIN_DEFAULT_EMAIL", "PG_BINDIR", "HOME"), "x")

    forget_libpq(environment)

    assert environment.keys() == {"PGADMIN_DEFAULT_EMAIL", "PG_BINDIR", "HOME"}
