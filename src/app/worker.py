"""The jobs as a list of contents, and the process that runs them."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.audit import jobs as audit
from app.auth import jobs as auth
from app.core.config import Settings
from app.core.database import Database
from app.core.keys import KeyRing, following, load_key_ring
from app.core.telemetry import configure
from app.jobs.queue import AnyJob, Work
from app.jobs.worker import JobWorker, Periodic
from app.mail.mailer import make_mailer
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


@asynccontextmanager
async def in_process(settings: Settings, database: Database, keys: KeyRing) -> AsyncIterator[None]:
    """Run the jobs inside the web process, where the settings say so."""
    if not settings.runs_jobs_in_process:
        yield
        return
    async with _make(settings, database, keys).running():
        yield


def work(settings: Settings) -> None:
    """Run jobs until SIGINT or SIGTERM."""
    configure(settings.log, readable=settings.environment == "local")
    asyncio.run(_work(settings, load_key_ring(settings.auth)))


async def _work(settings: Settings, keys: KeyRing) -> None:
    database = Database(settings.database)
    worker = _make(settings, database, keys)
    for ending in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(ending, worker.stop)
    try:
        async with following(keys):
            await worker.run()
    finally:
        await database.dispose()


def _make(settings: Settings, database: Database, keys: KeyRing) -> JobWorker:
    return JobWorker(Work(database, make_mailer(settings.mail), keys, settings), JOBS, PERIODIC)
