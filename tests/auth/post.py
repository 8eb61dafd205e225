"""Runs the jobs that the application has enqueued, and keeps the mails they send, so that a test can read them."""

import re
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from httpx2 import AsyncClient, Response
from procrastinate.job_context import JobContext
from procrastinate.jobs import Job as StoredJob
from sqlalchemy import text

from app.auth.settings import AuthSettings
from app.core import product
from app.core.config import Settings
from app.core.db.database import Database, WriteSession
from app.core.security.keys import load_key_ring
from app.jobs.queue import Work
from app.jobs.runner import JobRunner
from app.mail.mailer import Mailer
from app.mail.message import Message
from app.mail.transports import MemoryTransport
from app.worker import JOBS
from tests.factories import PASSWORD

AUTH = "/api/v1/auth"
ME = "/api/v1/users/me"
NEW_PASSWORD = "a wholly different sentence"
# On a busy machine, a burst of requests may wait long. These timeouts prevent a 503.
PATIENT = {"pool_wait": "60s", "lock_timeout": "60s", "statement_timeout": "60s"}
_NEXT = text("""
    UPDATE procrastinate_jobs SET status = 'succeeded'
    WHERE id = (SELECT id FROM procrastinate_jobs WHERE status = 'todo' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING id, task_name, args
""")
_LINK = re.compile(r"https?://\S+#token=\S+")
_NO_APP: Any = None


class Post:
    """Runs jobs on request, one after the other, and returns the mails that they send."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._outbox = MemoryTransport()
        mailer = Mailer(self._outbox, from_address="app@example.com", from_name=product.NAME)
        self._runner = JobRunner(Work(database, mailer, load_key_ring(settings.of(AuthSettings)), settings), JOBS)

    async def collect(self) -> list[Message]:
        """Run every job that waits, and those they enqueue; give what has been mailed since the last time."""
        while await self._run_next():
            pass
        mails, self._outbox.sent = self._outbox.sent, []
        return mails

    async def link(self) -> str:
        """Give the secret of the link in the only mail that has one."""
        (found,) = [secret_in(mail) for mail in await self.collect() if _LINK.search(mail.text)]
        return found

    async def subjects(self) -> list[tuple[str, str]]:
        """Give to whom mail went, and about what."""
        return [(mail.to, mail.subject) for mail in await self.collect()]

    async def _run_next(self) -> bool:
        async with self._database.begin() as session:
            row = (await session.execute(_NEXT)).one_or_none()
        if row is None:
            return False
        stored = StoredJob(id=row.id, queue="default", lock=None, queueing_lock=None, task_name=row.task_name)
        context = JobContext(app=_NO_APP, job=stored, start_timestamp=perf_counter(), abort_reason=lambda: None)
        await self._runner.run(context, **row.args)
        return True


def link_in(mail: Message) -> str:
    """Give the address that a mail wants followed."""
    (link,) = set(_LINK.findall(mail.text))
    return str(link)


def secret_in(mail: Message) -> str:
    """Give the secret in the fragment of that address."""
    return urlsplit(link_in(mail)).fragment.removeprefix("token=")


async def log_in(client: AsyncClient, email: str, password: str = PASSWORD, **headers: str) -> Response:
    """Ask for tokens with a password."""
    form = {"grant_type": "password", "username": email, "password": password}
    return await client.post(f"{AUTH}/token", data=form, headers=headers)


async def refresh(client: AsyncClient, pair: dict[str, Any]) -> Response:
    """Ask for the next pair."""
    form = {"grant_type": "refresh_token", "refresh_token": pair["refresh_token"]}
    return await client.post(f"{AUTH}/token", data=form)


def bearer(pair: dict[str, Any]) -> dict[str, str]:
    """Give the header that speaks for a pair's owner."""
    return {"Authorization": f"Bearer {pair['access_token']}"}


async def pair_of(client: AsyncClient, email: str, password: str = PASSWORD) -> dict[str, Any]:
    """Log in, and give the pair."""
    response = await log_in(client, email, password)
    assert response.status_code == 200, response.text
    pair: dict[str, Any] = response.json()
    return pair


async def end_windows(session: WriteSession, like: str = "%") -> None:
    """Let the time of limits be over, by the only clock that counts it."""
    statement = text("UPDATE rate_limits SET expires_at = now() WHERE key LIKE :like")
    await session.execute(statement, {"like": like})
    await session.commit()


def answer(response: Response) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Give all of an answer that must not differ: everything but the request's own id."""
    document = response.json()
    document.pop("request_id", None)
    headers = {name: value for name, value in response.headers.items() if name.lower() != "x-request-id"}
    return response.status_code, document, headers
