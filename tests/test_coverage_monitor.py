"""The plugin that measures coverage finds the same as coverage.py, and fails a run below the limit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PLUGIN = ROOT / "tests" / "coverage_monitor.py"
PROJECT = """
[tool.pytest.ini_options]
pythonpath = [".", "src"]
[tool.coverage.run]
branch = true
source = ["src"]
omit = ["src/omitted/*"]
parallel = true
[tool.coverage.report]
fail_under = 100
exclude_also = ["never_called"]
"""
# Each function leaves some of its ways untaken, except `whole`.
SAMPLE = '''
import asyncio
from contextlib import suppress

import greenlet


def whole(number):
    """Double even numbers."""
    if number % 2:
        return number
    return number * 2


def partial(number):
    if number: total = sum(
        each
        for each in range(number)
    )
    else:
        total = -1
    while number > 3:
        number -= 1
        if number == 100:
            break
    else:
        total += 1
    return total


def failing(error):
    try:
        try:
            if error:
                raise error
        finally:
            seen = 1
    except KeyError:
        return "key"
    except ValueError:
        return "value"
    with suppress(OSError):
        if not error:
            raise OSError
    return seen


def matched(value):
    match value:
        case [first, *_]:
            return first
        case {"name": str(name)}:
            return name
        case _:
            return None


def decorated(function):
    return function


@decorated
@decorated
def recursive(depth):
    if depth:
        return recursive(depth - 1)
    return [each for each in range(3) if each] if depth is None else depth


def numbers():
    received = yield 1
    if received:
        yield received
    yield 3


async def waiting(count):
    async for each in ticks(count):
        if each == 7:
            break
    async with asyncio.timeout(5):
        await asyncio.gather(*(inner(each) for each in range(3)))


async def ticks(count):
    for each in range(count):
        await asyncio.sleep(0)
        yield each


async def inner(number):
    await asyncio.sleep(0)
    return "odd" if number % 2 else (
        "even"
    )


async def cancelled_first():
    watch = asyncio.ensure_future(watching(asyncio.Event()))
    await asyncio.sleep(0)
    watch.cancel()
    with suppress(asyncio.CancelledError):
        await watch
    with suppress(KeyError):
        await watching(asyncio.Event())


async def watching(lost):
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(lost.wait(), 0.01)
        await failed()


async def failed():
    raise KeyError


def switching(other):
    first = other.switch()
    second = [first]
    return second


def never_called():
    return 0


class Thing:
    names = [name for name in "ab"]

    @property
    def name(self):
        return self.names[0] or None


def main():
    for number in range(20):
        whole(number)
    partial(5), partial(0)
    failing(None)
    try:
        failing(IndexError())
    except IndexError:
        pass
    failing(KeyError())
    matched([1]), matched(None)
    recursive(9)
    generator = numbers()
    next(generator), generator.send(None)
    generator.close()
    asyncio.run(waiting(2))
    asyncio.run(cancelled_first())
    Thing().name


def switches():
    here = greenlet.getcurrent()
    children = [greenlet.greenlet(switching) for _ in "ab"]
    for child in children:
        child.switch(here)
    for child in children:
        child.switch(child is here)
'''
COMPARED = """
import json, sys
from coverage import Coverage
from tests import coverage_monitor

def result(coverage):
    coverage.save()
    report = f"{sys.argv[1]}.json"
    coverage.json_report(outfile=report)
    file = json.load(open(report))["files"]["src/sample.py"]
    return {name: file[name] for name in ("missing_lines", "missing_branches", "executed_lines", "executed_branches")}

coverage = Coverage(config_file="pyproject.toml", data_file="first", concurrency=["thread", "greenlet"])
if sys.argv[1] == "tracer":
    coverage.start()
else:
    monitor = coverage_monitor.Monitor(coverage, coverage_monitor.measured(coverage))
    monitor.start()
import sample
getattr(sample, sys.argv[2])()
if sys.argv[1] == "tracer":
    coverage.stop()
else:
    events = {name: sys.monitoring.get_local_events(1, getattr(sample, name).__code__) for name in ("whole", "partial")}
    monitor.stop()
    if sys.argv[2] == "main":
        assert events["partial"] and not events["whole"], events
    coverage.get_data().add_arcs(monitor.arcs())
print(json.dumps(result(coverage)))
"""
TESTS = """
import pytest, sample

@pytest.mark.parametrize("number", [1, 2])
def test_whole(number):
    sample.whole(number)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the plugin."""
    for folder in ("src/omitted", "tests"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "src/omitted/left_out.py").write_text("1")
    shutil.copy(PLUGIN, tmp_path / "tests")
    return tmp_path


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTEST"))}
    command = [sys.executable, *arguments]
    variables = inherited | {"PYTHONPATH": f"{project}:{project / 'src'}"}
    return subprocess.run(command, cwd=project, env=variables, capture_output=True, text=True, check=False)


def test_the_monitor_finds_the_same_as_the_tracer_of_coverage(project: Path) -> None:
    (project / "src/sample.py").write_text(SAMPLE)

    monitor, tracer = (run(project, "-c", COMPARED, name, "main") for name in ("monitor", "tracer"))

    assert monitor.returncode == 0, monitor.stderr
    assert '"missing_branches": [[' in monitor.stdout
    assert monitor.stdout == tracer.stdout, tracer.stderr


def test_the_lines_of_several_greenlets_are_found(project: Path) -> None:
    (project / "src/sample.py").write_text(SAMPLE)

    found = run(project, "-c", COMPARED, "monitor", "switches")

    lines = SAMPLE.splitlines()
    body = lines.index("def switches():") + 2
    executed = set(json.loads(found.stdout)["executed_lines"])
    assert set(range(body, body + 6)) <= executed
    assert {lines.index(line) + 1 for line in lines if "second" in line} <= executed


def test_the_data_of_all_pytest_workers_counts_and_a_total_below_the_limit_fails_the_run(project: Path) -> None:
    (project / "src/sample.py").write_text(SAMPLE.partition("\n\n\ndef partial")[0].replace("import greenlet", ""))
    (project / "tests/test_sample.py").write_text(TESTS)
    pytest_command = ("-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.coverage_monitor")

    complete = run(project, *pytest_command, "-n2")
    partial = run(project, *pytest_command, "-n0", "-k", "1")

    assert complete.returncode == 0, complete.stdout
    assert "left_out" not in complete.stdout
    assert partial.returncode == 1
    assert "The coverage is 75.00 %, and must be 100 %." in partial.stdout
