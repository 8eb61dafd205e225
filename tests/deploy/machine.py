"""A machine that boots systemd in a container, with the application installed as docs/deployment/systemd.md says."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT, outside

# Debian 13. Its Python decides which wheels are installed.
_SUITE, _PYTHON = "trixie", "3.13"
_PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,ca-certificates"
_PROGRAMS = {"systemd-nspawn": "systemd-container", "mmdebstrap": "mmdebstrap", "nsenter": "util-linux"}
_START_TIMEOUT = 60.0
_PIP = "cd /opt/app && .venv/bin/pip install --quiet --disable-pip-version-check --no-index --no-deps"


def skip_unless_possible() -> None:
    """Skip the tests of this machine if it lacks a program, or the right to boot a container."""
    if missing := [package for program, package in _PROGRAMS.items() if not shutil.which(program)]:
        pytest.skip(f"needs a container with systemd: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("needs root, to boot a container with systemd-nspawn")


def make_root(cache: Path) -> Path:
    """Return a directory with Debian and this version of the application. Debian and the requirements are cached."""
    root, marker = cache / "root", cache / "requirements"
    requirements = (ROOT / "requirements" / "base.txt").read_text()
    if not marker.is_file() or marker.read_text() != requirements:
        _make_base(cache, root)
        marker.write_text(requirements)
    wheels = cache / "wheels-of-ours"
    shutil.rmtree(wheels, ignore_errors=True)
    uv = Path(sys.executable).with_name("uv")
    _run(uv, "build", "--quiet", "--wheel", "--no-build-isolation", "--out-dir", wheels, ROOT)
    _in(root, wheels, f"{_PIP} --force-reinstall /wheels/*.whl")
    return root


def _make_base(cache: Path, root: Path) -> None:
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True)
    wheels = cache / "wheels"
    _run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, root)
    pip = ROOT / ".local" / "deploy" / "bin" / "pip"
    options = ("--python-version", _PYTHON, "--only-binary=:all:", "--no-deps", "--require-hashes")
    _run(pip, "download", "--quiet", "--dest", wheels, *options, "-r", ROOT / "requirements" / "base.txt")
    shutil.copytree(ROOT / "requirements", root / "opt" / "app" / "requirements")
    _in(root, wheels, "python3 -m venv /opt/app/.venv")
    _in(root, wheels, f"{_PIP} --find-links /wheels --require-hashes -r requirements/base.txt")


def _in(root: Path, wheels: Path, command: str) -> None:
    """Run a command in the directory of the machine, without its systemd."""
    options = ("--quiet", "--register=no", "--keep-unit", "--pipe", "--as-pid2", f"--bind-ro={wheels}:/wheels")
    _run("systemd-nspawn", *options, f"--directory={root}", "sh", "-ec", command)


def _run(*command: str | Path) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, env=outside(), check=False)
    assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"


@dataclass
class Machine:
    """A running machine. It has the network of this one."""

    leader: int

    def attempt(self, command: str, *, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command as root of the machine."""
        enter = ("nsenter", f"--target={self.leader}", "--mount", "--uts", "--ipc", "--pid", "--cgroup")
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", **variables}
        return subprocess.run(
            [*enter, "bash", "-ec", command],
            input=stdin,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def run(self, command: str, *, stdin: str = "", **variables: str) -> str:
        ended = self.attempt(command, stdin=stdin, **variables)
        assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
        return ended.stdout.rstrip("\n")

    def app(self, arguments: str, *, stdin: str = "") -> str:
        """Run a command of the application with the settings of the services."""
        return self.run(
            f"cd /opt/app; set -a; . /etc/app/environment; exec .venv/bin/app {arguments}",
            stdin=stdin,
            APP_SECRETS_DIR="/etc/app/secrets",
        )

    def show(self, unit: str, name: str) -> str:
        return self.run(f"systemctl show --property={name} --value {unit}")

    def journal(self, unit: str, *, since: float = 0) -> str:
        """Return the lines of a service since a time in seconds."""
        return self.run(f"journalctl --unit={unit} --since=@{since:.3f} --output=cat --no-pager --boot")

    def until(self, condition: Callable[[], bool], *, within: float = 60) -> None:
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, "the condition did not become true"
            time.sleep(0.2)


@contextmanager
def booted(root: Path, files: Mapping[Path, str]) -> Iterator[Machine]:
    """Boot a machine on the directory, with more files. Its changes are lost when it ends."""
    binds = [f"--bind-ro={source}:{target}" for source, target in files.items()]
    command = (
        *("systemd-nspawn", "--quiet", f"--directory={root}", "--volatile=overlay", "--boot", "--register=no"),
        *("--keep-unit", "--console=pipe", "--hostname=booted"),
        *binds,
    )
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            machine = Machine(_leader_of(process))
            machine.until(lambda: machine.attempt("systemctl is-system-running").stdout == "running\n")
            yield machine
        finally:
            _end(process)


def _leader_of(process: subprocess.Popen[bytes]) -> int:
    """Return the process id of the machine's systemd."""
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            if Path(f"/proc/{pid}/comm").read_text() == "systemd\n":
                return int(pid)
        time.sleep(0.1)
    pytest.fail("systemd did not start in the container")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Shut the machine down: systemd-nspawn does so when it gets SIGTERM."""
    process.terminate()
    try:
        process.wait(_START_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
