"""The time of the first leg with a wrong password does not reveal whether the account has a second factor."""

import random
from collections import defaultdict

import pytest
from httpx2 import AsyncClient
from sqlalchemy import text

from app.auth.settings import AuthSettings
from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from tests.account.measure_enumeration import NOBODY, OF_EACH, TARGET, Times, judge, time_of
from tests.conftest import make_settings
from tests.factories import make_user
from tests.servers import real_server

_LOGIN = "POST /api/v1/auth/token"
_ENROLLED, _PLAIN = "enrolled", "plain"
_SAMPLES, _WARM_UP = 1000, 20


def email_of(kind: str, number: int) -> str:
    """Return an address of a kind: all are of one length."""
    return f"{kind:x<12}{number:02}@example.com"


async def add_accounts(url: str) -> None:
    settings = make_settings(url)
    database, hasher = Database(settings.database), PasswordHasher(settings.of(AuthSettings))
    async with database.begin() as session:
        for number in range(OF_EACH):
            for kind in (_ENROLLED, _PLAIN):
                await make_user(session, hasher, email=email_of(kind, number))
        await session.execute(
            text("""
                INSERT INTO totp_secrets (user_id, sealed, confirmed_at)
                SELECT id, 'x', now() FROM users WHERE email LIKE 'enrolled%'
            """)
        )
    hasher.close()
    await database.dispose()


@pytest.mark.slow
async def test_a_wrong_password_takes_the_same_time_with_and_without_a_factor(clone_url: str) -> None:
    await add_accounts(clone_url)
    chance, times = random.Random(0), defaultdict[str, list[float]](list)  # noqa: S311  # No secret.
    proxies = '["127.0.0.1/32"]'
    async with (
        real_server(clone_url, APP_SERVER__TRUSTED_PROXIES=proxies, APP_AUTH__BCRYPT_COST="4") as server,
        AsyncClient(base_url=server.base_url, timeout=60) as client,
    ):
        for number in range(-_WARM_UP, _SAMPLES):
            for kind in chance.sample([_ENROLLED, _PLAIN], 2):
                elapsed = await time_of(client, _LOGIN, email_of(kind, number % OF_EACH))
                if number >= 0:
                    times[NOBODY if kind == _PLAIN else kind].append(elapsed)

    measured: Times = dict(times)
    (finding,) = judge(_LOGIN, measured)
    assert finding.upper <= TARGET, str(finding)
