"""Concurrent second legs on real connections, and a fault between the check and the session."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from httpx2 import AsyncClient, Response

from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from app.factors import crud
from app.main import create_app
from tests.auth.post import PATIENT, bearer, log_in, pair_of
from tests.conftest import LoggedIn, make_settings, running
from tests.factories import make_user
from tests.factors.phone import Enrolled, begin, enrol, first_leg, second_leg
from tests.servers import real_server
from tests.volume import plain

AT_ONCE = 50
EMAIL = "ada@example.com"


@dataclass
class Site:
    """An application with real connections, the owner of an account with a second factor, and a separate connection."""

    client: AsyncClient
    owner: Enrolled
    watcher: asyncpg.Connection

    async def fetch(self, statement: str) -> list[Any]:
        rows: list[Any] = await self.watcher.fetch(statement)
        return rows

    async def live_sessions(self) -> int:
        (row,) = await self.fetch("SELECT count(*) FROM sessions WHERE revoked_at IS NULL")
        return int(row["count"])


async def enrolled(client: AsyncClient, database: Database, hasher: PasswordHasher) -> Enrolled:
    async with database.begin() as session:
        user = await make_user(session, hasher, email=EMAIL)
    return await enrol(client, LoggedIn(str(user.id), EMAIL, bearer(await pair_of(client, EMAIL))))


@asynccontextmanager
async def opened(url: str, hasher: PasswordHasher, **groups: Any) -> AsyncIterator[Site]:
    settings = make_settings(url, database=PATIENT, **groups)
    database = Database(settings.database)
    watcher = await asyncpg.connect(plain(url))
    async with running(create_app(settings, database)) as client:
        yield Site(client, await enrolled(client, database, hasher), watcher)
    await watcher.close()
    await database.dispose()


@pytest.fixture
async def unlimited(clone_url: str, hasher: PasswordHasher) -> AsyncIterator[Site]:
    """Without limits, because here nothing but the single use protects the account."""
    async with opened(clone_url, hasher, rate_limit={"enabled": False}) as site:
        yield site


@pytest.fixture
async def limited(clone_url: str, hasher: PasswordHasher) -> AsyncIterator[Site]:
    async with opened(clone_url, hasher) as site:
        yield site


async def at_once(client: AsyncClient, tokens: Sequence[str], **proof: str) -> Counter[int]:
    responses: list[Response] = await asyncio.gather(*(second_leg(client, token, **proof) for token in tokens))
    return Counter(response.status_code for response in responses)


async def test_of_fifty_equal_codes_at_once_one_is_accepted(unlimited: Site) -> None:
    tokens = [await first_leg(unlimited.client, EMAIL) for _ in range(AT_ONCE)]
    before = await unlimited.live_sessions()

    statuses = await at_once(unlimited.client, tokens, code=unlimited.owner.phone.code(steps=1))

    assert statuses == {200: 1, 400: AT_ONCE - 1}
    assert await unlimited.live_sessions() == before + 1


@pytest.mark.slow
async def test_of_fifty_equal_recovery_codes_at_once_one_is_accepted(unlimited: Site) -> None:
    tokens = [await first_leg(unlimited.client, EMAIL) for _ in range(AT_ONCE)]
    before = await unlimited.live_sessions()

    statuses = await at_once(unlimited.client, tokens, recovery_code=unlimited.owner.recovery_codes[0])

    assert statuses == {200: 1, 400: AT_ONCE - 1}
    assert await unlimited.live_sessions() == before + 1
    assert len(await unlimited.fetch("SELECT FROM recovery_codes WHERE used_at IS NULL")) == 9


async def test_of_several_right_factors_at_once_one_completes_a_login(unlimited: Site) -> None:
    token = await first_leg(unlimited.client, EMAIL)
    before = await unlimited.live_sessions()

    responses = await asyncio.gather(
        *(second_leg(unlimited.client, token, recovery_code=code) for code in unlimited.owner.recovery_codes)
    )

    assert sum(response.status_code == 200 for response in responses) == 1
    assert await unlimited.live_sessions() == before + 1
    assert len(await unlimited.fetch("SELECT FROM recovery_codes WHERE used_at IS NULL")) == 9


async def test_guesses_at_once_over_five_logins_do_not_exceed_the_limit(limited: Site) -> None:
    tokens = [await first_leg(limited.client, EMAIL) for _ in range(5)]

    statuses = await at_once(limited.client, tokens * 8, code=limited.owner.phone.wrong())

    assert statuses.keys() <= {400, 429}
    await assert_ten_guesses(limited.watcher)


async def assert_ten_guesses(watcher: asyncpg.Connection) -> None:
    failed = await watcher.fetchval("SELECT count(*) FROM audit_events WHERE event = 'auth.second_factor_failed'")
    counted = await watcher.fetchval("SELECT sum(failures)::int FROM login_challenges")
    hits = await watcher.fetchval("SELECT hits FROM rate_limits WHERE key LIKE 'mfa-account:%'")
    assert (failed, counted, hits) == (10, 10, 10)


@pytest.mark.slow
async def test_two_hundred_guesses_at_once_over_four_workers_do_not_exceed_the_limit(
    clone_url: str, hasher: PasswordHasher
) -> None:
    async with opened(clone_url, hasher) as site:
        tokens = [await first_leg(site.client, EMAIL) for _ in range(5)]
        environment = {
            "APP_SERVER__WORKERS": "4",
            "APP_DATABASE__LOCK_TIMEOUT": "60s",
            "APP_DATABASE__POOL_WAIT": "60s",
        }
        async with (
            real_server(clone_url, **environment) as server,
            AsyncClient(base_url=server.base_url, timeout=120) as client,
        ):
            statuses = await at_once(client, tokens * 40, code=site.owner.phone.wrong())

        assert statuses.keys() <= {400, 429}
        await assert_ten_guesses(site.watcher)


async def test_a_fault_before_the_session_leaves_the_code_unused(unlimited: Site) -> None:
    """The database refuses the session after the code was accepted, as in a crash between the two."""
    token, code = await first_leg(unlimited.client, EMAIL), unlimited.owner.phone.code(steps=1)
    before = await unlimited.fetch("SELECT last_step FROM totp_secrets")
    await unlimited.watcher.execute("""
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'a fault'; END $$;
        CREATE TRIGGER fail BEFORE INSERT ON sessions FOR EACH ROW EXECUTE FUNCTION fail();
    """)

    failed = await second_leg(unlimited.client, token, code=code)
    between = await unlimited.fetch("SELECT last_step FROM totp_secrets")
    await unlimited.watcher.execute("DROP TRIGGER fail ON sessions")
    repeated = await second_leg(unlimited.client, token, code=code)
    again = await second_leg(unlimited.client, await first_leg(unlimited.client, EMAIL), code=code)

    assert failed.status_code == 500
    assert between == before
    assert (repeated.status_code, again.status_code) == (200, 400)


@pytest.mark.slow
async def test_a_login_that_began_before_the_setup_gets_no_session_after_it(
    clone_url: str, hasher: PasswordHasher
) -> None:
    """The password is verified while the owner confirms the app. No session may begin with the password alone."""
    settings = make_settings(clone_url, database=PATIENT, rate_limit={"enabled": False})
    database = Database(settings.database)
    watcher = await asyncpg.connect(plain(clone_url))
    async with running(create_app(settings, database)) as client:
        async with database.begin() as session:
            user = await make_user(session, hasher, email=EMAIL)
        headers = bearer(await pair_of(client, EMAIL))
        logins = [asyncio.create_task(log_in(client, EMAIL)) for _ in range(10)]
        await enrol(client, LoggedIn(str(user.id), EMAIL, headers))
        await asyncio.gather(*logins)
        live = await watcher.fetch("SELECT acr FROM sessions WHERE revoked_at IS NULL")
    await watcher.close()
    await database.dispose()

    assert [row["acr"] for row in live] == ["aal2"]


async def test_the_purge_leaves_a_setup_alone_that_is_being_confirmed(clone_url: str, hasher: PasswordHasher) -> None:
    """The ten minutes end between the check of the code and the confirmation."""
    settings = make_settings(clone_url, database=PATIENT)
    database = Database(settings.database)
    watcher = await asyncpg.connect(plain(clone_url))
    async with running(create_app(settings, database)) as client:
        async with database.begin() as session:
            user = await make_user(session, hasher, email=EMAIL)
        await begin(client, bearer(await pair_of(client, EMAIL)))
    almost = crud.PENDING - timedelta(seconds=1)
    async with database.begin() as confirming:
        await watcher.execute("UPDATE totp_secrets SET created_at = now() - $1::interval", almost)
        is_pending = await crud.lock_pending(confirming, user.id) is not None
        await asyncio.sleep(1.1)
        async with database.begin() as purging:
            await crud.purge_pending(purging, None, batch=10)
        await crud.confirm(confirming, user.id, 1)
    confirmed = await watcher.fetchval("SELECT confirmed_at IS NOT NULL FROM totp_secrets")
    await watcher.close()
    await database.dispose()

    assert is_pending
    assert confirmed
