"""The load generator: `wrk` sends requests, checks every response, and measures rate and latency."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_SCRIPT = Path(__file__).with_name("load.lua")
_MARK = "RESULT "


class LoadError(Exception):
    """The benchmark cannot run. The text gives the reason."""


@dataclass(frozen=True)
class Plan:
    """One kind of request, and the expected response.

    `{value}` in a header or in the body stands for one of `values`, and `{number}` for a number that is used once. With `follow`, a
    Lua pattern, each thread takes its next value from the last response. A client with a chain of tokens does that.
    """

    path: str
    fragment: str
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    values: list[str] = field(default_factory=lambda: [""])
    follow: str | None = None
    status: int = 200

    @property
    def changes(self) -> bool:
        """Whether each request is different."""
        return self.follow is not None or "{number}" in (self.body or "")


@dataclass(frozen=True)
class Load:
    """The result of one run. `failed` counts the requests without the expected response."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    failed: int
    example: str


class Sending:
    """A running load generator."""

    def __init__(self, port: int, plan: Plan, *, connections: int, seconds: float, threads: int = 1) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="load-")
        file = Path(self._directory.name) / "plan.lua"
        file.write_text(f"return {_lua(asdict(plan) | {'changes': plan.changes})}")
        duration = f"{max(1, round(seconds))}s"
        self._process = subprocess.Popen(
            [
                *(_wrk(), "--threads", str(threads), "--connections", str(connections), "--duration", duration),
                *("--timeout", "10s", "--script", str(_SCRIPT), f"http://127.0.0.1:{port}"),
            ],
            env=os.environ | {"PLAN": str(file)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def result(self) -> Load:
        """Wait until the run ends, and return its result."""
        output, _ = self._process.communicate()
        self._directory.cleanup()
        line = next((line for line in output.splitlines() if line.startswith(_MARK)), None)
        if line is None:
            message = f"wrk did not finish:\n{output}"
            raise LoadError(message)
        requests, duration, p50, p99, failed, example = line.removeprefix(_MARK).split(" ", 5)
        return Load(int(requests), int(duration) / 1e6, int(p50) / 1e3, int(p99) / 1e3, int(failed), example)


def _wrk() -> str:
    path = shutil.which("wrk")
    if path is None:
        message = "wrk, the load generator, is not installed; run `apt-get install wrk`"
        raise LoadError(message)
    return path


def check_tools() -> None:
    """Raise an error if a program is missing."""
    if not sys.platform.startswith("linux") or shutil.which("taskset") is None:
        message = "the benchmarks need Linux, with taskset to separate server and load, and /proc to measure them"
        raise LoadError(message)
    _wrk()


def _lua(value: Any) -> str:
    """Return data as a Lua literal. The texts are ASCII, and JSON and Lua quote ASCII in the same way."""
    if value is None:
        return "nil"
    if isinstance(value, dict):
        return "{" + ", ".join(f"[{_lua(key)}] = {_lua(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ", ".join(map(_lua, value)) + "}"
    return json.dumps(value)
