"""The statements that end login sessions: one, all of an account, or all there are; private to auth's services."""

from collections.abc import Collection, Sequence
from uuid import UUID

from sqlalchemy import ColumnElement, Update, func, insert, select, text, update

from app.auth.models import IS_LIVE, LoginSession, RevokeReason, SessionCutoff
from app.core.db.database import WriteSession

_LOWEST = UUID(int=0)
LAST_CUTOFF = select(SessionCutoff.cutoff).order_by(SessionCutoff.cutoff.desc()).limit(1)
_LAST_SESSION = select(LoginSession.id).order_by(LoginSession.id.desc()).limit(1)
# Ids begin with 48 bits of time (RFC 9562); the rest is chance.
_CHANCE_BITS = 80


async def revoke(session: WriteSession, user_id: UUID, session_id: UUID, reason: RevokeReason) -> bool:
    """End one live session of an account; False when there is none such."""
    ended = await _revoke(
        session, (LoginSession.id == session_id) & (LoginSession.user_id == user_id) & IS_LIVE, reason
    )
    return bool(ended)


async def revoke_all(
    session: WriteSession, user_id: UUID, reason: RevokeReason, *, but: UUID | None = None
) -> Sequence[UUID]:
    """End every session of an account, but for one."""
    condition = (LoginSession.user_id == user_id) & LoginSession.revoked_at.is_(None)
    return await _revoke(session, condition & (LoginSession.id != but) if but else condition, reason)


async def cut_off(session: WriteSession) -> UUID:
    """Draw the line between all sessions there are and all that will be; every process is told when this is committed."""
    # A login holds its account's row from before it looks for the last cut-off until its session is there: this waits for
    # those under way, and those to come wait for this. No clock decides on which side of the line a session is.
    await session.execute(text("LOCK TABLE users IN EXCLUSIVE MODE"))
    found = [await session.scalar(statement) for statement in (_LAST_SESSION, LAST_CUTOFF)]
    last = max((one.int for one in found if one is not None), default=0)
    cutoff = UUID(int=((last >> _CHANCE_BITS) + 1) << _CHANCE_BITS)
    await session.execute(insert(SessionCutoff).values(cutoff=cutoff))
    return cutoff


def beyond(cutoff: UUID | None, session_id: UUID) -> UUID:
    """Give a session's id, with the time of the cut-off where the clock of this machine is behind it."""
    if cutoff is None or session_id > cutoff:
        return session_id
    return UUID(int=cutoff.int | session_id.int & ((1 << _CHANCE_BITS) - 1))


async def revoke_before(
    session: WriteSession, cutoff: UUID, after: UUID | None, *, batch: int
) -> tuple[int, UUID | None, Collection[UUID]]:
    """End those that are live among the next `batch` sessions below a cut-off; return how many, and where to go on.

    A transaction that does not hold the accounts must not wait for a session while it holds others. Live sessions that are
    locked are left, and returned as well.
    """
    below = (LoginSession.id < cutoff) & (LoginSession.id > (after or _LOWEST))
    portion = select(LoginSession.id).where(below).order_by(LoginSession.id).limit(batch).subquery()
    # The last one is found first, dead or alive: a step never reads past `batch` rows in search of live ones.
    last = await session.scalar(select(portion.c.id).order_by(portion.c.id.desc()).limit(1))
    if last is None:
        return 0, None, ()
    step = below & (LoginSession.id <= last)
    live = select(LoginSession.id).where(step & IS_LIVE)
    found = (await session.scalars(live)).all()
    # The limits of the step stand outside of the subquery as well: no plan then reads the table beyond them.
    unlocked = live.with_for_update(key_share=True, skip_locked=True)
    ended = await _revoke(session, step & LoginSession.id.in_(unlocked), "all")
    return len(ended), last, set(found) - set(ended)


async def revoke_locked(session: WriteSession, session_id: UUID) -> bool:
    """End one session that `revoke_before` has left, once its lock is free; False when it has ended meanwhile."""
    return bool(await _revoke(session, (LoginSession.id == session_id) & IS_LIVE, "all"))


async def _revoke(session: WriteSession, condition: ColumnElement[bool], reason: RevokeReason) -> Sequence[UUID]:
    statement = revoking(condition, reason).returning(LoginSession.id).execution_options(synchronize_session=False)
    return (await session.scalars(statement)).all()


def revoking(condition: ColumnElement[bool], reason: RevokeReason) -> Update:
    """Build the statement that ends the sessions of a condition."""
    return (
        update(LoginSession)
        .where(condition, LoginSession.revoked_at.is_(None))
        .values(revoked_at=func.now(), revoke_reason=reason)
    )
