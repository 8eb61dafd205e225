"""`make run` reloads the application when a file of it changes, while the database goes on."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import pytest

from app.dev.ports import free_port
from app.dev.reload import _Files
from tests.conftest import ROOT
from tests.listings import copy_repository

MAIN = Path("src/app/core/product.py")
TIMEOUT = 60.0


class Run:
    """`make run` in a copy of the repository, on a database of the tests."""

    def __init__(self, copy: Path, url: str) -> None:
        self.copy, self.port, self.log = copy, free_port(), copy / "run.log"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("APP_", "COV"))}
        variables = {"PYTHONPATH": str(copy / "src"), "DATABASE_URL": url, "PORT": str(self.port)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app.dev", "run"],
                cwd=copy,
                env=inherited | variables,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.wait_for(r"users/me|create-admin")

    def wait_for(self, pattern: str) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not re.search(pattern, self.log.read_text()):
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def title(self) -> str | None:
        """Return what `/` shows, or None while nothing listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=TIMEOUT) as response:
                return str(response.read().decode())
        except (URLError, ConnectionError):
            return None

    def wait_for_title(self, text: str) -> None:
        began = time.monotonic()
        while text not in (self.title() or ""):
            assert time.monotonic() < began + TIMEOUT, self.log.read_text()
            time.sleep(0.02)


@pytest.fixture
def run(tmp_path: Path, clone_url: str) -> Iterator[Run]:
    copy_repository(ROOT, tmp_path)
    run = Run(tmp_path, clone_url)
    yield run
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(TIMEOUT) == 0, run.log.read_text()
    assert run.title() is None


def rename(copy: Path, name: str) -> None:
    text = (copy / MAIN).read_text()
    (copy / MAIN).write_text(re.sub("^NAME = .*$", f"NAME = {name}", text, flags=re.MULTILINE))


@pytest.mark.slow
def test_saved_python_files_and_templates_are_served_and_a_broken_file_is_survived(run: Run) -> None:
    rename(run.copy, '"First"')
    run.wait_for_title("First")
    rename(run.copy, '"Second')
    run.wait_for("SyntaxError")
    run.wait_for("the application has stopped; it starts again when a file changes")
    assert run.process.poll() is None
    rename(run.copy, '"Third"')
    run.wait_for_title("Third")
    template = run.copy / "src/app/home/html/home.html"
    template.write_text(template.read_text().replace("<li>Administrator", "<li>Fourth"))
    run.wait_for_title("Fourth")
    run.wait_for("home/html/home.html")
    migration = max((run.copy / "src/app/migrations/versions").glob("*.py"))
    migration.write_text(f"{migration.read_text()}# A comment.\n")
    run.wait_for("a migration has changed; the next make run will run it")

    log = run.log.read_text()
    assert "core/product.py" in log
    assert log.count("documentation   http") == 1


def test_a_process_that_serves_ends_with_the_one_that_watches(run: Run) -> None:
    children = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children")
    if children.exists():
        assert children.read_text().split()
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()

    deadline = time.monotonic() + TIMEOUT
    while run.title() is not None:
        assert time.monotonic() < deadline
    run.process.returncode = 0


def test_only_files_of_the_application_count(tmp_path: Path) -> None:
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "notes").mkdir()
    service = tmp_path / "notes" / "service.py"
    service.write_text("one")
    files = _Files(tmp_path)

    (tmp_path / "__pycache__" / "service.pyc").write_text("compiled")
    (tmp_path / "notes" / ".service.py.swp").write_text("of an editor")
    (tmp_path / "notes" / "service.py~").write_text("of an editor")
    assert files.changed() == []
    service.write_text("changed")
    (tmp_path / "new.html").write_text("")
    assert files.changed() == ["new.html", "notes/service.py"]
    service.unlink()
    assert files.changed() == ["notes/service.py"]
    assert files.changed() == []
