"""The queue among what a process shows of itself."""

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager, nullcontext

from app.core.database import Database
from app.core.exposition import Exposition
from app.core.metrics import Instrument, Reading
from app.jobs import service


def exposing(
    exposed: Exposition | None, database: Database, instruments: Iterable[Instrument] = ()
) -> AbstractAsyncContextManager[None]:
    """Answer scrapes meanwhile, with what the queue shows as well."""

    async def look_at_queue() -> Iterable[Reading]:
        async with database.read_sessions() as session:
            return await service.readings(session)

    return exposed.serving([database.readings, *instruments], [look_at_queue]) if exposed else nullcontext()
