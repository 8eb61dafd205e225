"""Deletes old audit events."""

from datetime import timedelta
from functools import partial

from app.audit import crud
from app.audit.settings import AuditSettings
from app.jobs import housekeeping
from app.jobs.housekeeping import BATCH
from app.jobs.queue import Periodic, Work

# The job runs once a day. The timeout of a job is five minutes.
_BUDGET = timedelta(minutes=4)


async def purge(work: Work) -> None:
    """Delete events older than `APP_AUDIT__KEEP`, in short transactions."""
    step = partial(crud.purge, age=work.settings.of(AuditSettings).keep, batch=BATCH)
    await housekeeping.purge_all(work.database, {"audit_events": step}, budget=_BUDGET)


PERIODIC = (Periodic("17 3 * * *", purge),)
