"""`make setup`: the choice of the interpreter, and when an environment is current."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHOW_INTERPRETER = "import sys\nprint(sys.executable)\n"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The part of a clone that setup reads, with an empty PATH and home directory next to it."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "scripts", clone / "scripts")
    shutil.copytree(ROOT / "requirements", clone / "requirements")
    shutil.copy(ROOT / "pyproject.toml", clone)
    commands = tmp_path / "commands"
    commands.mkdir()
    for name in ("sh", "dirname"):
        (commands / name).symlink_to(str(shutil.which(name)))
    return clone


@pytest.fixture
def searching(clone: Path) -> Path:
    """A clone whose setup only prints the chosen interpreter."""
    (clone / "scripts" / "environment.py").write_text(SHOW_INTERPRETER)
    return clone


def plain_environment() -> dict[str, str]:
    """The environment without variables that choose an interpreter. Others, such as LD_LIBRARY_PATH, may be needed."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYENV"))}


def set_up(clone: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = plain_environment() | {"PATH": str(clone.parent / "commands"), "HOME": str(clone.parent)}
    command = [str(shutil.which("sh")), str(clone / "scripts" / "setup.sh")]
    return subprocess.run(command, env=plain | environment, capture_output=True, text=True, check=False)


def add_command(clone: Path, name: str, script: str) -> Path:
    path = clone.parent / "commands" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def real(name: str) -> str:
    """A script that runs the interpreter of these tests and prints the name by which it was called."""
    return f'[ "$2" = -c ] || echo {name}; exec {sys.executable} "$@"'


def test_without_an_interpreter_the_error_names_the_supported_versions(searching: Path) -> None:
    tried = set_up(searching)

    assert tried.returncode == 1
    assert tried.stderr == (
        "Python 3.12, 3.13 or 3.14 was not found. Install one, or run: make setup PYTHON=/path/to/python3.13\n"
    )


def test_a_broken_shim_and_an_old_python_are_skipped(searching: Path) -> None:
    add_command(searching, "python3.13", "echo 'pyenv: python3.13: command not found' >&2; exit 127")
    add_command(searching, "python3.12", "exit 1")
    add_command(searching, "python3", real("python3"))

    tried = set_up(searching)

    assert (tried.returncode, tried.stdout.split()[0], tried.stderr) == (0, "python3", "")


def test_tested_versions_are_preferred_to_newer_ones(searching: Path) -> None:
    for name in ("python3", "python3.14", "python3.12"):
        add_command(searching, name, real(name))

    assert set_up(searching).stdout.startswith("python3.12\n")


def test_pyenv_versions_are_found_despite_broken_shims(searching: Path) -> None:
    add_command(searching, "python3", "exit 127")
    add_command(searching, "../pyenv/versions/3.12.1/bin/python", real("of-pyenv"))

    assert set_up(searching, PYENV_ROOT=str(searching.parent / "pyenv")).stdout.startswith("of-pyenv\n")


def test_only_a_requested_interpreter_is_tried(searching: Path) -> None:
    add_command(searching, "python3.13", real("python3.13"))

    tried = set_up(searching, PYTHON="/nowhere/python")

    assert tried.returncode == 1
    assert tried.stderr.startswith("PYTHON=/nowhere/python does not run Python 3.12 or newer.")


def test_a_python_without_the_venv_module_is_named(searching: Path) -> None:
    add_command(searching, "python3", "exit 3")

    tried = set_up(searching)

    assert tried.returncode == 1
    assert tried.stderr.startswith("python3 has no venv module. Install it (package python3-venv on Debian and Ubuntu)")


@pytest.fixture
def finished(clone: Path) -> Path:
    """A clone with an environment that looks complete. Nothing was installed."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(clone / ".venv")], check=True)
    mark = "import environment; environment.STAMP.write_text(environment.fingerprint(''))"
    environment = plain_environment() | {"PYTHONPATH": str(clone / "scripts"), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([str(clone / ".venv" / "bin" / "python"), "-c", mark], env=environment, check=True)
    return clone


def is_current(clone: Path, **environment: str) -> bool:
    command = [str(clone / ".venv" / "bin" / "python"), "-I", "-S", "scripts/environment.py", "--is-current"]
    asked = subprocess.run(command, cwd=clone, env=plain_environment() | environment, check=False)
    return asked.returncode == 0


def test_a_current_environment_is_recognised_by_one_fast_call(finished: Path) -> None:
    calls = finished.parent / "calls"
    python = finished / ".venv" / "bin" / "python"
    python.rename(python.with_name("real-python"))
    python.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nexec {python.with_name("real-python")} "$@"\n')
    python.chmod(0o755)

    again = set_up(finished)

    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    # The option -S skips the site packages, whose import takes most of the time.
    assert calls.read_text() == "-I -S scripts/environment.py --is-current\n"


@pytest.mark.parametrize("changed", ["requirements/dev.txt", "pyproject.toml", "scripts/environment.py"])
def test_a_change_of_an_input_file_makes_the_environment_stale(finished: Path, changed: str) -> None:
    assert is_current(finished)

    with (finished / changed).open("a") as file:
        file.write("# changed\n")

    assert not is_current(finished)


def test_a_moved_or_unfinished_environment_is_stale(finished: Path) -> None:
    moved = finished.rename(finished.with_name("moved"))

    assert not is_current(moved)
    (moved / ".venv" / "complete").unlink()
    assert not is_current(moved)


def test_only_a_request_for_another_interpreter_makes_the_environment_stale(finished: Path) -> None:
    assert is_current(finished)
    assert not is_current(finished, PYTHON="/another/python")


def test_the_application_is_found_under_all_its_installed_names(finished: Path) -> None:
    """`make setup` uninstalls them, so that no distribution with a former name remains."""
    (packages,) = (finished / ".venv").glob("lib/*/site-packages")
    for name, place in (("former", finished), ("acme_billing", finished), ("elsewhere", finished.parent)):
        record = packages / f"{name}-1.0.dist-info" / "direct_url.json"
        record.parent.mkdir()
        record.write_text(json.dumps({"url": place.as_uri(), "dir_info": {"editable": True}}))

    command = [
        str(finished / ".venv" / "bin" / "python"),
        "-c",
        "import environment as e; print(sorted(e.installed_from_here()))",
    ]
    environment = plain_environment() | {"PYTHONPATH": str(finished / "scripts"), "PYTHONDONTWRITEBYTECODE": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    assert found.stdout == "['acme_billing', 'former']\n"


def test_a_directory_that_cannot_be_created_is_reported_in_one_sentence(clone: Path) -> None:
    (clone / ".local").write_text("a file where the directory belongs")
    add_command(clone, "python3", f'exec {sys.executable} "$@"')

    tried = set_up(clone)

    assert tried.returncode == 1
    assert tried.stderr == f"The environment .venv cannot be created: File exists ({clone / '.local'}).\n"


def test_no_pin_contains_a_registry_url() -> None:
    for pins in (ROOT / "requirements").glob("*.txt"):
        assert "://" not in pins.read_text()
        assert os.linesep + "--index" not in pins.read_text()
