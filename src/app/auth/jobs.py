"""Deletes rows of login sessions, tickets, revocations, limits and links that are no longer needed, and reseals secrets."""

from datetime import timedelta
from functools import partial

from app import features
from app.auth.access import crud as access_crud
from app.auth.sessions import crud
from app.core.security import rate_limits, resealing
from app.core.security.sealing import Sealer
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


async def reseal(work: Work) -> None:
    """Move the sealed values of retiring seal keys to the active key, so that the old ones can be removed."""
    if not work.keys.retiring_seal_keys:
        return
    step = partial(resealing.reseal, sealer=Sealer(work.keys), batch=BATCH)
    steps = {f"reseal_{sealed.name}": partial(step, sealed=sealed) for sealed in features.sealed_columns()}
    await housekeeping.purge_all(work.database, steps, budget=_BUDGET)


PERIODIC = (Periodic("*/10 * * * *", purge), Periodic("*/10 * * * *", reseal))
