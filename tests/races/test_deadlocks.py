"""Runs every write concurrently with every other write on the same accounts. PostgreSQL must find no deadlock."""

import asyncio
import os
from collections.abc import AsyncIterator
from http import HTTPStatus
from itertools import batched, cycle, islice
from uuid import UUID

import asyncpg
import pytest
from httpx2 import Response
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError

from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from tests.conftest import cloned, make_settings, running
from tests.races.crowd import Crowd, writes
from tests.test_access import ACCESS
from tests.volume import plain

# Each round runs every pair of writes once, with one of the scenes.
ROUNDS = int(os.environ.get("RACE_ROUNDS", "1"))
# Number of concurrent requests of one kind, and of other kinds beside them.
COPIES = 2
AT_ONCE = 4
WRITES = dict(writes())
NAMES = list(WRITES)
# (actor, target) of the requests of one kind, and of the others. The ids ascend: first < admin < boss < last.
SCENES = (
    (("admin", "first"), ("admin", "first")),
    (("admin", "boss"), ("boss", "admin")),
    (("admin", "last"), ("boss", "last")),
)


@pytest.fixture(scope="module")
async def crowd(template_url: str, hasher: PasswordHasher) -> AsyncIterator[Crowd]:
    """Two administrators, an account with a lower and one with a higher id, and an administrator who is never a target."""
    async with cloned(template_url) as url:
        settings = make_settings(url, database={"pool_wait": "30s", "lock_timeout": "20s"})
        watcher = await asyncpg.connect(plain(url))
        # The time after which PostgreSQL checks a waiting transaction for a deadlock. The default is one second.
        await watcher.execute(f"ALTER DATABASE \"{make_url(url).database}\" SET deadlock_timeout = '40ms'")
        database = Database(settings.database)
        async with running(create_app(settings, database)) as client:
            crowd = Crowd(client, database, settings, watcher)
            for name, role in (("first", "user"), ("admin", "admin"), ("boss", "admin"), ("last", "user")):
                await crowd.add(name, hasher, role=role)
            await crowd.add("keeper", hasher, role="admin")
            await crowd.save()
            yield crowd
        await watcher.close()
        await database.dispose()


@pytest.mark.parametrize("name", NAMES)
async def test_concurrent_writes_to_the_same_accounts_never_deadlock(crowd: Crowd, name: str) -> None:
    scenes = islice(cycle(SCENES), NAMES.index(name) % len(SCENES), None)
    deadlocked: dict[tuple[str, ...], list[str]] = {}
    failed: dict[tuple[str, ...], list[int]] = {}

    for others in list(batched(NAMES[NAMES.index(name) :], AT_ONCE)) * ROUNDS:
        (actor, target), (other_actor, other_target) = [[crowd.parties[who] for who in side] for side in next(scenes)]
        await crowd.restore()
        for operation, owner in {name: target, **dict.fromkeys(others, other_target)}.items():
            await crowd.prepare(operation, owner)
        calls = [WRITES[name](crowd, actor, target) for _ in range(COPIES)]
        calls += [WRITES[other](crowd, other_actor, other_target) for other in others]
        responses = await asyncio.gather(*calls)

        if crowd.deadlocked:
            deadlocked[others], crowd.deadlocked = crowd.deadlocked, []
        statuses = [response.status_code for response in responses if response is not None]
        if any(status >= HTTPStatus.INTERNAL_SERVER_ERROR for status in statuses):
            failed[others] = statuses

    assert deadlocked == {}
    assert failed == {}


@pytest.mark.parametrize("name", NAMES)
async def test_each_write_succeeds_alone(crowd: Crowd, name: str) -> None:
    target = crowd.parties["boss"]
    await crowd.restore()
    await crowd.prepare(name, target)

    response = await WRITES[name](crowd, crowd.parties["admin"], target)

    assert response is None or _is_expected(name, response)


def _is_expected(name: str, response: Response) -> bool:
    if name in ACCESS:
        return ACCESS[name].accepts(response.status_code)
    # The address is already verified, or the password is wrong: these requests fail, but they write too.
    if name in {"verify", "fail to log in"}:
        return response.status_code == HTTPStatus.BAD_REQUEST
    return response.is_success


async def test_a_deadlock_is_detected(crowd: Crowd) -> None:
    ids = [crowd.parties[name].user_id for name in ("first", "last")]

    async def lock(first: UUID, second: UUID, is_locked: asyncio.Event, other_has_locked: asyncio.Event) -> None:
        statement = text("SELECT FROM users WHERE id = :id FOR NO KEY UPDATE")
        async with crowd.database.begin() as session:
            await session.execute(statement, {"id": first})
            is_locked.set()
            await other_has_locked.wait()
            await session.execute(statement, {"id": second})

    one, other = asyncio.Event(), asyncio.Event()
    results = await asyncio.gather(
        lock(ids[0], ids[1], one, other), lock(ids[1], ids[0], other, one), return_exceptions=True
    )

    # The test detects locks in opposite order, so the tests above can fail.
    assert [type(result) for result in results if result is not None] == [DBAPIError]
    assert len(crowd.deadlocked) == 1
    crowd.deadlocked.clear()
