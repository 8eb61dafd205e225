"""What becomes of old events."""

from app.audit import crud
from app.jobs.queue import Work

# As many as go in one statement without holding anything up.
BATCH = 5000


async def purge(work: Work) -> None:
    """Delete the events that are older than the setting says, a batch a transaction."""
    while True:
        async with work.database.begin() as session:
            purged = await crud.purge(session, work.settings.audit.keep, batch=BATCH)
        if purged < BATCH:
            return
