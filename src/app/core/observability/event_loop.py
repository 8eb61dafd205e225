"""Measures how late the event loop is, and reports the code that holds it.

A callback that computes for long, or that calls a blocking function, delays every other request of the process.
"""

import asyncio
import gc
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import perf_counter

from app.core.observability.metrics import Histogram

_LAG = Histogram(
    "event_loop_lag_seconds",
    "Time by which a callback of the event loop ran too late, measured four times a second.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
_MEASURED_EVERY = 0.25
# Innermost calls of a stack that are reported.
_CALLS = 25

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hold:
    """A callback that held the event loop."""

    seconds: float
    """How long, without garbage collections and without the time in which the thread waited for a CPU."""
    stack: str
    """Its calls at one moment. Empty if it was a single call of C code, during which no other thread runs."""


@contextmanager
def watching(slow: timedelta | None) -> Iterator[None]:
    """Measure the lag of the running event loop, and log each callback that holds it for longer than `slow`."""
    with closing(_LagMeter()):
        if slow is None:
            yield
        else:
            with HoldWatch(slow.total_seconds(), _log).running():
                yield


class _LagMeter:
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._plan()

    def close(self) -> None:
        self._timer.cancel()

    def _plan(self) -> None:
        self._due_at = perf_counter() + _MEASURED_EVERY
        self._timer = self._loop.call_later(_MEASURED_EVERY, self._measure)

    def _measure(self) -> None:
        _LAG.observe(max(0.0, perf_counter() - self._due_at))
        self._plan()


def _log(hold: Hold) -> None:
    facts = {"duration_ms": round(hold.seconds * 1000, 1), "stack": hold.stack or "one call of C code"}
    log.warning("event loop held", extra=facts)


@dataclass(frozen=True, slots=True)
class _Beat:
    """A moment at which the event loop was free."""

    at: float
    excused: float


class HoldWatch:
    """Reports callbacks that hold the event loop for `limit` seconds or longer.

    The event loop notes the time at short intervals. A thread takes the stack of the event loop's thread if it does not. So some
    callbacks are reported that took only three quarters of the limit. Costs 0.5 % of a CPU, so it is for development and tests.
    """

    def __init__(self, limit: float, report: Callable[[Hold], None]) -> None:
        self._interval = limit / 4
        self._limit = limit - self._interval
        self._report = report
        self._stopped = threading.Event()
        self._stack: tuple[_Beat, str] | None = None
        self._collecting_since = 0.0
        self._collected = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch the running event loop until the end of the block."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._delays = _Delays(threading.get_native_id())
        watch = threading.Thread(target=self._watch, name="event-loop-watch", daemon=True)
        gc.callbacks.append(self._note_collection)
        self._note()
        watch.start()
        try:
            yield
        finally:
            # A callback that runs at this moment, such as the one that ends the block, counts too.
            self._check()
            self._timer.cancel()
            gc.callbacks.remove(self._note_collection)
            self._stopped.set()
            watch.join()
            self._delays.close()

    def _beat(self) -> None:
        self._check()
        self._note()

    def _note(self) -> None:
        self._last = _Beat(perf_counter(), self._excused())
        self._timer = self._loop.call_later(self._interval, self._beat)

    def _check(self) -> None:
        seconds = self._held()
        if seconds >= self._limit:
            beat, stack = self._stack or (None, "")
            self._report(Hold(seconds, stack if beat is self._last else ""))

    def _held(self) -> float:
        """Return for how long the event loop has been busy beyond the interval."""
        return perf_counter() - self._last.at - self._interval - (self._excused() - self._last.excused)

    def _excused(self) -> float:
        return self._delays.seconds() + self._collected

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval):
            last = self._last
            if self._held() < self._limit or (self._stack and self._stack[0] is last):
                continue
            self._stack = last, _stack_of(self._thread)

    def _note_collection(self, phase: str, _info: Mapping[str, int]) -> None:
        if threading.get_ident() != self._thread:
            return
        if phase == "start":
            self._collecting_since = perf_counter()
        else:
            self._collected += perf_counter() - self._collecting_since


def _stack_of(thread: int) -> str:
    innermost = sys._current_frames()[thread]  # noqa: SLF001  # Documented, in spite of its name.
    stack = traceback.StackSummary.extract(traceback.walk_stack(innermost), limit=_CALLS)
    return "".join(reversed(stack.format()))


class _Delays:
    """How long a thread has waited for a CPU in all, as Linux counts it. Zero on other systems."""

    def __init__(self, thread: int) -> None:
        try:
            self._file = os.open(Path(f"/proc/self/task/{thread}/schedstat"), os.O_RDONLY)
        except OSError:
            self._file = -1

    def seconds(self) -> float:
        if self._file < 0:
            return 0.0
        return int(os.pread(self._file, 100, 0).split()[1]) / 1e9

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
