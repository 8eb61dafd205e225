"""Deletes rows of login sessions, tickets, revocations, limits and links that are no longer needed."""

from datetime import timedelta
from functools import partial

from app.auth.access import crud as access_crud
from app.auth.sessions import crud
from app.core.security import rate_limits
from app.jobs import housekeeping
from app.jobs.housekeeping import BATCH
from app.jobs.queue import Periodic, Work
from app.users import links

_KEEP_ENDED_SESSIONS = timedelta(days=30)
# For each of the six purges. Together they stay below the five minutes that a job may take.
_BUDGET = timedelta(seconds=45)


async def purge(work: Work) -> None:
    await housekeeping.purge_all(
        work.database,
        {
            "expired_sessions": partial(crud.purge_expired_sessions, keep=_KEEP_ENDED_SESSIONS, batch=BATCH),
            "revoked_sessions": partial(crud.purge_revoked_sessions, keep=_KEEP_ENDED_SESSIONS, batch=BATCH),
            "revocations": partial(access_crud.purge_revocations, batch=BATCH),
            "socket_tickets": partial(access_crud.purge_tickets, batch=BATCH),
            "rate_limits": partial(rate_limits.purge, batch=BATCH),
            "account_links": partial(links.purge, batch=BATCH),
        },
        budget=_BUDGET,
    )


PERIODIC = (Periodic("*/10 * * * *", purge),)
