"""Counting what may be tried only so often, in PostgreSQL alone: exact over any number of workers.

An attempt is counted before it is made, in a transaction of its own, so that a burst cannot slip through between looking
and counting, and a failing request cannot take its count back. One that is refused counts against none of its limits:
who is stopped at one of them cannot use up the others. Fixed windows: the first attempt opens one.
"""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil

from sqlalchemy import CTE, Index, Update, func, select, text, update
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import crud
from app.core.db.database import Base, Database, WriteSession
from app.core.errors import RateLimitedError
from app.core.observability.metrics import Counter

# What is exhausted already is seen without a lock and without a write: a flood of refused attempts holds up nobody. Whoever
# is not told so by the first look counts, waiting for those who came before. Sorted, so that all lock in one order.
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
    "rate_limit_attempts", "What was counted against a limit, and what was refused by it.", limit=(), outcome=()
)


class RateLimit(Base):
    """One window of one counter. UNLOGGED: after a crash of the database the counting starts anew."""

    __tablename__ = "rate_limits"
    __table_args__ = (Index(None, "expires_at"), {"prefixes": ["UNLOGGED"]})

    key: Mapped[str] = mapped_column(primary_key=True)
    hits: Mapped[int]
    expires_at: Mapped[datetime]


@dataclass(frozen=True, slots=True)
class Limit:
    """How often within which time; `name` tells counters of the same subject apart.

    A limit that does not refuse leaves the decision about the surplus to the caller of `hit`.
    """

    name: str
    amount: int
    period: timedelta
    refuses: bool = True


type Counted = tuple[Limit, str]


class RateLimiter:
    """Counts by subject: an account, an address, or both. Subjects are stored as keyed digests, not as they are."""

    def __init__(self, database: Database, key: bytes, *, enabled: bool) -> None:
        self._database = database
        self._key = key
        self._enabled = enabled

    async def hit(self, *counted: Counted) -> int | None:
        """Count an attempt against each limit; raise `RateLimitedError`, and count nothing, when it would exceed one.

        Returns the seconds to wait when it exceeds a limit that does not refuse. That limit has not counted the attempt.
        """
        if not self._enabled:
            return None
        # Raising rolls the counts back.
        return await self._database.unit(lambda session: self.hit_within(session, *counted))

    async def hit_within(self, session: WriteSession, *counted: Counted) -> int | None:
        """Count in the caller's transaction, for work that is tried again as a whole when that fails."""
        if not self._enabled:
            return None
        limits = {self._digest(limit, subject): limit for limit, subject in counted}
        parameters = {
            "keys": list(limits),
            "amounts": [limit.amount for limit in limits.values()],
            "periods": [limit.period for limit in limits.values()],
            "refuses": [limit.refuses for limit in limits.values()],
        }
        rows = (await session.execute(_COUNT, parameters)).all()
        exceeded = {limits[key]: float(remaining) for key, hits, remaining in rows if hits > limits[key].amount}
        is_refused = any(limit.refuses for limit in exceeded)
        for limit, _ in counted:
            if limit in exceeded or not is_refused:
                _ATTEMPTS.count(limit.name, "refused" if limit in exceeded else "counted")
        waits = [wait for limit, wait in exceeded.items() if limit.refuses or not is_refused]
        if not waits:
            return None
        retry_after = max(1, ceil(max(waits)))
        if is_refused:
            raise RateLimitedError(retry_after=retry_after)
        return retry_after

    async def forgive(self, *counted: Counted) -> None:
        """Take an attempt back that turned out to be rightful."""
        if self._enabled:
            async with self._database.begin() as session:
                await session.execute(self._forgiving(counted))

    def forgiveness(self, *counted: Counted) -> CTE:
        """Give what takes an attempt back along with a statement of the caller's: then it costs no round trip."""
        return self._forgiving(counted).cte("forgiven")

    def _forgiving(self, counted: Sequence[Counted]) -> Update:
        # Turned off, nothing has been counted, and nothing is found.
        keys = [self._digest(limit, subject) for limit, subject in counted]
        # Locked by ascending key, like the counts: a login that succeeds and one that begins must not wait for each other.
        locked = select(RateLimit.key).where(RateLimit.key.in_(keys), RateLimit.hits > 0).order_by(RateLimit.key)
        return (
            update(RateLimit)
            .where(RateLimit.key.in_(locked.with_for_update(key_share=True)))
            .values(hits=RateLimit.hits - 1)
        )

    def _digest(self, limit: Limit, subject: str) -> str:
        return f"{limit.name}:{hmac.digest(self._key, f'{limit.name}\0{subject}'.encode(), 'sha256').hex()}"


async def purge(session: WriteSession, after: datetime | None, *, batch: int) -> datetime | None:
    """Delete the next windows that are over; return where to go on."""
    return await crud.remove_expired(session, RateLimit.key, RateLimit.expires_at, func.now(), after=after, limit=batch)
