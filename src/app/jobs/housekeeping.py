"""Housekeeping: deletes old rows in bounded steps, and reports failures that repeat.

A step is one short transaction on a limited number of rows. It takes the position where the previous step ended and
returns its own end position, or None when nothing is left.
"""

import asyncio
import collections
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Any

from sqlalchemy.exc import DBAPIError

from app.core.db import failures
from app.core.db.database import Database, WriteSession
from app.core.errors import TemporaryError
from app.core.observability.metrics import Counter

# Maximum number of rows that one step reads or deletes.
BATCH = 1000
# Maximum duration of one run. The next run continues.
BUDGET = timedelta(minutes=1)
# Seconds between two steps, in which requests can use the database.
_PAUSE = 0.005

_RUNS = Counter("housekeeping_runs", "Runs of housekeeping tasks, by outcome.", task=(), outcome=())
_failures_in_a_row: collections.Counter[str] = collections.Counter()

log = logging.getLogger(__name__)

type Step[P] = Callable[[WriteSession, P | None], Awaitable[P | None]]


class HousekeepingError(TemporaryError):
    """Tasks of a run failed. The log has one line for each, with the reason."""


@asynccontextmanager
async def watched(task: str) -> AsyncIterator[None]:
    """Count the outcome of the block, and log a failure with the number of failures in a row."""
    try:
        yield
    except Exception as error:
        _failures_in_a_row[task] += 1
        _RUNS.count(task, "failed")
        _log_failure(task, error)
        raise
    del _failures_in_a_row[task]
    _RUNS.count(task, "done")


def _log_failure(task: str, error: Exception) -> None:
    failures_in_a_row = _failures_in_a_row[task]
    is_transient = failures.is_transient(error)
    # A long outage must not fill the log: only failures 1, 2, 4, 8, … are logged.
    if failures_in_a_row & (failures_in_a_row - 1) == 0:
        cause = error.orig or error if isinstance(error, DBAPIError) else error
        log.log(
            logging.WARNING if is_transient and failures_in_a_row == 1 else logging.ERROR,
            "housekeeping failed",
            extra={"task": task, "failures_in_a_row": failures_in_a_row, "reason": failures.reason(cause)},
            exc_info=None if is_transient else error,
        )


async def repeat(run: Callable[[], Awaitable[None]], *, every: float, first_retry: float) -> None:
    """Run a watched task forever. After a failure the pause is `first_retry` seconds; it doubles up to `every`."""
    retry = first_retry
    while True:
        try:
            await run()
        except Exception:  # noqa: BLE001  # `watched` has logged and counted it.
            await asyncio.sleep(min(retry, every))
            retry *= 2
        else:
            retry = first_retry
            await asyncio.sleep(every)


async def purge[P](
    database: Database, task: str, step: Step[P], *, start: P | None = None, budget: timedelta = BUDGET
) -> P | None:
    """Repeat a step until nothing is left or the budget is used up. Return the position at which the next run starts."""
    ends = monotonic() + budget.total_seconds()
    position = start
    async with watched(task):
        while True:
            position = await database.unit(partial(_run_step, step, position))
            if position is None or monotonic() >= ends:
                return position
            await asyncio.sleep(_PAUSE)


async def _run_step[P](step: Step[P], position: P | None, session: WriteSession) -> P | None:
    return await step(session, position)


async def purge_all(database: Database, steps: Mapping[str, Step[Any]], *, budget: timedelta = BUDGET) -> None:
    """Run several purges. If one fails, the others still run."""
    failed = []
    for task, step in steps.items():
        try:
            await purge(database, task, step, budget=budget)
        except Exception:  # noqa: BLE001  # `watched` has logged and counted it.
            failed.append(task)
    if failed:
        message = f"housekeeping failed: {', '.join(failed)}"
        raise HousekeepingError(message)
