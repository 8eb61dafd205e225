"""Ends all login sessions: one row ends the existing ones, but none that starts later."""

from uuid import UUID

from app.audit import service as audit
from app.auth.sessions import revoking_crud
from app.core.db.database import Database

_BATCH = 5000


async def end_every_session(database: Database, *, batch: int = _BATCH) -> int:
    """End every login session and return how many. Logins that start during the call or later are not affected.

    The cut-off is committed first, and all processes apply it at once. Then short transactions end the sessions. If it is
    interrupted, run it again to end the rest.
    """
    async with database.begin() as session:
        cutoff = await revoking_crud.cut_off(session)
        await audit.record(session, audit.SYSTEM, "auth.everybody_logged_out")
    ended, after, locked = 0, None, set[UUID]()
    while True:
        async with database.begin() as session:
            count, after, left = await revoking_crud.revoke_before(session, cutoff, after, batch=batch)
        ended += count
        locked.update(left)
        if after is None:
            break
    for session_id in locked:
        async with database.begin() as session:
            ended += await revoking_crud.revoke_locked(session, session_id)
    return ended
