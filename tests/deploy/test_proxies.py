"""The proxies of `deploy/proxy` in front of two instances: real programs, TLS, and restarts under load.

`make deployment` restarts each instance once. To repeat it as often as the documentation promises:

    PROXIES=full make deployment ARGS="-k restarts -rP"
"""

import os
from pathlib import Path

import asyncpg
import pytest

from tests.deploy.instances import load_on, two_instances
from tests.deploy.proxies import PROGRAMS, path_of, running_proxy
from tests.volume import plain

IS_FULL = os.environ.get("PROXIES") == "full"
RESTARTS = 6 if IS_FULL else 2
REQUESTS = 30_000 if IS_FULL else 500
KILLS = 6

pytestmark = pytest.mark.deploy
each_proxy = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(path_of(name) is None, reason=f"{name} is not installed"))
        for name in PROGRAMS
    ],
)


@each_proxy
async def test_restarts_in_turn_fail_no_request(name: str, clone_url: str, tmp_path: Path) -> None:
    restarts = 0
    async with (
        two_instances(clone_url) as instances,
        running_proxy(name, tmp_path, [instance.port for instance in instances]) as proxy,
        load_on(proxy, clone_url) as load,
    ):
        while restarts < RESTARTS or load.requests < REQUESTS:
            await instances[restarts % 2].restart()
            restarts += 1

    print(f"{name}: {load.requests} requests, {restarts} restarts, {len(load.failures)} failed")  # noqa: T201  # The result.
    assert load.failures == []
    assert load.reads.responses.keys() == {200}
    assert load.writes.responses.keys() == {201}
    connection = await asyncpg.connect(plain(clone_url))
    rows = await connection.fetch("SELECT split_part(email, '@', 1) FROM users WHERE role = 'user'")
    await connection.close()
    assert not load.writes.compare(row[0] for row in rows).differs


@each_proxy
async def test_the_load_notices_instances_that_are_killed(name: str, clone_url: str, tmp_path: Path) -> None:
    kills = 0
    async with (
        two_instances(clone_url) as instances,
        running_proxy(name, tmp_path, [instance.port for instance in instances]) as proxy,
        load_on(proxy, clone_url) as load,
    ):
        while kills < KILLS and not load.failures:
            await load.writes.wait_for_writes(50, within=30)
            await instances[kills % 2].kill()
            kills += 1

    print(f"{name}: {load.requests} requests, {kills} kills, {len(load.failures)} failed")  # noqa: T201  # The result.
    assert load.failures
