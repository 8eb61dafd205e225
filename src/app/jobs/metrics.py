"""Metrics of the connection pools and of the job queue."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial

from app.core.db.database import Database
from app.core.observability.exposition import Exposition
from app.core.observability.metrics import Instrument, Reading, readings_of_pool
from app.jobs import service


def serving_metrics(
    exposed: Exposition | None, database: Database, instruments: Iterable[Instrument] = ()
) -> AbstractAsyncContextManager[None]:
    """Serve the metrics of the process, the pools and the queue while the context lasts."""

    async def queue_readings() -> Iterable[Reading]:
        async with database.read_sessions() as session:
            return await service.readings(session)

    return (
        exposed.serving([partial(pool_readings, database), *instruments], [queue_readings])
        if exposed
        else nullcontext()
    )


def pool_readings(database: Database) -> Iterator[Reading]:
    yield from readings_of_pool("write", database.engine)
    yield from readings_of_pool("read", database.read_engine)
