"""The worker process, which runs the jobs of all features."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from app import features
from app.core.config import KeySettings, Settings
from app.core.db import tls
from app.core.db.database import Database
from app.core.observability import event_loop
from app.core.observability.exposition import Exposition, exposition
from app.core.observability.logs import configure
from app.core.observability.tracing import UNTRACED, Tracing, tracing_from_environment
from app.core.resources import Foundation, Resources, opened
from app.core.security.keys import KeyRing, load_key_ring, reloading
from app.core.signals import logging_hangups
from app.jobs.metrics import serving_metrics
from app.jobs.queue import AnyJob, Periodic, Work
from app.jobs.worker import JobWorker
from app.mail.mailer import make_mailer
from app.mail.settings import MailSettings
from app.migrations import revisions
from app.systemd import ServiceManager

_RUNNING = "running jobs"


def _listed(name: str) -> Iterator[Any]:
    for feature, module in features.parts("jobs"):
        if not hasattr(module, "JOBS") and not hasattr(module, "PERIODIC"):
            message = f"app.{feature}.jobs has neither JOBS nor PERIODIC: list its jobs in one of them"
            raise TypeError(message)
        yield from getattr(module, name, ())


# A job fails if no feature lists it.
JOBS: tuple[AnyJob, ...] = tuple(_listed("JOBS"))
PERIODIC: tuple[Periodic, ...] = tuple(_listed("PERIODIC"))


@asynccontextmanager
async def in_process(
    settings: Settings, database: Database, keys: KeyRing, tracing: Tracing | None = None
) -> AsyncIterator[None]:
    """Run the jobs inside a web process while the context lasts."""
    async with _opened(Foundation(settings, database, keys), tracing) as (worker, _), worker.running():
        yield


def work(settings: Settings) -> None:
    manager = ServiceManager.from_environment()
    configure(settings.log, readable=settings.environment == "local")
    keys = load_key_ring(settings.of(KeySettings))
    revisions.head()
    tls.check(settings.database)
    with exposition(settings.telemetry) as exposed:
        asyncio.run(_work(settings, keys, exposed, tracing_from_environment(), manager))


async def _work(
    settings: Settings, keys: KeyRing, exposed: Exposition | None, tracing: Tracing | None, manager: ServiceManager
) -> None:
    database = Database(settings.database, slow_query=settings.log.slow_query)
    if tracing:
        tracing.trace_statements(database)
    try:
        async with _opened(Foundation(settings, database, keys), tracing) as (worker, resources):
            for stop_signal in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(stop_signal, _stop, worker, manager)
            with (
                logging_hangups(partial(manager.confirm_reload, _RUNNING)),
                event_loop.watching(settings.slow_callback),
            ):
                async with reloading(keys), serving_metrics(exposed, database, resources.instruments):
                    # Without a database, the worker waits for one. That is no failure of the service.
                    manager.ready(_RUNNING)
                    await worker.run()
    finally:
        await database.dispose()
        if tracing:
            tracing.shutdown()


def _stop(worker: JobWorker, manager: ServiceManager) -> None:
    manager.stopping("finishing the running jobs")
    worker.stop()


@asynccontextmanager
async def _opened(core: Foundation, tracing: Tracing | None) -> AsyncIterator[tuple[JobWorker, Resources]]:
    async with opened(features.openers("open_for_worker"), core) as resources:
        mailer = make_mailer(core.settings.of(MailSettings))
        work = Work(core.database, mailer, core.keys, core.settings, state=resources.state)
        yield JobWorker(work, JOBS, PERIODIC, tracer=tracing.tracer if tracing else UNTRACED), resources
