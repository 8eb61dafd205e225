"""Mails that are sent by jobs, from the commit to the SMTP server."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from app.core.db.database import Database
from app.jobs.queue import Policy, Work, enqueue, policy
from app.jobs.worker import JobWorker
from app.mail.mailer import make_mailer
from tests.jobs.conftest import eventually, make_work, quick_settings, rows, statuses
from tests.mail.conftest import Postbox, mail_settings, send, serving


@policy(Policy(first_delay=timedelta(milliseconds=1)))
async def mail(work: Work, to: str) -> None:
    await send(work.mailer, to=to, message_id=work.key)


@pytest.fixture
def worker(postbox: Postbox, clone: Database, queue_url: str) -> JobWorker:
    return make_mail_worker(clone, queue_url, postbox.port)


def make_mail_worker(clone: Database, queue_url: str, port: int) -> JobWorker:
    work = make_work(quick_settings(queue_url), clone, mailer=make_mailer(mail_settings(port)))
    return JobWorker(work, [mail])


async def enqueue_mail(clone: Database) -> None:
    async with clone.begin() as session:
        await enqueue(session, mail, "ada@example.org")


async def has_statuses(clone: Database, *expected: str) -> bool:
    return await statuses(clone) == list(expected)


async def attempts(clone: Database) -> Any:
    [row] = await rows(clone, "SELECT attempts, status::text FROM procrastinate_jobs")
    return row


async def test_a_committed_mail_is_delivered_once(clone: Database, worker: JobWorker, postbox: Postbox) -> None:
    await enqueue_mail(clone)

    async with worker.running():
        await eventually(lambda: has_statuses(clone, "succeeded"))

    assert postbox.recipients == ["ada@example.org"]


async def test_the_mail_of_a_rolled_back_change_is_never_sent(
    clone: Database, worker: JobWorker, postbox: Postbox
) -> None:
    async with clone.sessions() as session:
        await enqueue(session, mail, "eve@example.org")
        await session.rollback()
    await enqueue_mail(clone)

    async with worker.running():
        await eventually(lambda: has_statuses(clone, "succeeded"))

    assert postbox.recipients == ["ada@example.org"]


async def test_a_mail_that_the_server_refuses_temporarily_is_retried(
    clone: Database, worker: JobWorker, postbox: Postbox
) -> None:
    postbox.replies_to_recipient = ["450 4.2.0 greylisted", "451 4.3.0 try later"]
    await enqueue_mail(clone)

    async with worker.running():
        await eventually(lambda: has_statuses(clone, "succeeded"))

    assert (await attempts(clone)).attempts == 3
    assert len(postbox.mails) == 1


async def test_a_mail_that_the_server_refuses_permanently_is_not_retried(
    clone: Database, worker: JobWorker, postbox: Postbox
) -> None:
    postbox.replies_to_recipient = ["550 5.1.1 no such user"]
    await enqueue_mail(clone)

    async with worker.running():
        await eventually(lambda: has_statuses(clone, "failed"))

    assert (await attempts(clone)).attempts == 1
    [row] = await rows(clone, "SELECT error FROM job_errors")
    assert row.error == "MailRefusedError: the mail server refused the mail: 550 5.1.1 no such user"


async def test_a_mail_is_sent_after_an_outage_of_the_mail_server(clone: Database, queue_url: str) -> None:
    async with serving(Postbox()) as stopped:
        pass
    await enqueue_mail(clone)

    async def was_tried_twice() -> bool:
        return bool((await attempts(clone)).attempts >= 2)

    async with make_mail_worker(clone, queue_url, stopped.port).running():
        await eventually(was_tried_twice)
        async with serving(Postbox(), port=stopped.port) as postbox:
            await eventually(lambda: has_statuses(clone, "succeeded"))

    assert len(postbox.mails) == 1


async def test_a_mail_whose_acceptance_was_lost_is_sent_twice_with_the_same_message_id(
    clone: Database, worker: JobWorker, postbox: Postbox
) -> None:
    def drop_once(connection: Any) -> None:
        postbox.before_reply = lambda _connection: None
        connection.transport.abort()

    postbox.before_reply = drop_once
    await enqueue_mail(clone)

    async with worker.running():
        await eventually(lambda: has_statuses(clone, "succeeded"))

    first, second = postbox.mails
    assert first["Message-ID"] == second["Message-ID"]


async def test_mails_are_sent_concurrently(clone: Database, worker: JobWorker, postbox: Postbox) -> None:
    everyone = asyncio.Barrier(3)
    postbox.before_reply = lambda _connection: everyone.wait()
    for _ in range(3):
        await enqueue_mail(clone)

    async with worker.running():
        await eventually(lambda: has_statuses(clone, *["succeeded"] * 3))

    assert len({mail["Message-ID"] for mail in postbox.mails}) == 3
