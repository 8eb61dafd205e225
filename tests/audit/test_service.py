from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.audit import jobs, service
from app.audit.models import AuditEvent
from app.audit.service import SYSTEM, Actor
from app.audit.settings import AuditSettings
from app.core.config import Settings
from app.core.db.database import Database, WriteSession
from app.core.db.failures import sqlstate
from app.core.security.keys import parse_key_ring
from app.jobs.queue import Work
from app.mail.mailer import make_mailer
from app.mail.settings import MailSettings
from app.worker import PERIODIC
from tests.aftermath import events
from tests.conftest import KEY_SET, make_settings

ADA = UUID("0192f0c1-a2b3-7c4d-8e5f-000000000001")


def make_work(database: Database, settings: Settings) -> Work:
    return Work(database, make_mailer(settings.of(MailSettings)), parse_key_ring(KEY_SET, source="the run"), settings)


async def test_an_event_contains_all_data_of_the_actor(session: WriteSession) -> None:
    actor = Actor(ADA, uuid4(), ip_network("2001:db8:1::/48"), "test-request-0004")

    await service.record(session, actor, "notes.archived", subject_id=ADA, count=3, forced=True, reason=None)

    (row,) = await events(session, "notes.archived")
    assert (row.actor_id, row.session_id, row.subject_id) == (ADA, actor.session_id, ADA)
    assert (str(row.ip_prefix), row.request_id) == ("2001:db8:1::/48", "test-request-0004")
    assert row.detail == {"count": 3, "forced": True, "reason": None}


async def test_an_event_of_the_system_has_no_actor(session: WriteSession) -> None:
    await service.record(session, SYSTEM, "notes.archived")

    (row,) = await events(session, "notes.archived")
    assert (row.actor_id, row.session_id, row.subject_id, row.ip_prefix, row.request_id) == (None,) * 5
    assert row.detail == {}


async def test_an_event_exists_only_if_its_transaction_commits(database: Database, session: WriteSession) -> None:
    async with database.sessions() as undone:
        await service.record(undone, SYSTEM, "notes.undone")
    async with database.begin() as done:
        await service.record(done, SYSTEM, "notes.done")

    assert [event.event for event in await events(session, "notes.%")] == ["notes.done"]


async def test_events_about_an_account_are_those_with_it_as_actor_or_subject(session: WriteSession) -> None:
    for number, (actor_id, subject_id) in enumerate(
        [(ADA, None), (None, ADA), (ADA, ADA), (None, None), (uuid4(), uuid4())]
    ):
        occurred_at = datetime(2026, 1, 9 - number, tzinfo=UTC)
        session.add(
            AuditEvent(
                event=f"n.{number}", actor_id=actor_id, subject_id=subject_id, occurred_at=occurred_at, detail={}
            )
        )
    await session.commit()

    about = await service.list_about(session, ADA, limit=9)
    newest = await service.list_about(session, ADA, limit=2)

    assert [row["event"] for row in about] == ["n.0", "n.1", "n.2"]
    assert newest == about[:2]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_events SET event = 'x.y'",
        "UPDATE audit_events SET detail = detail",
        "DELETE FROM audit_events",
        "DELETE FROM audit_events WHERE occurred_at < now() + interval '1 day'",
        "TRUNCATE audit_events",
        "TRUNCATE users, audit_events CASCADE",
        "INSERT INTO audit_events SELECT * FROM audit_events ON CONFLICT (id) DO UPDATE SET event = 'x.y'",
        "MERGE INTO audit_events USING (SELECT 1) AS one ON true WHEN MATCHED THEN DELETE",
        "SELECT purge_audit_events(interval '0', 10); UPDATE audit_events SET event = 'x.y'",
    ],
)
async def test_the_database_rejects_every_change_and_deletion_of_an_event(
    session: WriteSession, statement: str
) -> None:
    await service.record(session, SYSTEM, "notes.archived")
    await session.commit()

    with pytest.raises(DBAPIError) as refusal:  # noqa: PT012  # Some cases are two statements; the database rejects the last.
        for part in statement.split(";"):
            await session.execute(text(part))
    await session.rollback()

    assert sqlstate(refusal.value) == "42501"
    assert len(await events(session, "notes.archived")) == 1


async def add_aged(session: WriteSession, *ages: timedelta) -> None:
    for age in ages:
        statement = text(
            "INSERT INTO audit_events (id, event, occurred_at, detail) VALUES (:id, 'n.aged', now() - CAST(:age AS interval), '{}')"
        )
        await session.execute(statement, {"id": uuid4(), "age": age})
    await session.commit()


async def test_purging_deletes_exactly_the_events_older_than_the_setting(
    database: Database, session: WriteSession, database_url: str
) -> None:
    day = timedelta(days=1)
    await add_aged(
        session, 0 * day, 9 * day, 10 * day - timedelta(seconds=1), 10 * day + timedelta(seconds=1), 400 * day
    )
    work = make_work(database, make_settings(database_url, audit={"keep": "10d"}))

    await jobs.purge(work)

    ages = (
        await session.execute(text("SELECT now() - occurred_at FROM audit_events WHERE event = 'n.aged'"))
    ).scalars()
    assert sorted(ages) == [0 * day, 9 * day, 10 * day - timedelta(seconds=1)]


@pytest.mark.parametrize("count", [0, 1, 4, 5, 9, 10, 11])
async def test_purging_deletes_batches_until_no_old_event_is_left(
    database: Database, session: WriteSession, settings: Settings, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(jobs, "BATCH", 5)
    await add_aged(session, *[timedelta(days=401)] * count, timedelta(days=399))

    await jobs.purge(make_work(database, settings))

    assert len(await events(session, "n.aged")) == 1


async def test_one_batch_deletes_the_oldest_first(session: WriteSession) -> None:
    await add_aged(session, *(timedelta(days=number) for number in range(3, 9)))

    purged = (await session.execute(text("SELECT purge_audit_events(interval '1 day', 4)"))).scalar_one()

    ages = (
        await session.execute(text("SELECT now() - occurred_at FROM audit_events WHERE event = 'n.aged'"))
    ).scalars()
    assert purged == 4
    assert sorted(ages) == [timedelta(days=3), timedelta(days=4)]


async def test_deletion_is_rejected_again_after_a_purge(session: WriteSession) -> None:
    await service.record(session, SYSTEM, "notes.archived")
    await session.execute(text("SELECT purge_audit_events(interval '1 day', 10)"))

    with pytest.raises(DBAPIError, match="insert-only"):
        await session.execute(text("DELETE FROM audit_events"))


def test_events_are_kept_for_400_days_and_purged_once_a_day(settings: Settings) -> None:
    (crons,) = [periodic.cron.split() for periodic in PERIODIC if periodic.job is jobs.purge]

    assert settings.of(AuditSettings).keep == timedelta(days=400)
    assert [part.isdecimal() for part in crons] == [True, True, False, False, False]
    assert crons[2:] == ["*", "*", "*"]
