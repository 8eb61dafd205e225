"""All accounts are logged out while clients log in, with several server processes and both kinds of access check."""

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.conftest import KEY_SET, cloned
from tests.races.test_sessions import BY_NOTIFICATION, dies
from tests.races.workers import Fleet, fleet

CLIENTS = 3
# Seconds between two logins of one client. The command takes seconds to start, and the test checks each login of that time.
PAUSE = 0.1


@pytest.fixture
async def workers(template_url: str) -> AsyncIterator[Fleet]:
    """Two processes that check revocations in memory, and one that queries the database."""
    async with cloned(template_url) as url, fleet(url, {}, {}, {"APP_AUTH__ACCESS_CHECK": "database"}) as fleet_:
        yield fleet_


async def revoke_all(workers: Fleet) -> None:
    """Run the command of the operator."""
    settings = {
        "APP_ENVIRONMENT": "test",
        "APP_AUTH__SIGNING_KEYS": KEY_SET,
        "DATABASE_URL": workers.database.engine.url.render_as_string(hide_password=False),
    }
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "sessions", "revoke-all", "--yes"), env=os.environ | settings
    )
    assert await command.wait() == 0


async def test_logging_out_all_accounts_keeps_later_logins_valid(workers: Fleet) -> None:
    emails = await workers.accounts(CLIENTS + 1)
    before = [await workers.log_in(email) for email in emails]
    before += [(await workers.any.refresh(pair["refresh_token"])).body for pair in before[:2]]
    meanwhile: list[dict[str, Any]] = []
    is_over = asyncio.Event()

    async def log_in_again_and_again(email: str) -> None:
        while not is_over.is_set():
            meanwhile.append(await workers.log_in(email))
            await asyncio.sleep(random.uniform(0, PAUSE))  # noqa: S311  # A pause.

    async with asyncio.TaskGroup() as group:
        for email in emails[:CLIENTS]:
            group.create_task(log_in_again_and_again(email))
        await revoke_all(workers)
        # New logins must work at once at every process, while the other clients continue.
        for worker in workers.workers:
            after = await worker.log_in(emails[-1])
            assert after.status == 200
            assert all([await each.accepts(after.body["access_token"]) for each in workers.workers])
        is_over.set()

    for pair in before:
        for worker in workers.workers:
            await dies(worker, pair["access_token"], within=BY_NOTIFICATION)
        assert (await workers.any.refresh(pair["refresh_token"])).status == 400
    # A concurrent login is either revoked or valid, and all processes agree.
    outcomes = set()
    for pair in meanwhile:
        alive = {await worker.accepts(pair["access_token"]) for worker in workers.workers}
        refreshed = await workers.any.refresh(pair["refresh_token"])
        assert alive == {refreshed.status == 200}
        outcomes |= alive
    assert outcomes == {True, False}
