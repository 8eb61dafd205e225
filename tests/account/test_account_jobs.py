"""The job of forgot: run under its former name, run late, and run during a failure."""

import pytest
from sqlalchemy import text

from app.account import jobs
from app.core.config import Settings
from app.core.db.database import Database, WriteSession
from app.jobs import queue
from app.jobs.queue import Work
from app.users.models import User
from tests.aftermath import events, snapshot
from tests.auth.post import Post, end_windows
from tests.factories import make_user


@pytest.fixture
async def ada(session: WriteSession) -> User:
    """An account without a password."""
    account = await make_user(session, email="ada@example.com", email_verified_at=None)
    await session.commit()
    return account


async def change(session: WriteSession, statement: str) -> None:
    await session.execute(text(statement))
    await session.commit()


async def test_a_row_with_the_former_name_of_the_job_runs(session: WriteSession, post: Post, ada: User) -> None:
    await queue.enqueue(session, jobs.forgot_password, ada.email)
    await change(session, "UPDATE procrastinate_jobs SET task_name = replace(task_name, 'account.', 'auth.')")

    assert [mail.to for mail in await post.collect()] == [ada.email]


async def test_a_failed_job_does_not_count_against_the_mail_limit(
    session: WriteSession, work: Work, post: Post, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("app.jobs.queue.enqueue", fail)
        with pytest.raises(ConnectionError):
            await jobs.forgot_password(work, ada.email)
    assert (await snapshot(session))["account_links"] == []

    await jobs.forgot_password(work, ada.email)

    assert [mail.to for mail in await post.collect()] == [ada.email]


async def fail(*_arguments: object) -> None:
    raise ConnectionError


async def test_a_job_for_a_deleted_or_disabled_account_mails_nothing(
    session: WriteSession, work: Work, post: Post, ada: User
) -> None:
    await session.execute(text("UPDATE users SET is_active = false"))
    await session.commit()
    await jobs.forgot_password(work, ada.email)
    await end_windows(session)
    await session.execute(text("DELETE FROM users"))
    await session.commit()
    await jobs.forgot_password(work, ada.email)

    assert await post.collect() == []
    assert await events(session, "auth.%") == []


async def test_a_link_that_was_replaced_before_its_mail_is_not_mailed(
    session: WriteSession, work: Work, post: Post, ada: User
) -> None:
    await jobs.forgot_password(work, ada.email)
    await end_windows(session)
    await jobs.forgot_password(work, ada.email)

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
