"""The job that reseals the rows of retiring seal keys, on a table that only these tests have."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select, text, update

from app.auth import jobs
from app.auth.settings import AuthSettings
from app.core import product
from app.core.config import Settings
from app.core.db.database import Database, WriteSession
from app.core.security import resealing
from app.core.security.keys import KeyRing, generate_key_set, load_key_ring, new_seal_key, parse_key_ring
from app.core.security.sealing import Sealer
from app.jobs.queue import Work
from app.mail.mailer import Mailer
from app.mail.transports import MemoryTransport
from tests.auth.sealed_rows import GOLD, SILVER, Safe, make_safe, make_table, secrets, with_sealed
from tests.conftest import make_settings

KEY_SET = json.loads(generate_key_set())
KEYS = [new_seal_key(number, "active") for number in (1, 2, 3)]


def ring(*states: Any) -> KeyRing:
    """A ring with the keys 1, 2 and 3 in these states."""
    keys = [key | {"state": state} for key, state in zip(KEYS, states, strict=False)]
    return parse_key_ring(json.dumps({**KEY_SET, "seal_keys": keys}), source="")


BEFORE, AFTER, LATER = ring("active", "next"), ring("retiring", "active"), ring("retiring", "retiring", "active")


@pytest.fixture(autouse=True)
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns of the test are the only ones."""
    with_sealed(monkeypatch, GOLD, SILVER)


@pytest.fixture
def work(database: Database, settings: Settings) -> Work:
    """What a running job is given, with the key 1 retiring and the key 2 active."""
    mailer = Mailer(MemoryTransport(), from_address="app@example.com", from_name=product.NAME)
    return Work(database, mailer, AFTER, settings)


def with_keys(work: Work, keys: KeyRing) -> Work:
    return replace(work, keys=keys)


async def test_rows_of_a_retiring_key_move_to_the_active_one(session: WriteSession, work: Work) -> None:
    await make_table(session, [make_safe(Sealer(BEFORE), number) for number in range(5)])

    await jobs.reseal(work)

    only_active = Sealer(parse_key_ring(json.dumps({**KEY_SET, "seal_keys": KEYS[1:2]}), source=""))
    assert await secrets(session, only_active) == [
        (2, b"gold %d" % number, 2, b"silver %d" % number) for number in range(5)
    ]


async def test_rows_of_every_retiring_key_move(session: WriteSession, work: Work) -> None:
    await make_table(session, [make_safe(Sealer(BEFORE), 0), make_safe(Sealer(AFTER), 1), make_safe(Sealer(LATER), 2)])

    await jobs.reseal(with_keys(work, LATER))

    assert [(row[0], row[2]) for row in await secrets(session, Sealer(LATER))] == [(3, 3)] * 3


async def test_rows_of_an_active_or_next_key_are_not_touched(session: WriteSession, work: Work) -> None:
    # Another process has read a newer file, in which the key 3 is active.
    await make_table(session, [make_safe(Sealer(AFTER)), make_safe(Sealer(LATER))])
    before = (await session.execute(select(Safe.gold, Safe.silver).order_by(Safe.id))).all()

    await jobs.reseal(with_keys(work, ring("retiring", "active", "next")))

    assert (await session.execute(select(Safe.gold, Safe.silver).order_by(Safe.id))).all() == before


async def test_without_a_retiring_key_the_job_reads_nothing(work: Work) -> None:
    # The table does not exist.
    await jobs.reseal(with_keys(work, BEFORE))


async def test_every_batch_is_resealed_and_logged(
    session: WriteSession, work: Work, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await make_table(session, [make_safe(Sealer(BEFORE), number) for number in range(5)])
    monkeypatch.setattr(jobs, "BATCH", 2)

    with caplog.at_level("INFO", logger="app.core.security.resealing"):
        await jobs.reseal(work)

    assert {row[0] for row in await secrets(session, Sealer(AFTER))} == {2}
    logged = [(vars(record)["column"], vars(record)["rows"]) for record in caplog.records]
    assert logged == [(column, rows) for column in ("safes.gold", "safes.silver") for rows in (2, 2, 1)]


async def test_a_step_reads_only_its_batch_and_returns_where_it_ended(session: WriteSession) -> None:
    await make_table(session, [make_safe(Sealer(BEFORE), number) for number in range(4)])
    ids = list(await session.scalars(select(Safe.id).order_by(Safe.id)))
    step = partial(resealing.reseal, sealed=GOLD, sealer=Sealer(AFTER), batch=2)

    positions = [await step(session, None)]
    assert await moved(session) == ids[:2]
    positions += [await step(session, positions[0])]
    assert await moved(session) == ids
    positions += [await step(session, positions[1])]

    assert positions == [ids[1], ids[3], None]


async def test_an_incomplete_batch_is_the_last_one(session: WriteSession) -> None:
    await make_table(session, [make_safe(Sealer(BEFORE))])

    assert await resealing.reseal(session, None, sealed=GOLD, sealer=Sealer(AFTER), batch=2) is None


async def moved(session: WriteSession) -> list[Any]:
    safes = (await session.execute(select(Safe.id, Safe.gold).order_by(Safe.id))).all()
    return [safe.id for safe in safes if safe.gold[0] == 2]


@pytest.mark.parametrize("damage", [b"", b"\x01", b"\x01" + b"x" * 60])
async def test_a_broken_row_is_logged_and_stays_and_does_not_stop_the_others(
    session: WriteSession, work: Work, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    broken, intact = make_safe(Sealer(BEFORE)), make_safe(Sealer(BEFORE))
    broken.gold = damage
    await make_table(session, [broken, intact])

    await jobs.reseal(work)

    rows = (await session.execute(select(Safe.id, Safe.gold, Safe.silver))).all()
    found = {row.id: (row.gold, row.silver[0]) for row in rows}
    assert found[broken.id] == (damage, 2)
    assert (found[intact.id][0][0], found[intact.id][1]) == (2, 2)
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [(vars(error)["column"], vars(error)["rows"]) for error in errors] == ([("safes.gold", 1)] if damage else [])


async def test_a_row_of_another_owner_is_not_resealed(session: WriteSession, work: Work) -> None:
    # Resealing must not repair what somebody has swapped in the database.
    ada, bob = make_safe(Sealer(BEFORE)), make_safe(Sealer(BEFORE))
    ada.gold, bob.gold = bob.gold, ada.gold
    await make_table(session, [ada, bob])

    await jobs.reseal(work)

    assert {gold[0] for gold in await session.scalars(select(Safe.gold))} == {1}


@pytest.mark.parametrize(("number", "rows"), [(1, 2), (2, 1), (3, 0), (255, 0)])
async def test_rows_are_counted_by_key(session: WriteSession, number: int, rows: int) -> None:
    empty = make_safe(Sealer(AFTER))
    empty.gold = b""
    await make_table(session, [*(make_safe(Sealer(BEFORE)) for _ in range(2)), make_safe(Sealer(AFTER)), empty])

    assert await resealing.count(session, GOLD, number) == rows


@pytest.fixture
async def two(clone_url: str) -> AsyncIterator[Database]:
    """A database with several real connections."""
    database = Database(make_settings(clone_url).database)
    yield database
    await database.dispose()


async def test_a_change_at_the_same_time_is_not_lost(two: Database) -> None:
    safe = make_safe(Sealer(BEFORE))
    enrolled = Sealer(BEFORE).seal(b"new gold", purpose="gold", owner=safe.owner_id)
    async with two.sessions() as session:
        await make_table(session, [safe])

    async with two.sessions() as changing, asyncio.TaskGroup() as group, asyncio.timeout(20):
        await changing.execute(update(Safe).values(gold=enrolled))
        # The job reads the old value, and then waits for the row.
        resealed = group.create_task(step_in(two))
        while not await changing.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")):  # noqa: ASYNC110  # Another session waits.
            await asyncio.sleep(0.01)
        await changing.commit()
        await resealed

    async with two.sessions() as second:
        assert (await second.scalars(select(Safe.gold))).all() == [enrolled]


async def step_in(database: Database) -> None:
    async with database.begin() as session:
        await resealing.reseal(session, None, sealed=GOLD, sealer=Sealer(AFTER), batch=10)


async def test_a_row_deleted_at_the_same_time_stays_deleted(two: Database) -> None:
    async with two.sessions() as session:
        await make_table(session, [make_safe(Sealer(BEFORE)), make_safe(Sealer(BEFORE), 1)])

    async with two.sessions() as deleting, asyncio.TaskGroup() as group, asyncio.timeout(20):
        await deleting.execute(text("DELETE FROM safes WHERE id = (SELECT id FROM safes ORDER BY id LIMIT 1)"))
        resealed = group.create_task(step_in(two))
        while not await deleting.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")):  # noqa: ASYNC110  # As above.
            await asyncio.sleep(0.01)
        await deleting.commit()
        await resealed

    async with two.sessions() as second:
        assert [gold[0] for gold in await second.scalars(select(Safe.gold))] == [2]


def test_the_keys_of_the_tests_and_of_new_key_sets_can_seal(settings: Settings) -> None:
    assert load_key_ring(settings.of(AuthSettings)).active_seal_key == 1
