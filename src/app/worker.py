"""The jobs as a list of contents, and the process that runs them."""

import asyncio
import signal
from contextlib import AbstractAsyncContextManager

from app.audit import jobs as audit
from app.auth import jobs as auth
from app.core.config import Settings
from app.core.db import tls
from app.core.db.database import Database
from app.core.observability.exposition import Exposition, exposition
from app.core.observability.logs import configure
from app.core.observability.tracing import UNTRACED, Tracing, tracing_from_environment
from app.core.security.keys import KeyRing, following, load_key_ring
from app.core.signals import noting_hangups
from app.jobs.exposing import exposing
from app.jobs.queue import AnyJob, Work
from app.jobs.worker import JobWorker, Periodic
from app.mail.mailer import make_mailer
from app.migrations import revisions
from app.users import jobs as users

# A new job is added here; one that is enqueued and not listed fails.
JOBS: tuple[AnyJob, ...] = (
    auth.register,
    auth.resend_verification,
    auth.forgot_password,
    auth.purge,
    users.mail_link,
    users.mail_notice,
    users.mail_user_notice,
)
# When, as minute, hour, day, month, weekday in UTC, and what.
PERIODIC: tuple[Periodic, ...] = (
    Periodic("17 3 * * *", audit.purge),
    Periodic("*/10 * * * *", auth.purge),
)


def in_process(
    settings: Settings, database: Database, keys: KeyRing, tracing: Tracing | None = None
) -> AbstractAsyncContextManager[None]:
    """Run the jobs beside something else."""
    return _make(settings, database, keys, tracing).running()


def work(settings: Settings) -> None:
    """Run jobs until SIGINT or SIGTERM."""
    configure(settings.log, readable=settings.environment == "local")
    keys = load_key_ring(settings.auth)
    revisions.head()
    tls.check(settings.database)
    with exposition(settings.telemetry) as exposed:
        asyncio.run(_work(settings, keys, exposed, tracing_from_environment()))


async def _work(settings: Settings, keys: KeyRing, exposed: Exposition | None, tracing: Tracing | None) -> None:
    database = Database(settings.database, slow_query=settings.log.slow_query)
    worker = _make(settings, database, keys, tracing)
    if tracing:
        tracing.watch(database)
    for ending in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(ending, worker.stop)
    try:
        with noting_hangups():
            async with following(keys), exposing(exposed, database):
                await worker.run()
    finally:
        await database.dispose()
        if tracing:
            tracing.shutdown()


def _make(settings: Settings, database: Database, keys: KeyRing, tracing: Tracing | None) -> JobWorker:
    work = Work(database, make_mailer(settings.mail), keys, settings)
    return JobWorker(work, JOBS, PERIODIC, tracer=tracing.tracer if tracing else UNTRACED)
