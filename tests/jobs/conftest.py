"""A database, a mailer that keeps, and a worker whose intervals are those of a test."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, override

import pytest
import structlog
from sqlalchemy import text

from app.auth.settings import AuthSettings
from app.core import product
from app.core.config import Settings
from app.core.db.database import Database
from app.core.security.keys import load_key_ring
from app.jobs.queue import AnyJob, Periodic, Work
from app.jobs.worker import JobWorker
from app.mail.mailer import Mailer
from app.mail.transports import MemoryTransport
from tests.conftest import cloned, make_settings
from tests.mail import conftest as smtp

QUICK = {"poll_interval": "50ms", "stalled_after": "2s", "shutdown_grace": "2s"}

type MakeWorker = Callable[..., JobWorker]


def quick_settings(url: str, **jobs: Any) -> Settings:
    return make_settings(url, jobs={**QUICK, **jobs})


def make_work(settings: Settings, database: Database, mailer: Mailer | None = None) -> Work:
    keeping = Mailer(MemoryTransport(), from_address="app@example.com", from_name=product.NAME)
    return Work(database, mailer or keeping, load_key_ring(settings.of(AuthSettings)), settings)


# The server of the mail tests, for mails that are jobs.
postbox = smtp.postbox


@pytest.fixture(scope="session")
async def queue_url(template_url: str) -> AsyncIterator[str]:
    """A database for all tests of the queue: commits in it are real, and other processes may look."""
    async with cloned(template_url) as url:
        yield url


@pytest.fixture
async def clone(queue_url: str) -> AsyncIterator[Database]:
    """That database with an empty queue."""
    database = Database(quick_settings(queue_url).database)
    async with database.begin() as session:
        await session.execute(
            text("TRUNCATE procrastinate_jobs, procrastinate_workers, job_errors RESTART IDENTITY CASCADE")
        )
    yield database
    await database.dispose()


@pytest.fixture
def make_worker(queue_url: str, clone: Database) -> MakeWorker:
    """Make a worker for these jobs on the test's database."""

    def make(*jobs: AnyJob, periodic: tuple[Periodic, ...] = (), **settings: Any) -> JobWorker:
        return JobWorker(make_work(quick_settings(queue_url, **settings), clone), jobs, periodic)

    return make


class Records(logging.Handler):
    """What was logged, with what the context said."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    @override
    def emit(self, record: logging.LogRecord) -> None:
        record.__dict__["context"] = structlog.contextvars.get_contextvars()
        self.records.append(record)

    def about(self, words: str) -> list[logging.LogRecord]:
        return [record for record in self.records if words in record.getMessage()]


@pytest.fixture
def logged() -> Iterator[Records]:
    """Everything this process logs, as it is written."""
    handler, root = Records(), logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    logging.getLogger("procrastinate").setLevel(logging.WARNING)
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


async def rows(database: Database, statement: str, **values: object) -> list[Any]:
    """Read through a connection that is not the application's transaction."""
    async with database.read_sessions() as session:
        return list((await session.execute(text(statement), values)).all())


async def statuses(database: Database) -> list[str]:
    """The statuses of all jobs but those that the clock of a worker's process brings, oldest first."""
    statement = "SELECT status::text FROM procrastinate_jobs WHERE task_name <> ALL ('{auth.jobs:purge,audit.jobs:purge}') ORDER BY id"
    return [row.status for row in await rows(database, statement)]


async def eventually(ask: Callable[[], Awaitable[bool]], *, within: float = 30) -> None:
    """Wait for what another process or connection does; only the database tells."""
    async with asyncio.timeout(within):
        while not await ask():  # noqa: ASYNC110  # Nothing here could set an event.
            await asyncio.sleep(0.02)
