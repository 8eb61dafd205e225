"""Variables for libpq and for proxies in a developer's shell do not affect the private database."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.dev.test_run import APPLICATION_VARIABLES, PROGRAM

NOWHERE = "http://192.0.2.1:1"
SHELL = {
    "PGSSLMODE": "verify-full",
    "PGHOST": "192.0.2.1",
    "PGHOSTADDR": "192.0.2.1",
    "PGPORT": "1",
    "PGUSER": "nobody",
    "PGPASSWORD": "wrong",
    "PGSERVICE": "nowhere",
    "PGOPTIONS": "-c no_such_setting=1",
    "PGTARGETSESSIONATTRS": "standby",
    "PGCLIENTENCODING": "LATIN1",
    "PGCONNECT_TIMEOUT": "1",
    "HTTP_PROXY": NOWHERE,
    "http_proxy": NOWHERE,
    "HTTPS_PROXY": NOWHERE,
    "https_proxy": NOWHERE,
    # A client without the package for this protocol fails when it is created.
    "ALL_PROXY": "socks5://192.0.2.1:1",
    "all_proxy": "socks5://192.0.2.1:1",
}
# A client of the application, a server process, and a worker, which uses another driver.
TESTS = (
    "tests/health/test_router.py",
    "tests/server/test_process.py::test_no_response_names_the_server",
    "tests/jobs/test_worker.py",
    "-k",
    "ready or not_say or runs",
)


def shell() -> dict[str, str]:
    left = ("TEST_", "NO_PROXY", "no_proxy", *APPLICATION_VARIABLES)
    return {name: value for name, value in os.environ.items() if not name.startswith(left)} | SHELL


@pytest.mark.parametrize("command", ["run", "database"])
def test_variables_of_the_shell_do_not_affect_the_private_database(tmp_path: Path, command: str) -> None:
    programs = {"run": PROGRAM, "database": DATABASE_PROGRAM}
    process = subprocess.Popen(
        [sys.executable, "-c", programs[command], str(tmp_path / "local")],
        env=shell() | {"PORT": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None

    output = ""
    while "127.0.0.1" not in output and (line := process.stdout.readline()):
        output += line
    process.terminate()
    process.communicate(timeout=30)

    assert "127.0.0.1" in output, output
    assert process.returncode == 0


DATABASE_PROGRAM = """
import sys
from pathlib import Path
from app.dev import run
run.LOCAL = Path(sys.argv[1])
sys.argv[1:] = ["database"]
from app.dev.__main__ import program
program()
"""


@pytest.mark.slow
def test_variables_of_the_shell_do_not_affect_the_tests() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", *TESTS],
        cwd=ROOT,
        env=shell(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert finished.returncode == 0, finished.stdout
