"""The jobs of register, resend and forgot: run twice, run late, and run during a failure."""

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import text

from app.account import jobs
from app.auth.settings import AuthSettings
from app.core import product
from app.core.config import Settings
from app.core.db.database import Database, WriteSession
from app.core.security.keys import load_key_ring
from app.jobs import queue
from app.jobs.queue import AnyJob, Work
from app.mail.mailer import Mailer
from app.mail.transports import MemoryTransport
from app.users.models import User
from tests.aftermath import events, snapshot
from tests.auth.post import Post, end_windows
from tests.conftest import make_settings
from tests.factories import make_user

HASH = "$bcrypt-sha256$v=2,t=2b,r=4$" + "." * 22 + "$" + "." * 31


@pytest.fixture
def work(database: Database, settings: Settings) -> Work:
    """What a running job is given."""
    mailer = Mailer(MemoryTransport(), from_address="app@example.com", from_name=product.NAME)
    return Work(database, mailer, load_key_ring(settings.of(AuthSettings)), settings, request_id="r-12345678", key="k")


@pytest.fixture
async def ada(session: WriteSession) -> User:
    """An account that waits for its verification."""
    account = await make_user(session, email="ada@example.com", email_verified_at=None)
    await session.commit()
    return account


async def enqueue_registration(session: WriteSession) -> None:
    await queue.enqueue(session, jobs.register, "ada@example.com", None, HASH)
    await session.commit()


async def change(session: WriteSession, statement: str) -> None:
    await session.execute(text(statement))
    await session.commit()


async def hashes(session: WriteSession) -> list[str]:
    """Give the hashes that accounts have."""
    return list((await session.scalars(text("SELECT hashed_password FROM users"))).all())


async def queued_hashes(session: WriteSession) -> list[str | None]:
    """Give what registrations still have of a hash."""
    statement = (
        "SELECT args->'arguments'->>'hashed_password' FROM procrastinate_jobs WHERE task_name = 'account.jobs:register'"
    )
    return list((await session.scalars(text(statement))).all())


async def test_a_registration_is_complete_although_its_worker_dies_after_the_commit(
    session: WriteSession, post: Post
) -> None:
    await enqueue_registration(session)
    first = await post.subjects()
    await end_windows(session)

    # As the orphan of a dead worker is put back.
    await change(session, "UPDATE procrastinate_jobs SET status = 'todo' WHERE task_name = 'account.jobs:register'")

    assert await post.subjects() == []
    assert first == [("ada@example.com", f"Verify your address for {product.NAME}")]
    assert await hashes(session) == [HASH]


@pytest.mark.usefixtures("ada")
async def test_a_registration_of_a_known_address_removes_the_hash_from_the_job(
    session: WriteSession, post: Post
) -> None:
    await enqueue_registration(session)

    assert [subject for _, subject in await post.subjects()] == [f"You already have an account at {product.NAME}"]
    assert await queued_hashes(session) == [None]
    assert await hashes(session) == [None]


async def test_a_registration_that_fails_keeps_the_hash_for_the_next_attempt(
    session: WriteSession, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    await enqueue_registration(session)
    with monkeypatch.context() as broken:
        broken.setattr("app.account.jobs.queue.enqueue", fail)
        with pytest.raises(ConnectionError):
            await post.collect()
    assert await queued_hashes(session) == [HASH]

    await change(session, "UPDATE procrastinate_jobs SET status = 'todo'")
    await post.collect()

    assert await queued_hashes(session) == [None]
    assert await hashes(session) == [HASH]


async def test_concurrent_runs_of_one_registration_create_one_account_and_leave_no_hash(
    clone_url: str, work: Work
) -> None:
    database = Database(make_settings(clone_url).database)
    async with database.begin() as session:
        await queue.enqueue(session, jobs.register, "ada@example.com", None, HASH)
        job_id = await session.scalar(text("SELECT id FROM procrastinate_jobs"))
    given = replace(work, database=database, job_id=job_id)

    await asyncio.gather(*(jobs.register(given, "ada@example.com", None, HASH) for _ in range(8)))

    async with database.sessions() as session:
        stored = await session.scalar(text("SELECT args::text FROM procrastinate_jobs WHERE id = :id"), {"id": job_id})
        mails = await session.scalar(text("SELECT count(*) FROM procrastinate_jobs WHERE task_name LIKE 'users.jobs%'"))
        made = await hashes(session)
    await database.dispose()
    assert stored is not None
    assert "bcrypt" not in stored
    assert mails == 1
    assert made == [HASH]


@pytest.mark.parametrize("job", [jobs.resend_verification, jobs.forgot_password])
async def test_a_row_with_the_former_name_of_the_job_runs(
    session: WriteSession, post: Post, ada: User, job: AnyJob
) -> None:
    await queue.enqueue(session, job, ada.email)
    await change(session, "UPDATE procrastinate_jobs SET task_name = replace(task_name, 'account.', 'auth.')")

    assert [mail.to for mail in await post.collect()] == [ada.email]


async def test_a_registration_with_the_former_name_of_the_job_runs(session: WriteSession, post: Post) -> None:
    await enqueue_registration(session)
    await change(session, "UPDATE procrastinate_jobs SET task_name = 'auth.jobs:register'")

    assert [mail.to for mail in await post.collect()] == ["ada@example.com"]
    assert await hashes(session) == [HASH]


@pytest.mark.parametrize("job", [jobs.resend_verification, jobs.forgot_password])
async def test_a_failed_job_does_not_count_against_the_mail_limit(
    session: WriteSession, work: Work, post: Post, ada: User, job: AnyJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("app.account.jobs.queue.enqueue", fail)
        with pytest.raises(ConnectionError):
            await job(work, ada.email)
    assert (await snapshot(session))["account_links"] == []

    await job(work, ada.email)

    assert [mail.to for mail in await post.collect()] == [ada.email]


async def fail(*_arguments: object) -> None:
    raise ConnectionError


@pytest.mark.parametrize("job", [jobs.resend_verification, jobs.forgot_password])
async def test_a_job_for_a_deleted_or_disabled_account_mails_nothing(
    session: WriteSession, work: Work, post: Post, ada: User, job: AnyJob
) -> None:
    await session.execute(text("UPDATE users SET is_active = false"))
    await session.commit()
    await job(work, ada.email)
    await end_windows(session)
    await session.execute(text("DELETE FROM users"))
    await session.commit()
    await job(work, ada.email)

    assert await post.collect() == []
    assert await events(session, "auth.%") == []


JOBS = [jobs.forgot_password, jobs.resend_verification]


@pytest.mark.parametrize("order", [JOBS, JOBS[::-1]])
async def test_all_mails_to_one_account_count_against_one_limit(
    work: Work, post: Post, ada: User, order: list[AnyJob]
) -> None:
    for job in order:
        await job(work, ada.email)

    assert len(await post.collect()) == 1


async def test_a_link_that_was_replaced_before_its_mail_is_not_mailed(
    session: WriteSession, work: Work, post: Post, ada: User
) -> None:
    await jobs.resend_verification(work, ada.email)
    await end_windows(session)
    await jobs.resend_verification(work, ada.email)

    assert len(await post.collect()) == 1


async def test_without_limits_every_request_sends_a_mail(
    database: Database, settings: Settings, session: WriteSession, work: Work, post: Post, ada: User
) -> None:
    open_settings = settings.model_copy(
        update={"rate_limit": settings.rate_limit.model_copy(update={"enabled": False})}
    )
    generous = Work(database, work.mailer, work.keys, open_settings)
    mails = 0
    for _ in range(3):
        await jobs.forgot_password(generous, ada.email)
        mails += len(await post.collect())

    assert mails == 3
    assert await session.scalar(text("SELECT count(*) FROM rate_limits")) == 0
