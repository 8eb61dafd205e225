"""Rate limits with counters in PostgreSQL."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Row, text

from app.core.db.database import Database, WriteSession
from app.core.errors import RateLimitedError
from app.core.security import rate_limits
from app.core.security.rate_limits import Counted, Limit, RateLimiter
from tests.auth.post import PATIENT
from tests.conftest import make_settings

THREE = Limit("three", 3, timedelta(minutes=15))
FIVE = Limit("five", 5, timedelta(days=1))
KEY = b"k" * 32


@pytest.fixture
def limiter(database: Database) -> RateLimiter:
    """A limiter on the test's own database."""
    return RateLimiter(database, KEY, enabled=True)


async def attempt(limiter: RateLimiter, *counted: Counted) -> int | None:
    """Return the seconds to wait, or None if the attempt is allowed."""
    try:
        await limiter.hit(*counted)
    except RateLimitedError as error:
        return int(error.headers["Retry-After"])
    return None


async def counters(session: WriteSession) -> dict[str, int]:
    rows = (await session.execute(text("SELECT key, hits FROM rate_limits"))).all()
    return {row.key.partition(":")[0]: row.hits for row in rows}


async def stored(session: WriteSession) -> Sequence[Row[Any]]:
    return (await session.execute(text("SELECT * FROM rate_limits ORDER BY key"))).all()


async def shift(session: WriteSession, by: str) -> None:
    await session.execute(
        text("UPDATE rate_limits SET expires_at = expires_at - CAST(:by AS text)::interval"), {"by": by}
    )
    await session.commit()


async def test_a_limit_allows_exactly_its_number_of_attempts(limiter: RateLimiter) -> None:
    waits = [await attempt(limiter, (THREE, "ada")) for _ in range(5)]

    assert waits == [None, None, None, 900, 900]


async def test_each_subject_and_each_limit_has_its_own_counter(limiter: RateLimiter) -> None:
    for _ in range(3):
        await attempt(limiter, (THREE, "ada"))

    assert await attempt(limiter, (THREE, "eve")) is None
    assert await attempt(limiter, (FIVE, "ada")) is None
    assert await attempt(limiter, (THREE, "ada")) == 900


async def test_a_refused_attempt_counts_against_none_of_its_limits(limiter: RateLimiter, session: WriteSession) -> None:
    for _ in range(20):
        await attempt(limiter, (THREE, "ada"), (FIVE, "ada"))

    assert await counters(session) == {"three": 3, "five": 3}


async def test_the_longest_wait_is_returned(limiter: RateLimiter) -> None:
    day = Limit("day", 3, timedelta(days=1))
    for _ in range(3):
        await attempt(limiter, (THREE, "ada"), (day, "ada"))

    assert await attempt(limiter, (THREE, "ada"), (day, "ada")) == 86400
    assert await attempt(limiter, (THREE, "ada")) == 900


@pytest.mark.parametrize(
    ("shifted", "wait"), [("0", 900), ("14 min", 60), ("899.2 s", 1), ("900 s", None), ("1 day", None)]
)
async def test_a_window_ends(limiter: RateLimiter, session: WriteSession, shifted: str, wait: int | None) -> None:
    for _ in range(3):
        await attempt(limiter, (THREE, "ada"))
    await shift(session, shifted)

    assert await attempt(limiter, (THREE, "ada")) == wait


async def test_a_new_window_starts_with_one_attempt_and_lasts_the_full_period(
    limiter: RateLimiter, session: WriteSession
) -> None:
    for _ in range(3):
        await attempt(limiter, (THREE, "ada"))
    await shift(session, "1 day")

    waits = [await attempt(limiter, (THREE, "ada")) for _ in range(4)]

    assert waits == [None, None, None, 900]


async def test_later_attempts_do_not_prolong_a_window(limiter: RateLimiter, session: WriteSession) -> None:
    await attempt(limiter, (THREE, "ada"))
    await shift(session, "10 min")
    for _ in range(5):
        await attempt(limiter, (THREE, "ada"))

    assert await attempt(limiter, (THREE, "ada")) == 300


async def test_a_forgiven_attempt_does_not_count(limiter: RateLimiter) -> None:
    for _ in range(10):
        await limiter.hit((THREE, "ada"), (FIVE, "ada"))
        await limiter.forgive((THREE, "ada"), (FIVE, "ada"))

    assert [await attempt(limiter, (THREE, "ada")) for _ in range(4)] == [None, None, None, 900]


async def test_forgiving_never_makes_a_counter_negative(limiter: RateLimiter, session: WriteSession) -> None:
    await limiter.forgive((THREE, "ada"))
    await limiter.hit((THREE, "ada"))
    await limiter.forgive((THREE, "ada"))
    await limiter.forgive((THREE, "ada"))

    assert await counters(session) == {"three": 0}


async def test_restarted_counters_allow_all_attempts_again(limiter: RateLimiter, session: WriteSession) -> None:
    for subject in ("ada", "eve"):
        await limiter.hit((THREE, subject), (FIVE, subject))

    await limiter.restart(session, (THREE, "ada"), (FIVE, "nobody"))
    await session.commit()

    assert sorted((row.key.partition(":")[0], row.hits) for row in await stored(session)) == [
        ("five", 1),
        ("five", 1),
        ("three", 0),
        ("three", 1),
    ]
    assert [await attempt(limiter, (THREE, "ada")) is None for _ in range(4)] == [True, True, True, False]


async def test_a_rollback_undoes_a_restart(limiter: RateLimiter, database: Database, session: WriteSession) -> None:
    await limiter.hit((THREE, "ada"))

    with pytest.raises(RuntimeError, match="afterwards"):
        await fail_after_restart(database, limiter)

    assert await counters(session) == {"three": 1}


async def fail_after_restart(database: Database, limiter: RateLimiter) -> None:
    async with database.begin() as session:
        await limiter.restart(session, (THREE, "ada"))
        raise RuntimeError("afterwards")


async def test_the_same_limit_twice_is_counted_once(limiter: RateLimiter, session: WriteSession) -> None:
    await limiter.hit((THREE, "ada"), (THREE, "ada"))

    assert await counters(session) == {"three": 1}


async def test_a_rollback_undoes_a_count_in_the_same_transaction(
    limiter: RateLimiter, database: Database, session: WriteSession
) -> None:
    async with database.sessions() as work:
        await limiter.hit_within(work, (THREE, "ada"))
        await work.rollback()
    async with database.begin() as work:
        await limiter.hit_within(work, (THREE, "ada"))

    assert await counters(session) == {"three": 1}


async def test_a_disabled_limiter_counts_nothing(database: Database, session: WriteSession) -> None:
    limiter = RateLimiter(database, KEY, enabled=False)

    waits = [await attempt(limiter, (THREE, "ada")) for _ in range(10)]
    await limiter.hit_within(session, (THREE, "ada"))
    await limiter.forgive((THREE, "ada"))

    assert set(waits) == {None}
    assert await stored(session) == []


async def test_no_personal_data_is_stored(limiter: RateLimiter, session: WriteSession) -> None:
    await limiter.hit((THREE, "ada@example.com\x00192.0.2.7"), (FIVE, "192.0.2.7"))
    await RateLimiter(limiter._database, b"l" * 32, enabled=True).hit((FIVE, "192.0.2.7"))

    keys = [row.key for row in await stored(session)]
    assert len(set(keys)) == 3
    assert not any("ada" in key or "example" in key or "192" in key.partition(":")[0] for key in keys)
    assert all(len(key.partition(":")[2]) == 64 for key in keys)


async def test_expired_windows_are_deleted(limiter: RateLimiter, session: WriteSession) -> None:
    await limiter.hit((THREE, "ada"), (FIVE, "ada"))
    await shift(session, "16 min")

    await rate_limits.purge(session, None, batch=1000)

    assert await counters(session) == {"five": 1}


async def test_an_exhausted_limit_refuses_without_waiting_for_a_lock(clone_url: str) -> None:
    database = Database(make_settings(clone_url, database={"lock_timeout": "100ms"}).database)
    limiter = RateLimiter(database, KEY, enabled=True)
    for _ in range(3):
        await limiter.hit((THREE, "ada"))
    async with database.sessions() as other:
        await other.execute(text("SELECT FROM rate_limits FOR UPDATE"))

        wait = await attempt(limiter, (THREE, "ada"), (FIVE, "ada"))

    await database.dispose()
    assert wait is not None


async def test_the_table_is_unlogged(session: WriteSession) -> None:
    kind = await session.scalar(text("SELECT relpersistence::text FROM pg_class WHERE relname = 'rate_limits'"))

    assert kind == "u"


async def test_a_burst_over_many_connections_is_counted_exactly(clone_url: str) -> None:
    databases = [Database(make_settings(clone_url, database=PATIENT).database) for _ in range(2)]
    limiters = [RateLimiter(database, KEY, enabled=True) for database in databases]
    wide = Limit("wide", 1000, timedelta(hours=1))

    # The callers pass the keys in different orders. The statement locks them in one order, so nothing deadlocks.
    waits = await asyncio.gather(
        *(
            attempt(limiters[number % 2], *[(THREE, "ada"), (wide, "eve")][:: 1 if number % 3 else -1])
            for number in range(100)
        )
    )

    async with databases[0].sessions() as session:
        assert await counters(session) == {"three": 3, "wide": 3}
    for database in databases:
        await database.dispose()
    assert waits.count(None) == 3
