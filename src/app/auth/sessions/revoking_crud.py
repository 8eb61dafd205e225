"""The statements that end login sessions: one, all of an account, or all. Private to auth's services."""

from collections.abc import Collection, Sequence
from uuid import UUID

from sqlalchemy import BigInteger, ColumnElement, Update, func, insert, select, text, update

from app.auth.models import IS_LIVE, Acr, LoginSession, RevokeReason, SessionCutoff
from app.core.db.database import WriteSession

LAST_CUTOFF = select(SessionCutoff.cutoff).order_by(SessionCutoff.cutoff.desc()).limit(1)
_LAST_SESSION = select(LoginSession.id).order_by(LoginSession.id.desc()).limit(1)
# A UUIDv7 begins with 48 bits of time (RFC 9562); the other 80 bits are random, except for version and variant.
_RANDOM_BITS = 80
# The time in milliseconds, and a minute more: the clock of another machine may be ahead.
_NOW = select(func.trunc(func.extract("epoch", func.clock_timestamp()) * 1000, type_=BigInteger) + 60_000)


async def revoke(session: WriteSession, user_id: UUID, session_id: UUID, reason: RevokeReason) -> bool:
    """End one live session of an account; return False if there is none with this id."""
    condition = (LoginSession.id == session_id) & (LoginSession.user_id == user_id) & IS_LIVE
    return bool(await _revoke(session, condition, reason))


async def revoke_all(
    session: WriteSession, user_id: UUID, reason: RevokeReason, *, except_id: UUID | None = None, acr: Acr | None = None
) -> Sequence[UUID]:
    """End the sessions of an account: all, all but one, or all of one assurance."""
    condition = LoginSession.user_id == user_id
    if except_id is not None:
        condition &= LoginSession.id != except_id
    if acr is not None:
        condition &= LoginSession.acr == acr
    return await _revoke(session, condition, reason)


async def cut_off(session: WriteSession) -> UUID:
    """Insert a cut-off between all existing sessions and all later ones. Its trigger notifies every process at the commit.

    It is above the present time as well. So it also ends sessions that a restored database does not know: they began after the backup.
    """
    # A login locks its account before it reads the last cut-off, and holds the lock until its session is committed. So this lock
    # waits for running logins, and later logins wait for it. No clock decides on which side of the cut-off a session is.
    await session.execute(text("LOCK TABLE users IN EXCLUSIVE MODE"))
    found = [await session.scalar(statement) for statement in (_LAST_SESSION, LAST_CUTOFF)]
    times = [one.int >> _RANDOM_BITS for one in found if one is not None]
    times.append(int(await session.scalar(_NOW) or 0))
    cutoff = UUID(int=(max(times) + 1) << _RANDOM_BITS)
    await session.execute(insert(SessionCutoff).values(cutoff=cutoff))
    return cutoff


def beyond(cutoff: UUID | None, session_id: UUID) -> UUID:
    """Return an id for a new session that is above the cut-off, even if the clock of this machine is behind."""
    if cutoff is None or session_id > cutoff:
        return session_id
    return UUID(int=cutoff.int | session_id.int & ((1 << _RANDOM_BITS) - 1))


async def revoke_before(
    session: WriteSession, cutoff: UUID, after: UUID | None, *, batch: int
) -> tuple[int, UUID | None, Collection[UUID]]:
    """End the live ones among the next `batch` sessions below a cut-off.

    Returns how many ended, the position to continue from, and the live sessions that were left because another transaction has
    locked them. This transaction does not lock the accounts, so it must not wait for one session while it holds others.
    """
    below = (LoginSession.id < cutoff) & (LoginSession.id > (after or UUID(int=0)))
    portion = select(LoginSession.id).where(below).order_by(LoginSession.id).limit(batch).subquery()
    # The last session of the batch is found first, live or not, so a step never reads more than `batch` rows.
    last = await session.scalar(select(portion.c.id).order_by(portion.c.id.desc()).limit(1))
    if last is None:
        return 0, None, ()
    step = below & (LoginSession.id <= last)
    live = select(LoginSession.id).where(step & IS_LIVE)
    found = (await session.scalars(live)).all()
    # The bounds of the step are repeated outside of the subquery, so that no query plan reads the table beyond them.
    unlocked = live.with_for_update(key_share=True, skip_locked=True)
    ended = await _revoke(session, step & LoginSession.id.in_(unlocked), "all")
    return len(ended), last, set(found) - set(ended)


async def revoke_locked(session: WriteSession, session_id: UUID) -> bool:
    """Wait for the lock of a session that `revoke_before` has left, and end it. Return False if it had already ended."""
    return bool(await _revoke(session, (LoginSession.id == session_id) & IS_LIVE, "all"))


async def _revoke(session: WriteSession, condition: ColumnElement[bool], reason: RevokeReason) -> Sequence[UUID]:
    statement = revoking(condition, reason).returning(LoginSession.id).execution_options(synchronize_session=False)
    return (await session.scalars(statement)).all()


def revoking(condition: ColumnElement[bool], reason: RevokeReason) -> Update:
    return (
        update(LoginSession)
        .where(condition, LoginSession.revoked_at.is_(None))
        .values(revoked_at=func.now(), revoke_reason=reason)
    )
