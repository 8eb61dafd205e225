import asyncio
import gc
import json
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import pytest

from app.core.observability import event_loop
from app.core.observability.event_loop import Hold, HoldWatch
from app.core.observability.metrics import own_families

LIMIT = 0.02


async def holds_of(action: Callable[[], object], *, limit: float = LIMIT) -> list[Hold]:
    """Run a function in the event loop while it is watched."""
    holds: list[Hold] = []
    with HoldWatch(limit, holds.append).running():
        await asyncio.sleep(limit)
        asyncio.get_running_loop().call_soon(action)
        await asyncio.sleep(3 * limit)
    return holds


def compute(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def sleep_in_the_event_loop() -> None:
    time.sleep(0.1)


def compute_in_the_event_loop() -> None:
    compute(0.1)


@pytest.mark.parametrize("action", [sleep_in_the_event_loop, compute_in_the_event_loop])
async def test_code_that_holds_the_event_loop_is_reported_with_its_stack(action: Callable[[], None]) -> None:
    (hold,) = await holds_of(action)

    assert hold.seconds >= 0.08
    assert f"in {action.__name__}" in hold.stack
    assert hold.stack.index("_run") < hold.stack.index(action.__name__), "the innermost call is not the last"


async def test_each_callback_is_reported_once() -> None:
    def twice() -> None:
        sleep_in_the_event_loop()
        asyncio.get_running_loop().call_later(0.05, sleep_in_the_event_loop)

    holds: list[Hold] = []
    with HoldWatch(LIMIT, holds.append).running():
        asyncio.get_running_loop().call_soon(twice)
        await asyncio.sleep(0.4)

    assert len(holds) == 2


async def test_code_that_ends_the_watch_is_reported_too() -> None:
    holds: list[Hold] = []
    with HoldWatch(LIMIT, holds.append).running():
        await asyncio.sleep(0)
        sleep_in_the_event_loop()

    assert [f"in {sleep_in_the_event_loop.__name__}" in hold.stack for hold in holds] == [True]


async def test_a_call_of_c_code_is_reported_without_a_stack() -> None:
    text = "[" + "1," * 3_000_000 + "1]"

    holds = await holds_of(lambda: json.loads(text))

    # The stack is that of the function if the other thread got in between.
    assert len(holds) == 1


async def test_free_event_loops_and_collections_of_garbage_are_not_reported() -> None:
    rings: list[list[object]] = [[] for _ in range(400_000)]
    for ring in rings:
        ring.append(ring)

    def collect() -> None:
        rings.clear()
        gc.collect()

    assert await holds_of(lambda: None, limit=0.1) == []
    assert await holds_of(collect, limit=0.05) == []


async def test_a_garbage_collection_of_another_thread_excuses_nothing() -> None:
    def collect_elsewhere() -> None:
        collector = threading.Thread(target=gc.collect)
        collector.start()
        collector.join()
        sleep_in_the_event_loop()

    (hold,) = await holds_of(collect_elsewhere)

    assert hold.seconds >= 0.08


async def test_without_the_counters_of_linux_waiting_for_a_cpu_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise FileNotFoundError

    monkeypatch.setattr(os, "open", fail)

    assert len(await holds_of(sleep_in_the_event_loop)) == 1


def lags() -> tuple[float, float]:
    """Return the number and the sum of the measured lags."""
    (family,) = [family for family in own_families() if family.name == "event_loop_lag_seconds"]
    values = {sample.name.rpartition("_")[2]: sample.value for sample in family.samples if "le" not in sample.labels}
    return values.get("count", 0), values.get("sum", 0)


async def test_the_lag_is_measured_while_the_loop_is_watched(caplog: pytest.LogCaptureFixture) -> None:
    count, total = lags()
    with event_loop.watching(None):
        await asyncio.sleep(0.2)
        time.sleep(0.3)  # noqa: ASYNC251  # This is what is measured.
        await asyncio.sleep(0.4)
    later_count, later_total = lags()
    await asyncio.sleep(0.3)

    assert later_count >= count + 2
    assert later_total >= total + 0.2
    assert lags() == (later_count, later_total), "it was measured after the end"
    assert not caplog.records


async def test_a_hold_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with event_loop.watching(timedelta(milliseconds=20)):
        sleep_in_the_event_loop()
        await asyncio.sleep(0)

    (record,) = caplog.records
    assert record.getMessage() == "event loop held"
    assert record.__dict__["duration_ms"] >= 80
    assert sleep_in_the_event_loop.__name__ in record.__dict__["stack"]
