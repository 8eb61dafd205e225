"""A pytest plugin that measures the coverage of src/app with `sys.monitoring`, and fails the run below the limit in pyproject.toml.

The tracer of coverage.py is called for each function of every library, and looks up the greenlet each time: it doubles the time of the
tests. Here only the functions of src/app report their lines, and each one only until everything that the report asks of it has run. The
collected data has the format of coverage.py, which combines it and writes the report.

`COVERAGE=1 make test` loads it with `-p`, in each pytest worker before the application is imported.
"""

import ast
import os
import sys
from collections.abc import Callable, Generator
from fnmatch import fnmatch
from functools import cache
from io import StringIO
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from coverage import Coverage, CoverageData
from coverage.python import PythonFileReporter

ROOT = Path(__file__).parent.parent
_EVENTS = sys.monitoring.events
_TOOL = sys.monitoring.COVERAGE_ID
_MODULE = "<module>"

type Arc = tuple[int, int]


class Function:
    """What has run of a function, a class body or a module: arcs, which are pairs of lines that ran after one another in a frame.

    The line number of the beginning and the end of a function is negative.
    """

    def __init__(self, code: CodeType) -> None:
        self.code = code
        self.edge = -code.co_firstlineno
        self.arcs: set[Arc] = set()
        # The last line of each running frame. A frame keeps its id while it is suspended.
        self.last: dict[int, int] = {}
        self.ends = 0


class File:
    """What the report asks of the functions of a file."""

    def __init__(self, path: str, coverage: Coverage) -> None:
        self._reporter = PythonFileReporter(path, coverage)
        counts = self._reporter.exit_counts()
        self._lines = self._reporter.lines()
        ignored = self._reporter.no_branch_lines()
        excluded = self._reporter.excluded_lines()
        self._branches = {
            (start, end)
            for start, end in self._reporter.arcs()
            if counts.get(start, 0) > 1 and start not in ignored and end not in excluded
        }
        self._bodies = dict(_bodies(Path(path).read_text()))

    def is_complete(self, function: Function) -> bool:
        """Return whether everything has run that the report asks of a function. A module runs only once."""
        body = self._bodies.get(-function.edge)
        if body is None or function.code.co_name == _MODULE:
            return False
        own = self._reporter.translate_lines({line for _, _, line in function.code.co_lines() if line and line >= body})
        arcs = self._reporter.translate_arcs(function.arcs)
        # Not the lines of `arcs`: coverage.py adds arcs from the end of a `with` statement to lines that may not have run.
        seen = self._reporter.translate_lines({line for arc in function.arcs for line in arc if line > 0})
        return self._lines & own <= seen and {arc for arc in self._branches if arc[0] in own} <= arcs


def _bodies(text: str) -> Generator[Arc]:
    """Yield the first line of each function, with decorators, and the first line of its body."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield min(each.lineno for each in (node, *node.decorator_list)), node.body[0].lineno


class Monitor:
    """Collects what runs of the given files."""

    def __init__(self, coverage: Coverage, paths: set[str]) -> None:
        self._paths = paths
        self._functions: dict[int, Function] = {}
        self._file = cache(lambda path: File(path, coverage))

    def start(self) -> None:
        sys.monitoring.use_tool_id(_TOOL, "tests.coverage_monitor")
        callbacks: dict[int, Callable[..., object]] = {
            _EVENTS.PY_START: self._begin,
            _EVENTS.LINE: self._line,
            _EVENTS.PY_RETURN: self._return,
            _EVENTS.PY_UNWIND: self._return,
        }
        for event, callback in callbacks.items():
            sys.monitoring.register_callback(_TOOL, event, callback)
        # Lines and returns are reported only by the functions of the files. An exception cannot be limited to them.
        sys.monitoring.set_events(_TOOL, _EVENTS.PY_START | _EVENTS.PY_UNWIND)

    def stop(self) -> None:
        sys.monitoring.set_events(_TOOL, _EVENTS.NO_EVENTS)
        sys.monitoring.free_tool_id(_TOOL)

    def arcs(self) -> dict[str, set[Arc]]:
        """Return the arcs of each file."""
        found: dict[str, set[Arc]] = {path: set() for path in self._paths}
        for function in self._functions.values():
            found[function.code.co_filename] |= function.arcs
        return found

    def _begin(self, code: CodeType, _offset: int) -> object:
        if code.co_filename in self._paths and id(code) not in self._functions:
            self._functions[id(code)] = Function(code)
            sys.monitoring.set_local_events(_TOOL, code, _EVENTS.LINE | _EVENTS.PY_RETURN)
        return sys.monitoring.DISABLE

    def _line(self, code: CodeType, line: int) -> None:
        function = self._functions[id(code)]
        frame = id(sys._getframe(1))
        function.arcs.add((function.last.get(frame, function.edge), line))
        function.last[frame] = line

    def _return(self, code: CodeType, _offset: int, _result: object) -> None:
        if function := self._functions.get(id(code)):
            last = function.last.pop(id(sys._getframe(1)), None)
            if last is not None:
                function.arcs.add((last, function.edge))
            function.ends += 1
            # To look costs more than to report the lines of a few calls: after 1, 2, 4, 8 and so on.
            if function.ends.bit_count() == 1 and self._file(code.co_filename).is_complete(function):
                sys.monitoring.set_local_events(_TOOL, code, _EVENTS.NO_EVENTS)


def measured(coverage: Coverage, root: Path = ROOT) -> set[str]:
    """Return the paths of the files that the report contains."""
    omitted = [str(root / pattern) for pattern in _option(coverage, "run:omit")]
    folders = [root / folder for folder in _option(coverage, "run:source")]
    paths = {str(path) for folder in folders for path in folder.rglob("*.py")}
    return {path for path in paths if not any(fnmatch(path, pattern) for pattern in omitted)}


def _option(coverage: Coverage, name: str) -> list[str]:
    # Its declared type is that of every option; these two are lists.
    value: Any = coverage.get_option(name)
    return list(value or ())


class CoveragePlugin:
    """Measures this process. A process that is no pytest worker also writes the report."""

    def __init__(self) -> None:
        self._coverage = Coverage(config_file=str(ROOT / "pyproject.toml"))
        self._monitor = Monitor(self._coverage, measured(self._coverage))
        self._is_worker = "PYTEST_XDIST_WORKER" in os.environ
        self._report = StringIO()
        if not self._is_worker:
            self._coverage.erase()
        self._monitor.start()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Store the data after the last test. A total below the limit fails the run."""
        result = yield
        self._monitor.stop()
        arcs = self._monitor.arcs()
        data = CoverageData(str(self._coverage.get_option("run:data_file")), suffix=True)
        data.add_arcs(arcs)
        data.touch_files(arcs)
        if not self._is_worker:
            self._coverage.combine()
            total = self._coverage.report(file=self._report)
            if total < (limit := float(str(self._coverage.get_option("report:fail_under")))):
                self._report.write(f"\nThe coverage is {total:.2f} %, and must be {limit:.0f} %.\n")
                session.testsfailed += 1
        return result

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("coverage")
        terminalreporter.write(self._report.getvalue())


def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Begin before the application is imported."""
    early_config.pluginmanager.register(CoveragePlugin(), "coverage-of-src-app")
