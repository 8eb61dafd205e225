"""The jobs: the purge of logins and secrets that nobody completed, and mails to accounts that are gone."""

from datetime import timedelta
from uuid import UUID

import pytest
from httpx2 import AsyncClient
from sqlalchemy import text

from app.auth.errors import InvalidTokenError
from app.auth.settings import AuthSettings
from app.core import product
from app.core.config import Settings
from app.core.db.database import Database, WriteSession
from app.core.security.hashing import PasswordHasher
from app.core.security.keys import load_key_ring
from app.factors import crud, jobs, service
from app.jobs.queue import Work
from app.mail.mailer import Mailer
from app.mail.transports import MemoryTransport
from tests.access import UNKNOWN_ID
from tests.conftest import LoggedIn
from tests.factories import make_user
from tests.factors.phone import Enrolled, begin, challenges_of, factor_of, first_leg


def work(database: Database, settings: Settings) -> Work:
    no_mailer: object = None
    return Work(database, no_mailer, load_key_ring(settings.of(AuthSettings)), settings)  # type: ignore[arg-type]  # Sends no mail.


async def test_what_has_expired_is_deleted_and_the_rest_stays(
    client: AsyncClient,
    session: WriteSession,
    database: Database,
    settings: Settings,
    owner: Enrolled,
    admin: LoggedIn,
) -> None:
    await first_leg(client, owner.email)
    await session.execute(text("UPDATE login_challenges SET expires_at = now() - interval '1 second'"))
    await first_leg(client, owner.email)
    await begin(client, admin.headers)
    await session.execute(text("UPDATE totp_secrets SET created_at = created_at - interval '11 minutes'"))
    await session.commit()

    await jobs.purge(work(database, settings))

    assert len(await challenges_of(session, owner.user_id)) == 1
    assert await factor_of(session, admin.user_id) is None
    assert (await factor_of(session, owner.user_id)).confirmed_at is not None


async def test_a_setup_of_this_minute_is_not_purged(
    client: AsyncClient, session: WriteSession, database: Database, settings: Settings, user: LoggedIn
) -> None:
    await begin(client, user.headers)

    await jobs.purge(work(database, settings))

    assert await factor_of(session, user.user_id) is not None


async def test_a_step_deletes_one_batch_and_says_where_it_ended(
    client: AsyncClient, session: WriteSession, user: LoggedIn, admin: LoggedIn
) -> None:
    for one in (user, admin):
        await begin(client, one.headers)
    await session.execute(text("UPDATE totp_secrets SET created_at = created_at - interval '11 minutes'"))
    await session.commit()

    ends = [await crud.purge_pending(session, None, batch=1) for _ in range(3)]

    assert [end is None for end in ends] == [False, False, True]


async def test_the_oldest_setup_is_purged_first(
    client: AsyncClient, session: WriteSession, user: LoggedIn, admin: LoggedIn
) -> None:
    for one, minutes in ((user, 11), (admin, 12)):
        await begin(client, one.headers)
        statement = text("UPDATE totp_secrets SET created_at = now() - CAST(:age AS interval) WHERE user_id = :id")
        await session.execute(statement, {"age": timedelta(minutes=minutes), "id": one.user_id})
    await session.commit()

    await crud.purge_pending(session, None, batch=1)

    assert await factor_of(session, admin.user_id) is None
    assert await factor_of(session, user.user_id) is not None


async def test_the_mail_about_a_recovery_code_has_the_name_and_the_id_of_its_job(
    database: Database, settings: Settings, session: WriteSession, hasher: PasswordHasher
) -> None:
    account = await make_user(session, hasher, full_name="Ada Lovelace")
    await session.commit()
    outbox = MemoryTransport()
    mailer = Mailer(outbox, from_address="app@example.com", from_name=product.NAME)
    given = Work(database, mailer, load_key_ring(settings.of(AuthSettings)), settings, key="job-7")

    await jobs.mail_recovery_code_used(given, account.id, 9)

    (mail,) = outbox.sent
    assert (mail.to, mail.message_id) == (account.email, "<job-7@example.com>")
    assert "Ada Lovelace" in mail.text


async def test_the_owner_of_a_deleted_account_gets_no_mail(database: Database, settings: Settings) -> None:
    # Without a mailer, an attempt to send would fail.
    await jobs.mail_recovery_code_used(work(database, settings), UUID(UNKNOWN_ID), 9)


async def test_an_account_that_was_deleted_a_moment_ago_has_no_status(
    session: WriteSession, settings: Settings
) -> None:
    with pytest.raises(InvalidTokenError):
        await service.get_status(session, settings, UUID(UNKNOWN_ID))
