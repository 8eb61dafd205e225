"""The purge of login sessions, revocations and counters."""

from datetime import timedelta

import pytest
from sqlalchemy import text

from app.auth import jobs
from app.auth.settings import AuthSettings
from app.core import product
from app.core.config import Settings
from app.core.db.database import Database, WriteSession
from app.core.security.keys import load_key_ring
from app.jobs.queue import Work
from app.mail.mailer import Mailer
from app.mail.transports import MemoryTransport
from app.users.models import User
from tests.factories import make_user


@pytest.fixture
def work(database: Database, settings: Settings) -> Work:
    """What a running job is given."""
    mailer = Mailer(MemoryTransport(), from_address="app@example.com", from_name=product.NAME)
    return Work(database, mailer, load_key_ring(settings.of(AuthSettings)), settings)


@pytest.fixture
async def ada(session: WriteSession) -> User:
    """An account with sessions."""
    account = await make_user(session)
    await session.commit()
    return account


SESSION = text("""
    INSERT INTO sessions (id, user_id, nonce, pepper_id, scope, idle_expires_at, absolute_expires_at, revoked_at,
                          revoke_reason, device_family)
    VALUES (gen_random_uuid(), :user_id, '', 0, '', now() + CAST(:idle AS interval), now() + CAST(:absolute AS interval),
            now() + CAST(:revoked AS interval), CASE WHEN :is_revoked THEN 'user' END, :name)
""")


@pytest.mark.parametrize(
    ("name", "absolute", "revoked", "stays"),
    [
        ("live", 1, None, True),
        ("expired recently", -29, None, True),
        ("expired long ago", -31, None, False),
        ("revoked lately", 1, -29, True),
        ("revoked long ago", 1, -31, False),
    ],
)
async def test_sessions_are_kept_for_thirty_days_after_their_end(
    session: WriteSession, work: Work, ada: User, name: str, absolute: int, revoked: int | None, stays: bool
) -> None:
    values = {
        "user_id": ada.id,
        "name": name,
        "idle": timedelta(days=1),
        "absolute": timedelta(days=absolute),
        "revoked": revoked and timedelta(days=revoked),
        "is_revoked": revoked is not None,
    }
    await session.execute(SESSION, values)
    await session.commit()

    await jobs.purge(work)

    kept = (await session.scalars(text("SELECT device_family FROM sessions"))).all()
    assert kept == ([name] if stays else [])


async def test_expired_revocations_and_counters_are_deleted(session: WriteSession, work: Work) -> None:
    for age in ("1 minute", "-1 minute"):
        parameters = {"age": age}
        await session.execute(
            text("INSERT INTO revocations (kind, expires_at) VALUES (1, now() + CAST(CAST(:age AS text) AS interval))"),
            parameters,
        )
        await session.execute(
            text("INSERT INTO rate_limits VALUES (:age, 1, now() + CAST(CAST(:age AS text) AS interval))"), parameters
        )
    await session.commit()

    await jobs.purge(work)

    assert await session.scalar(text("SELECT count(*) FROM revocations")) == 1
    assert (await session.scalars(text("SELECT key FROM rate_limits"))).all() == ["1 minute"]


async def test_expired_tickets_are_purged(session: WriteSession, work: Work, ada: User) -> None:
    values = {"user_id": ada.id, "name": "", "idle": timedelta(1), "absolute": timedelta(1), "revoked": None}
    await session.execute(SESSION, {**values, "is_revoked": False})
    for age in (-1, 1):
        statement = (
            "INSERT INTO socket_tickets SELECT decode(md5(:age), 'hex'), id, 1, '', now(), now() - CAST(:age AS interval) "
            "FROM sessions"
        )
        await session.execute(text(statement), {"age": f"{age} s"})
    await session.commit()

    await jobs.purge(work)

    assert await session.scalar(text("SELECT count(*) FROM socket_tickets WHERE expires_at > now()")) == 1
    assert await session.scalar(text("SELECT count(*) FROM socket_tickets")) == 1
