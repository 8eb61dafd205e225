"""`app healthcheck --worker`: whether the worker of this machine, and not another one, reports to the database."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import text

from app.core.db.database import Database
from tests.conftest import KEY_SET
from tests.jobs.conftest import MakeWorker, eventually, rows
from tests.test_cli import Command
from tests.test_cli import app as app  # noqa: PLC0414  # The fixture.

type OnHost = Callable[[str], None]
CHECK = ("healthcheck", "--worker")


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> OnHost:
    """Pretend that this process runs on the machine with this name."""
    return lambda name: monkeypatch.setattr(socket, "gethostname", lambda: name)


async def report(database: Database, host: str | None, seconds: int) -> None:
    """Insert the row of a worker whose last heartbeat is that old."""
    statement = (
        "INSERT INTO procrastinate_workers (host, last_heartbeat) VALUES (:host, now() - CAST(:age AS interval))"
    )
    async with database.begin() as session:
        await session.execute(text(statement), {"host": host, "age": timedelta(seconds=seconds)})


async def test_a_running_worker_is_healthy_on_its_own_machine_only(
    clone: Database, make_worker: MakeWorker, queue_url: str, on_host: OnHost, app: Command
) -> None:
    on_host("one")
    async with make_worker().running():
        await eventually(lambda: has_host(clone, "one"))
        here = await asyncio.to_thread(app, *CHECK, url=queue_url)
        on_host("two")
        elsewhere = await asyncio.to_thread(app, *CHECK, url=queue_url)
        on_host("one")
    stopped = await asyncio.to_thread(app, *CHECK, url=queue_url)

    assert here == (0, "the worker of the host one reported 0 s ago\n", "")
    assert elsewhere == (1, "", "app: no worker of the host two is registered in the database\n")
    assert stopped == (1, "", "app: no worker of the host one is registered in the database\n")


async def has_host(database: Database, host: str) -> bool:
    return [row.host for row in await rows(database, "SELECT host FROM procrastinate_workers")] == [host]


async def test_a_silent_worker_is_unhealthy_and_its_successor_is_not(
    clone: Database, queue_url: str, on_host: OnHost, app: Command
) -> None:
    on_host("one")
    await report(clone, "one", 50)
    await report(clone, "two", 1)
    # A worker of the release before.
    await report(clone, None, 1)
    silent = await asyncio.to_thread(app, *CHECK, url=queue_url)
    patient = await asyncio.to_thread(app, *CHECK, url=queue_url, APP_JOBS__STALLED_AFTER="2m")
    await report(clone, "one", 5)
    restarted = await asyncio.to_thread(app, *CHECK, url=queue_url, APP_JOBS__STALLED_AFTER="40s")

    sentence = "app: the worker of the host one last reported 50 s ago, and counts as dead after 40 s\n"
    assert silent == (1, "", sentence)
    assert patient[0] == 0
    assert restarted == (0, "the worker of the host one reported 5 s ago\n", "")


def test_a_database_that_cannot_be_reached_is_a_sentence(app: Command) -> None:
    code, out, error = app(*CHECK)

    assert (code, out) == (1, "")
    assert error.startswith("app: cannot reach the database: ")


def test_missing_settings_are_no_traceback() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "app", *CHECK],
        env={"APP_ENVIRONMENT": "test", "APP_AUTH__SIGNING_KEYS": KEY_SET},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 1
    assert ended.stderr == "app: The settings cannot be used:\n  - DATABASE_URL: is missing\n"
