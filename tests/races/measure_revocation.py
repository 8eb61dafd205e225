"""Measures how long any process still accepts a revoked access token.

    python -m pytest -q -n0 -s tests/races/measure_revocation.py
    MEASURE_WORKERS=8 MEASURE_ROUNDS=200 MEASURE_PAUSE=0.004 MEASURE_CHECK=database …

A client per worker sends requests with the token of a session without a break. The session is logged out at one worker. The result
is the time from the response to that logout until the last successful response of any worker. A worker decides before it responds,
so the result is an upper bound. `make test` does not collect this file. Its tests have higher limits, because they share a machine.
"""

import asyncio
import os
import statistics
import time
from dataclasses import dataclass

from tests.races.workers import REVOKE, Fleet, Worker, fleet

WORKERS = int(os.environ.get("MEASURE_WORKERS", "8"))
ROUNDS = int(os.environ.get("MEASURE_ROUNDS", "200"))
CHECK = {"APP_AUTH__ACCESS_CHECK": os.environ.get("MEASURE_CHECK", "memory")}
# Seconds between two requests to one worker. Without the pause, the load of the machine determines the result.
PAUSE = float(os.environ.get("MEASURE_PAUSE", "0.002"))


@dataclass
class Acceptance:
    """The time of the last successful response of a worker."""

    answered: float = 0.0


async def ask_until_refused(worker: Worker, access_token: str, last: Acceptance) -> None:
    while await worker.accepts(access_token):
        last.answered = time.perf_counter()
        await asyncio.sleep(PAUSE)


async def measure(workers: Fleet, email: str) -> float:
    """Log in and out, and return the seconds until no worker accepts the token."""
    pair = await workers.log_in(email)
    last = [Acceptance() for _ in workers.workers]
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for worker, acceptance in zip(workers.workers, last, strict=True):
            group.create_task(ask_until_refused(worker, pair["access_token"], acceptance))
        await asyncio.sleep(0.05)
        answer = await workers.any.request("POST", REVOKE, form={"token": pair["refresh_token"]})
        revoked = time.perf_counter()
        assert answer.status == 200
    return max(0.0, max(acceptance.answered for acceptance in last) - revoked)


async def test_revocation_reaches_every_worker_in_time(clone_url: str) -> None:
    async with fleet(clone_url, *[CHECK for _ in range(WORKERS)]) as workers:
        (email,) = await workers.accounts(1)
        for _ in range(5):
            await measure(workers, email)
        took = sorted([1000 * await measure(workers, email) for _ in range(ROUNDS)])

    median, p99 = statistics.median(took), took[max(0, int(len(took) * 0.99) - 1)]
    print(f"\n{WORKERS} workers, {ROUNDS} logouts: p50 {median:.1f} ms, p99 {p99:.1f} ms, worst {took[-1]:.1f} ms")  # noqa: T201  # The result.
    assert median <= 10
    assert p99 <= 50
