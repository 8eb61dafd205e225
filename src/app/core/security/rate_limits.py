"""Rate limits with counters in PostgreSQL, which are exact for any number of worker processes.

An attempt is counted before it is made, in a separate transaction. So concurrent attempts cannot exceed the limit, and the
rollback of a failed request does not undo the count. A refused attempt counts against none of its limits, so a client that
reached one limit cannot exhaust the others. The windows are fixed: the first attempt starts one.
"""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from math import ceil
from typing import Any

from sqlalchemy import CTE, Index, Update, select, text, update
from sqlalchemy.orm import Mapped, mapped_column

from app.core.config import Settings
from app.core.db import crud
from app.core.db.database import Base, Database, WriteSession
from app.core.errors import RateLimitedError
from app.core.observability.metrics import Counter
from app.core.security.keys import KeyRing

# `exhausted` finds counters at their limit without a lock or a write, so many refused attempts block no other transaction.
# `counted` increments the others; it waits for the locks of earlier transactions. The sort gives every transaction one lock order.
_COUNT = text("""
WITH given AS (
    SELECT key, amount, now() + period AS ends, refuses
    FROM unnest(CAST(:keys AS text[]), CAST(:amounts AS bigint[]), CAST(:periods AS interval[]), CAST(:refuses AS boolean[]))
        AS each (key, amount, period, refuses)
), exhausted AS (
    SELECT key, hits + 1 AS hits, expires_at, refuses FROM rate_limits JOIN given USING (key)
    WHERE hits >= amount AND expires_at > now()
), counted AS (
    INSERT INTO rate_limits AS stored (key, hits, expires_at)
    SELECT key, 1, ends FROM given
    WHERE NOT EXISTS (SELECT FROM exhausted WHERE refuses) AND key NOT IN (SELECT key FROM exhausted) ORDER BY key
    ON CONFLICT (key) DO UPDATE SET
        hits = CASE WHEN stored.expires_at <= now() THEN 1 ELSE stored.hits + 1 END,
        expires_at = CASE WHEN stored.expires_at <= now() THEN excluded.expires_at ELSE stored.expires_at END
    RETURNING key, hits, expires_at
)
SELECT key, hits, extract(epoch FROM expires_at - now())
FROM (TABLE counted UNION ALL SELECT key, hits, expires_at FROM exhausted) AS outcome
""")

_ATTEMPTS = Counter(
    "rate_limit_attempts", "Attempts counted against a limit, and attempts refused by it.", limit=(), outcome=()
)


class RateLimit(Base):
    """One window of one counter. The table is UNLOGGED: a crash of the database resets the counters."""

    __tablename__ = "rate_limits"
    __table_args__ = (Index(None, "expires_at"), {"prefixes": ["UNLOGGED"]})

    key: Mapped[str] = mapped_column(primary_key=True)
    hits: Mapped[int]
    expires_at: Mapped[datetime]


@dataclass(frozen=True, slots=True)
class Limit:
    """Maximum number of attempts in a period. `name` distinguishes the counters of one subject.

    If `refuses` is false, the caller of `hit` decides about attempts over the limit.
    """

    name: str
    amount: int
    period: timedelta
    refuses: bool = True


type Counted = tuple[Limit, str]


class RateLimiter:
    """Counts attempts by subject: an account, an address, or both. The database stores only keyed digests of subjects."""

    def __init__(self, database: Database, key: bytes, *, enabled: bool) -> None:
        self._database = database
        self._key = key
        self._enabled = enabled

    async def hit(self, *counted: Counted) -> int | None:
        """Count an attempt against each limit. If it would exceed one, count nothing and raise `RateLimitedError`.

        Returns the seconds to wait if the attempt exceeds a limit that does not refuse. That limit does not count the attempt.
        """
        if not self._enabled:
            return None
        # `RateLimitedError` rolls the counts back.
        return await self._database.unit(lambda session: self.hit_within(session, *counted))

    async def hit_within(self, session: WriteSession, *counted: Counted) -> int | None:
        """Count in the caller's transaction; see `hit`. Its rollback undoes the count, so only for a caller that then retries all of it."""
        if not self._enabled:
            return None
        limits = {self._digest(limit, subject): limit for limit, subject in counted}
        rows = (await session.execute(_COUNT, _parameters(limits))).all()
        waits = {limits[key]: float(remaining) for key, hits, remaining in rows if hits > limits[key].amount}
        is_refused = any(limit.refuses for limit in waits)
        for limit, _ in counted:
            if limit in waits or not is_refused:
                _ATTEMPTS.count(limit.name, "refused" if limit in waits else "counted")
        if not waits:
            return None
        wait = max(wait for limit, wait in waits.items() if limit.refuses or not is_refused)
        retry_after = max(1, ceil(wait))
        if is_refused:
            raise RateLimitedError(retry_after=retry_after)
        return retry_after

    async def forgive(self, *counted: Counted) -> None:
        """Subtract an attempt from its counters, because it succeeded or was not made."""
        if self._enabled:
            async with self._database.begin() as session:
                await session.execute(self._forgive_statement(counted))

    def forgiveness(self, *counted: Counted) -> CTE:
        """Return a CTE that does the same as `forgive` within another statement, which saves a round trip."""
        return self._forgive_statement(counted).cte("forgiven")

    async def restart(self, session: WriteSession, *counted: Counted) -> None:
        """Set counters to zero in the caller's transaction, because the earlier attempts are worth nothing any more."""
        await session.execute(self._update(counted).values(hits=0).execution_options(synchronize_session=False))

    def _forgive_statement(self, counted: Sequence[Counted]) -> Update:
        return self._update(counted).values(hits=RateLimit.hits - 1)

    def _update(self, counted: Sequence[Counted]) -> Update:
        # Also correct if limits are disabled: then there are no counters, and the statement finds no row.
        keys = [self._digest(limit, subject) for limit, subject in counted]
        # Locks by ascending key, like `_COUNT`. Otherwise a login that succeeds and one that begins could deadlock.
        locked = select(RateLimit.key).where(RateLimit.key.in_(keys), RateLimit.hits > 0).order_by(RateLimit.key)
        return update(RateLimit).where(RateLimit.key.in_(locked.with_for_update(key_share=True)))

    def _digest(self, limit: Limit, subject: str) -> str:
        return f"{limit.name}:{hmac.digest(self._key, f'{limit.name}\0{subject}'.encode(), 'sha256').hex()}"


def make_rate_limiter(database: Database, keys: KeyRing, settings: Settings) -> RateLimiter:
    """Return a limiter whose subjects have the same digests in every process."""
    return RateLimiter(database, keys.derive("rate-limit"), enabled=settings.rate_limit.enabled)


def _parameters(limits: Mapping[str, Limit]) -> dict[str, list[Any]]:
    return {
        "keys": list(limits),
        "amounts": [limit.amount for limit in limits.values()],
        "periods": [limit.period for limit in limits.values()],
        "refuses": [limit.refuses for limit in limits.values()],
    }


purge = partial(crud.remove_expired, key=RateLimit.key, expiry=RateLimit.expires_at)
