"""Fixtures for the queue: a database, a mailer that stores its mails, and a worker with short intervals."""

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
from app.jobs.queue import AnyJob, Periodic, Work, name_of
from app.jobs.worker import JobWorker
from app.mail.mailer import Mailer
from app.mail.transports import MemoryTransport
from app.worker import PERIODIC
from tests.conftest import cloned, make_settings
from tests.mail import conftest as smtp

QUICK = {"poll_interval": "50ms", "stalled_after": "2s", "shutdown_grace": "2s"}

type MakeWorker = Callable[..., JobWorker]


def quick_settings(url: str, **jobs: Any) -> Settings:
    return make_settings(url, jobs={**QUICK, **jobs})


def make_work(settings: Settings, database: Database, mailer: Mailer | None = None) -> Work:
    storing = Mailer(MemoryTransport(), from_address="app@example.com", from_name=product.NAME)
    return Work(database, mailer or storing, load_key_ring(settings.of(AuthSettings)), settings)


# The SMTP server of the mail tests, for jobs that send mail.
postbox = smtp.postbox


@pytest.fixture(scope="session")
async def queue_url(template_url: str) -> AsyncIterator[str]:
    """A database for all tests of the queue. Its commits are real, and other processes can read them."""
    async with cloned(template_url) as url:
        yield url


@pytest.fixture
async def clone(queue_url: str) -> AsyncIterator[Database]:
    """The database of the queue tests, with an empty queue."""
    database = Database(quick_settings(queue_url).database)
    async with database.begin() as session:
        await session.execute(
            text("TRUNCATE procrastinate_jobs, procrastinate_workers, job_errors RESTART IDENTITY CASCADE")
        )
    yield database
    await database.dispose()


@pytest.fixture
def make_worker(queue_url: str, clone: Database) -> MakeWorker:
    """Make workers for the given jobs on the test's database."""

    def make(*jobs: AnyJob, periodic: tuple[Periodic, ...] = (), **settings: Any) -> JobWorker:
        return JobWorker(make_work(quick_settings(queue_url, **settings), clone), jobs, periodic)

    return make


class Records(logging.Handler):
    """Collects log records, each with the context variables of its moment."""

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
    """The records that this process logs during the test."""
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
    """Read on a connection outside the transaction of the application."""
    async with database.read_sessions() as session:
        return list((await session.execute(text(statement), values)).all())


SCHEDULED = {name_of(periodic.job) for periodic in PERIODIC}


async def statuses(database: Database) -> list[str]:
    """The statuses of all jobs, oldest first, without the periodic jobs of a worker process."""
    found = await rows(database, "SELECT task_name, status::text FROM procrastinate_jobs ORDER BY id")
    return [row.status for row in found if row.task_name not in SCHEDULED]


async def eventually(ask: Callable[[], Awaitable[bool]], *, within: float = 30) -> None:
    """Wait until a condition holds that another process or connection brings about."""
    async with asyncio.timeout(within):
        while not await ask():  # noqa: ASYNC110  # Nothing here could set an event.
            await asyncio.sleep(0.02)
