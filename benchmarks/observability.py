"""`python -m benchmarks.observability`: the cost of logs, metrics and traces for a request, with each part switched off in turn.

It measures the CPU time of one process, without a socket or a database. The log lines go to a file.
"""

import argparse
import asyncio
import gc
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from time import process_time
from typing import Any

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message

from app.core.config import LogSettings
from app.core.http import middleware, routing
from app.core.http.access import public
from app.core.http.middleware import RequestMiddleware
from app.core.http.openapi import DocumentedAPI
from app.core.observability import requests as request_metrics
from app.core.observability.logs import configure
from app.core.observability.metrics import Histogram
from app.core.schemas.fields import Answer

_HEADERS = [
    (b"host", b"127.0.0.1:8000"),
    (b"user-agent", b"benchmark"),
    (b"accept", b"*/*"),
    (b"authorization", b"Bearer " + 300 * b"x"),
]
_SCOPE: dict[str, Any] = {
    "type": "http",
    "method": "GET",
    "path": "/things/1",
    "raw_path": b"/things/1",
    "root_path": "",
    "query_string": b"",
    "headers": _HEADERS,
    "scheme": "http",
    "server": ("127.0.0.1", 8000),
    "client": ("127.0.0.1", 50000),
    "http_version": "1.1",
    "state": {},
}

type Switch = Callable[[], AbstractContextManager[object]]


class Thing(Answer):
    """The response of the operation."""

    id: str


def _application() -> DocumentedAPI:
    router = routing.router()

    @router.get("/things/{thing_id}", response_model=Thing, openapi_extra=public)
    async def read_thing(thing_id: str) -> Thing:
        return Thing(id=thing_id)

    app = DocumentedAPI(
        title="Benchmark", openapi_url=None, telemetry={"tracing": False, "metrics": False, "logs": False}
    )
    app.include_router(router)
    return app


def _wrapped(app: ASGIApp) -> ASGIApp:
    return RequestMiddleware(app, max_body_size=1_048_576, hsts=True)


@contextmanager
def _replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _nothing(*_: object, **_options: object) -> None:
    """Do nothing, instead of the part that is switched off."""


def _without_all() -> AbstractContextManager[object]:
    stack = ExitStack()
    for switch in (_SWITCHES["request id"], _SWITCHES["headers"], _SWITCHES["access line"], _SWITCHES["metrics"]):
        stack.enter_context(switch())
    return stack


_SWITCHES: Mapping[str, Switch] = {
    "request id": lambda: _replaced(middleware, "choose_request_id", lambda _given: "0192f0c1a2b37c4d8e5f60718293a4b5"),
    "headers": lambda: _replaced(middleware, "_HEADERS", {}),
    "access line": lambda: _replaced(request_metrics.RequestLog, "write", _nothing),
    "metrics": lambda: _replaced(Histogram, "observe", _nothing),
    "tracing (not configured)": lambda: _replaced(FastAPI, "__call__", Starlette.__call__),
    "these four together": _without_all,
}


async def _turn(app: ASGIApp, requests: int) -> float:
    """Return the CPU time of one request, in microseconds."""

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_message: Message) -> None: ...

    gc.collect()
    gc.disable()
    began = process_time()
    for _ in range(requests):
        await app(dict(_SCOPE), receive, send)
    used = process_time() - began
    gc.enable()
    return used / requests * 1e6


async def _measure(rounds: int, requests: int) -> dict[str, list[float]]:
    app = _application()
    contenders: dict[str, tuple[Callable[[], Awaitable[float]], Switch]] = {
        "everything on": (lambda: _turn(_wrapped(app), requests), nullcontext),
        **{f"without {name}": (lambda: _turn(_wrapped(app), requests), switch) for name, switch in _SWITCHES.items()},
        "without the middleware": (lambda: _turn(app, requests), nullcontext),
    }
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        # All take turns, so that a change of the machine's speed affects all of them. The first round is a warm-up.
        for name, (turn, switch) in contenders.items():
            with switch():
                used = await turn()
            if number:
                measured[name].append(used)
    return measured


def _table(measured: Mapping[str, list[float]]) -> str:
    """Format the median and the fastest turn. Other processes only ever make a turn slower."""
    everything = measured["everything on"]
    lines = [
        "| | median, µs of CPU a request | difference | fastest, µs | difference |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, turns in measured.items():
        typical = statistics.median(whole - part for whole, part in zip(everything, turns, strict=True))
        least = min(everything) - min(turns)
        lines.append(f"| {name} | {statistics.median(turns):.1f} | {typical:.1f} | {min(turns):.1f} | {least:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Run the command, which prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.observability", description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="number of turns of each part")
    parser.add_argument("--requests", type=int, default=500, help="requests in a turn")
    options = parser.parse_args()
    with tempfile.TemporaryFile("w") as log, _replaced(sys, "stdout", log):
        configure(LogSettings(), readable=False)
        measured = asyncio.run(_measure(options.rounds, options.requests))
    print(_table(measured))


if __name__ == "__main__":
    main()
