"""The test kit, as a developer uses it: one file, a failing test, a debugger."""

import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import ROOT, outside, pytest_xdist_auto_num_workers, without_info
from tests.listings import copy_repository, run


@pytest.mark.parametrize(
    ("arguments", "workers"),
    [
        (["tests"], None),
        (["tests/users"], None),
        (["tests/users/test_router.py", "tests/auth"], None),
        (["tests/users/test_router.py"], 0),
        (["tests/users/test_router.py", "tests/auth/test_limits.py"], 0),
        (["tests/users/test_router.py::test_a_user_is_created[a/b.c]"], 0),
    ],
)
def test_named_files_run_in_one_process(arguments: list[str], workers: int | None) -> None:
    config: Any = SimpleNamespace(args=arguments)

    assert pytest_xdist_auto_num_workers(config) == workers


def test_a_report_hides_log_lines_of_level_info() -> None:
    output = 'printed\n{"event":"request","level":"info"}\n{"event":"failed","level":"error"}\n{"level":"info"}\n'

    assert without_info(output) == (
        'printed\n{"event":"failed","level":"error"}\n(2 log lines of level info; --logs shows them)\n'
    )


def test_a_report_without_log_lines_is_unchanged() -> None:
    assert without_info("printed\n") == "printed\n"


def test_each_command_of_the_page_selects_a_test() -> None:
    page = (ROOT / "docs" / "development.md").read_text()
    commands = re.findall(r"^\.venv/bin/pytest (\S+\.py)(?: -k (\w+))?", page, re.MULTILINE)
    selected = [re.findall(rf"def (test_\w*{word})", (ROOT / path).read_text()) for path, word in commands]

    assert commands
    assert all(selected)


PROBE = """
import logging

from httpx2 import AsyncClient


async def test_a_probe(client: AsyncClient) -> None:
    response = await client.get("/livez")
    logging.getLogger("app").info("a line %s", "of level info")
    {statement}
    assert response.status_code == 500, "the failure"
"""


def probe(copy: Path, statement: str) -> None:
    copy_repository(ROOT, copy)
    (copy / "tests" / "test_probe.py").write_text(PROBE.format(statement=statement))


@pytest.mark.slow
@pytest.mark.parametrize("selected", ["tests/test_probe.py", "tests/test_probe.py::test_a_probe"])
def test_a_breakpoint_stops_a_named_test_which_can_be_continued(
    tmp_path: Path, template_url: str, selected: str
) -> None:
    probe(tmp_path, "breakpoint()")
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", selected],
        cwd=tmp_path,
        env=outside() | {"PYTHONPATH": str(tmp_path / "src"), "DATABASE_URL": template_url},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)

    before = read_until(terminal, b"(Pdb)")
    os.write(terminal, b"p response.url.path * 2\n")
    stopped = read_until(terminal, b"(Pdb)")
    os.write(terminal, b"continue\n")
    after = read_until(terminal, b"1 failed")

    assert b"test_probe.py" in before
    assert b"/livez/livez" in stopped
    assert b"the failure" in after
    assert process.wait(60) == 1
    os.close(terminal)


def read_until(terminal: int, text: bytes) -> bytes:
    """Read what a program writes to its terminal, up to this text."""
    found = b""
    while text not in found:
        assert select.select([terminal], [], [], 60)[0], found
        found += os.read(terminal, 4096)
    return found


@pytest.mark.slow
async def test_the_report_of_a_failed_test_begins_with_the_failure(tmp_path: Path, template_url: str) -> None:
    probe(tmp_path, "")

    with pytest.raises(AssertionError) as failed:
        await run(tmp_path, "python", "-m", "pytest", "tests/test_probe.py", DATABASE_URL=template_url)

    report = str(failed.value)
    assert report.index("the failure") < report.index("log lines of level info; --logs shows them")
    assert "a line of level info" not in report
