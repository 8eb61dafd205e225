"""The configurations of VS Code and of the dev container name programs, files and ports that exist."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.core.config import ServerSettings
from app.dev.ports import free_port
from tests.conftest import ROOT, outside
from tests.listings import copy_repository


def read(name: str) -> dict[str, Any]:
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"this repository has no {name}")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_the_dev_container_sets_up_and_forwards_the_port_of_the_application() -> None:
    container = read(".devcontainer/devcontainer.json")

    assert re.fullmatch(r"mcr\.microsoft\.com/devcontainers/python:3\.\d+", container["image"])
    assert container["remoteUser"] != "root"
    assert (
        subprocess.run(["make", "-n", *container["postCreateCommand"].split()[1:]], cwd=ROOT, check=False).returncode
        == 0
    )
    assert ServerSettings.model_fields["port"].default in container["forwardPorts"]


def test_the_settings_of_vs_code_name_files_that_exist() -> None:
    settings = read(".vscode/settings.json")

    assert settings["python.defaultInterpreterPath"] == "${workspaceFolder}/.venv/bin/python"
    assert [path for path in settings["python.testing.pytestArgs"] if not path.startswith("-")] == ["tests"]


def launch(copy: Path, name: str, **variables: str) -> subprocess.Popen[str]:
    """Start a launch configuration of VS Code as VS Code does, without the debugger, in a copy of the repository."""
    copy_repository(ROOT, copy)
    (found,) = (one for one in read(".vscode/launch.json")["configurations"] if one["name"] == name)
    arguments = [argument.replace("${file}", "tests/dev/test_platform.py") for argument in found["args"]]
    inherited = {key: value for key, value in outside().items() if not key.startswith(("APP_", "PYTEST_", "COV"))}
    return subprocess.Popen(
        [sys.executable, "-m", found["module"], *arguments],
        cwd=copy,
        env=inherited | {"PYTHONPATH": str(copy / "src")} | found.get("env", {}) | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_vs_code_runs_the_application_in_the_process_of_its_debugger(tmp_path: Path, clone_url: str) -> None:
    running = launch(tmp_path, "make run", DATABASE_URL=clone_url, PORT=str(free_port()))
    assert running.stdout is not None

    output = ""
    while "Running on PostgreSQL" not in output and (line := running.stdout.readline()):
        output += line
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    started = children.read_text() if children.exists() else ""
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)

    assert "Running on PostgreSQL" in output, output
    assert started == ""
    assert running.returncode == 0


@pytest.mark.slow
def test_vs_code_runs_the_tests_of_one_file(tmp_path: Path, template_url: str) -> None:
    running = launch(tmp_path, "this test file", DATABASE_URL=template_url)

    output, _ = running.communicate(timeout=120)

    assert re.search(r"^=+ [1-9]\d* passed", output, re.MULTILINE), output
