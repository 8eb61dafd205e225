"""The jobs of register and resend: run twice, run late, and run during a failure."""

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import text

from app.account.jobs import forgot_password
from app.core import product
from app.core.db.database import Database, WriteSession
from app.jobs import queue
from app.jobs.queue import AnyJob, Work
from app.registration import jobs
from app.users.models import User
from tests.account.test_account_jobs import change, fail
from tests.aftermath import events, snapshot
from tests.auth.post import Post, end_windows
from tests.conftest import make_settings
from tests.factories import make_user

HASH = "$bcrypt-sha256$v=2,t=2b,r=4$" + "." * 22 + "$" + "." * 31


@pytest.fixture
async def ada(session: WriteSession) -> User:
    """An account that waits for its verification."""
    account = await make_user(session, email="ada@example.com", email_verified_at=None)
    await session.commit()
    return account


async def enqueue_registration(session: WriteSession) -> None:
    await queue.enqueue(session, jobs.register, "ada@example.com", None, HASH)
    await session.commit()


async def hashes(session: WriteSession) -> list[str]:
    """Give the hashes that accounts have."""
    return list((await session.scalars(text("SELECT hashed_password FROM users"))).all())


async def queued_hashes(session: WriteSession) -> list[str | None]:
    """Give what registrations still have of a hash."""
    statement = "SELECT args->'arguments'->>'hashed_password' FROM procrastinate_jobs WHERE task_name = 'registration.jobs:register'"
    return list((await session.scalars(text(statement))).all())


async def test_a_registration_is_complete_although_its_worker_dies_after_the_commit(
    session: WriteSession, post: Post
) -> None:
    await enqueue_registration(session)
    first = await post.subjects()
    await end_windows(session)

    # As the orphan of a dead worker is put back.
    await change(
        session, "UPDATE procrastinate_jobs SET status = 'todo' WHERE task_name = 'registration.jobs:register'"
    )

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
        broken.setattr("app.jobs.queue.enqueue", fail)
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


@pytest.mark.parametrize("name", ["account.jobs:register", "auth.jobs:register"])
async def test_a_registration_with_a_former_name_of_the_job_runs(session: WriteSession, post: Post, name: str) -> None:
    await enqueue_registration(session)
    await change(session, f"UPDATE procrastinate_jobs SET task_name = '{name}'")  # noqa: S608  # A name from above.

    assert [mail.to for mail in await post.collect()] == ["ada@example.com"]
    assert await hashes(session) == [HASH]


@pytest.mark.parametrize("feature", ["account", "auth"])
async def test_a_request_for_a_link_with_a_former_name_of_the_job_runs(
    session: WriteSession, post: Post, ada: User, feature: str
) -> None:
    await queue.enqueue(session, jobs.resend_verification, ada.email)
    await change(session, f"UPDATE procrastinate_jobs SET task_name = '{feature}.jobs:resend_verification'")  # noqa: S608  # A name from above.

    assert [mail.to for mail in await post.collect()] == [ada.email]


async def test_a_failed_job_does_not_count_against_the_mail_limit(
    session: WriteSession, work: Work, post: Post, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("app.jobs.queue.enqueue", fail)
        with pytest.raises(ConnectionError):
            await jobs.resend_verification(work, ada.email)
    assert (await snapshot(session))["account_links"] == []

    await jobs.resend_verification(work, ada.email)

    assert [mail.to for mail in await post.collect()] == [ada.email]


async def test_a_job_for_a_deleted_or_disabled_account_mails_nothing(
    session: WriteSession, work: Work, post: Post, ada: User
) -> None:
    await change(session, "UPDATE users SET is_active = false")
    await jobs.resend_verification(work, ada.email)
    await end_windows(session)
    await change(session, "DELETE FROM users")
    await jobs.resend_verification(work, ada.email)

    assert await post.collect() == []
    assert await events(session, "auth.%") == []


JOBS = [forgot_password, jobs.resend_verification]


@pytest.mark.parametrize("order", [JOBS, JOBS[::-1]])
async def test_all_mails_to_one_account_count_against_one_limit(
    work: Work, post: Post, ada: User, order: list[AnyJob]
) -> None:
    for job in order:
        await job(work, ada.email)

    assert len(await post.collect()) == 1
