"""Mutation testing: `make mutation` breaks the code that decides who is who, a little at a time, and sees whether a test notices.

mutmut runs pytest once for each mutant, in a fork. One server and one template are made here for all of these runs, and handed
to them through the environment. Loaded into pytest as a plugin, this module puts first what most likely kills.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from app.dev.embedded_postgres import server_for_tests
from tests.conftest import ROOT, TEMPLATE_VARIABLE, make_template

THRESHOLD = 0.9
# What mutmut notes as a mutant's end.
_SURVIVED, _KILLED = 0, 1
_NO_TEST, _TIMED_OUT = 33, frozenset({24, 36, 152, -24, -9, -15, 255})
_MUTANTS = ROOT / "mutants" / "src"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests named like the broken module; the first that fails ends the run."""
    module = os.environ.get("MUTANT_UNDER_TEST", "").rpartition(".")[0].rpartition(".")[2]
    items.sort(key=lambda item: not item.path.stem.startswith(f"test_{module.removesuffix('s')}"))


def main(patterns: list[str]) -> int:
    """Run the mutants whose names match, or all that have no result yet; 1 when too many of a module survive."""
    with server_for_tests(ROOT) as url:
        environment = {**os.environ, TEMPLATE_VARIABLE: asyncio.run(make_template(url))}
        run = subprocess.run([Path(sys.executable).with_name("mutmut"), "run", "--max-children=1", *patterns], cwd=ROOT, env=environment, check=False)
    return run.returncode or report()


def report() -> int:
    """Print the score of each module that was mutated."""
    scores = {}
    for path in sorted(_MUTANTS.rglob("*.py.meta")):
        ends = Counter(json.loads(path.read_text())["exit_code_by_key"].values())
        if judged := sum(ends.values()) - ends[None]:
            scores[path] = (judged - ends[_SURVIVED] - ends[_NO_TEST]) / judged
            print(_line(path, ends, judged, scores[path]))
    return int(min(scores.values(), default=0) < THRESHOLD)


def _line(path: Path, ends: Counter[int | None], judged: int, score: float) -> str:
    name = path.relative_to(_MUTANTS / "app").as_posix().removesuffix(".meta")
    timed_out = sum(ends[end] for end in _TIMED_OUT)
    return (
        f"{name:26} {judged:5} judged {ends[_KILLED]:5} killed {timed_out:4} timed out {ends[_SURVIVED]:4} survived "
        f"{ends[_NO_TEST]:4} without a test {ends[None]:5} not run {score:7.1%}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
