"""Load: `wrk` sends a plan, checks every answer, and says how fast they came."""

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
    """Nothing can be measured; the text says why."""


@dataclass(frozen=True)
class Plan:
    """One kind of request, and how its answer is known to be right.

    `{value}` in a header or the body stands for one of `values`, `{number}` for one that is never used twice. With
    `follow`, a Lua pattern, each thread goes on with what it captures in the answer before, as a client with a chain of
    tokens does.
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
        """Whether each request is written anew."""
        return self.follow is not None or "{number}" in (self.body or "")


@dataclass(frozen=True)
class Load:
    """What one run of a plan gave; `failed` counts what got no answer or another than expected."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    failed: int
    example: str


class Sending:
    """A running load."""

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
        """Wait for the end."""
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
        message = "wrk, which makes the load, is not installed: `apt-get install wrk`"
        raise LoadError(message)
    return path


def refuse_to_start_without_tools() -> None:
    """Say before anything slow what is missing."""
    if not sys.platform.startswith("linux") or shutil.which("taskset") is None:
        message = "measuring needs Linux: taskset keeps server and load apart, /proc tells what they cost"
        raise LoadError(message)
    _wrk()


def _lua(value: Any) -> str:
    """Write plain data as Lua does; the texts are ASCII, where JSON and Lua agree."""
    if value is None:
        return "nil"
    if isinstance(value, dict):
        return "{" + ", ".join(f"[{_lua(key)}] = {_lua(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ", ".join(map(_lua, value)) + "}"
    return json.dumps(value)
