"""The sealed secrets of authenticator apps, in their table."""

import json
from typing import Any

import pytest
from sqlalchemy import select

from app.auth import jobs
from app.core import product
from app.core.config import Settings
from app.core.db.database import Database, WriteSession
from app.core.security.keys import KeyRing, generate_key_set, new_seal_key, parse_key_ring
from app.core.security.sealing import SealBrokenError
from app.factors import sealed
from app.factors.models import TotpSecret
from app.jobs.queue import Work
from app.mail.mailer import Mailer
from app.mail.transports import MemoryTransport
from tests.factories import make_user

KEY_SET = json.loads(generate_key_set())
FIRST, SECOND = new_seal_key(1, "active"), new_seal_key(2, "active")
SECRET = b"s" * 20


def ring(*seal_keys: dict[str, Any]) -> KeyRing:
    return parse_key_ring(json.dumps({**KEY_SET, "seal_keys": seal_keys}), source="")


async def enrol(session: WriteSession, keys: KeyRing) -> TotpSecret:
    account = await make_user(session)
    secret = TotpSecret(user_id=account.id, sealed=sealed.seal(keys, account.id, SECRET))
    session.add(secret)
    await session.commit()
    return secret


async def test_the_secret_of_an_app_is_resealed(database: Database, settings: Settings, session: WriteSession) -> None:
    before = await enrol(session, ring(FIRST))
    mailer = Mailer(MemoryTransport(), from_address="app@example.com", from_name=product.NAME)
    work = Work(database, mailer, ring(FIRST | {"state": "retiring"}, SECOND), settings)

    await jobs.reseal(work)

    async with database.sessions() as second:
        after = (await second.scalars(select(TotpSecret))).one()
    assert sealed.unseal(ring(SECOND), before.user_id, after.sealed) == SECRET
    unchanged = ("user_id", "confirmed_at", "last_step", "created_at", "last_used_at")
    assert [getattr(after, name) for name in unchanged] == [getattr(before, name) for name in unchanged]


async def test_two_swapped_secrets_are_refused(session: WriteSession) -> None:
    keys = ring(FIRST)
    ada, bob = await enrol(session, keys), await enrol(session, keys)
    ada.sealed, bob.sealed = bob.sealed, ada.sealed
    await session.commit()

    for secret in (ada, bob):
        with pytest.raises(SealBrokenError):
            sealed.unseal(keys, secret.user_id, secret.sealed)
