"""Mutation testing of the code for logins and tokens: `make mutation` changes a detail and checks that a test fails.

mutmut runs pytest once for each mutant, in a fork. This module creates one server and one template for all runs, and passes the
URL in the environment. As a plugin of pytest, it also moves the tests that probably kill the mutant to the front.
"""

import asyncio
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated

import pytest
import typer
from mutmut.configuration import config
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.utils.format_utils import get_mutant_name

from app.dev.postgres.cluster import server_for_tests
from tests.conftest import ROOT, TEMPLATE_VARIABLE, make_template

THRESHOLD = 0.9
# More than the usual number of cores, because many tests wait.
_PROCESSES = 4
# Exit codes that mutmut stores for a mutant: those of pytest, or its own.
_SURVIVED, _NO_TEST = (0,), (5, 33)
_TIMED_OUT = (24, 36, 152, 255, -24)
_RESULTS = ROOT / "mutants" / "src"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with tests that killed other mutants of the function, then with tests of the module. One failure is enough."""
    module = _mutant().rpartition(".")[0].rpartition(".")[2].removesuffix("s")
    notes = _killers_file()
    killers = notes.read_text().splitlines() if notes.exists() else []
    items.sort(key=lambda item: (item.nodeid not in killers, not item.path.stem.startswith(f"test_{module}")))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record which test killed a mutant."""
    if report.failed and "__mutmut_" in _mutant():
        with _killers_file().open("a") as notes:
            notes.write(f"{report.nodeid}\n")


def _mutant() -> str:
    return os.environ.get("MUTANT_UNDER_TEST", "")


def _killers_file() -> Path:
    # mutmut runs the tests in this directory.
    return ROOT / f"killers-of-{_mutant().rpartition('__mutmut_')[0]}.txt"


def main(
    patterns: Annotated[
        list[str] | None, typer.Argument(help="Names of mutants, such as 'app.auth.access.tokens.*'.")
    ] = None,
    *,
    sample: Annotated[
        int, typer.Option(help="Maximum number of mutants per module, always the same ones. 0 runs all.")
    ] = 0,
) -> None:
    """Run the mutants that have no result yet, and print the score of each module."""
    os.chdir(ROOT)
    names = [name for module in _modules() for name in _sampled(_mutants(module), sample)]
    done = {name for path in _RESULTS.rglob("*.py.meta") for name, end in _exit_codes(path).items() if end is not None}
    wanted = [name for name in names if name not in done and any(fnmatch(name, one) for one in patterns or ["*"])]
    if wanted:
        with server_for_tests(ROOT) as url:
            environment = {**os.environ, TEMPLATE_VARIABLE: asyncio.run(make_template(url))}
            program = Path(sys.executable).with_name("mutmut")
            subprocess.run([program, "run", f"--max-children={_PROCESSES}", *wanted], env=environment, check=True)
    raise typer.Exit(report(set(names)))


def _modules() -> Iterator[Path]:
    return (path for path in sorted(Path("src").rglob("*.py")) if config().should_mutate(path))


def _mutants(module: Path) -> list[str]:
    return [
        get_mutant_name(module, name) for name in mutate_file_contents(str(module), module.read_text()).mutant_names
    ]


def _sampled(names: Sequence[str], most: int) -> Sequence[str]:
    # A fixed seed makes runs comparable.
    return random.Random(0).sample(names, most) if 0 < most < len(names) else names  # noqa: S311  # No secret.


def _exit_codes(path: Path) -> dict[str, int | None]:
    exit_codes: dict[str, int | None] = json.loads(path.read_text())["exit_code_by_key"]
    return exit_codes


def report(names: set[str]) -> int:
    """Print the score of each module. Return 1 if too many of these mutants survived."""
    total: Counter[str] = Counter()
    for path in sorted(_RESULTS.rglob("*.py.meta")):
        counted = Counter(_verdict(end) for name, end in _exit_codes(path).items() if name in names)
        if counted:
            typer.echo(_line(path.relative_to(_RESULTS / "app").as_posix().removesuffix(".meta"), counted))
            total += counted
    typer.echo(_line("all", total))
    return int(_score(total) < THRESHOLD)


def _verdict(end: int | None) -> str:
    if end is None:
        return "not run"
    kinds = {"survived": _SURVIVED, "without a test": _NO_TEST, "timed out": _TIMED_OUT}
    return next((kind for kind, codes in kinds.items() if end in codes), "killed")


def _score(counted: Counter[str]) -> float:
    dead, alive = counted["killed"] + counted["timed out"], counted["survived"] + counted["without a test"]
    return dead / (dead + alive) if dead + alive else 0.0


def _line(name: str, counted: Counter[str]) -> str:
    kinds = ("killed", "timed out", "survived", "without a test", "not run")
    return f"{name:24} {_score(counted):7.1%}  " + ", ".join(f"{counted[kind]} {kind}" for kind in kinds)


if __name__ == "__main__":
    typer.run(main)
