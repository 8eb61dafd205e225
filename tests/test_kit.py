"""The test kit, as a developer uses it: one file, a failing test, a debugger."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import pytest_xdist_auto_num_workers, without_info


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
