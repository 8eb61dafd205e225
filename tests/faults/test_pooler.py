"""The application works behind PgBouncer in transaction mode as it does without a pooler."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from httpx2 import AsyncClient
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from app.core.config import Settings
from app.core.db.database import Database
from app.core.db.failures import sqlstate
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from app.migrations import runner
from app.migrations.errors import MigrationError
from app.users.models import User
from tests.conftest import log_in, make_settings, running
from tests.factories import PASSWORD, make_user
from tests.faults.pooler import pooled, program
from tests.jobs.conftest import QUICK, eventually, rows

pytestmark = pytest.mark.skipif(program() is None, reason="PgBouncer is not installed")
TOKEN = "/api/v1/auth/token"
USERS = "/api/v1/users"
ME = "/api/v1/users/me"


@pytest.fixture
async def pooler_url(clone_url: str) -> AsyncIterator[str]:
    async with pooled(clone_url) as url:
        yield url


def behind(pooler_url: str, *, direct_url: str | None = None, **database: Any) -> Settings:
    options = {"transaction_pooler": True, "direct_url": direct_url, "pool_size": 6, "pool_wait": "20s", **database}
    auth = {"access_check": "memory"}
    jobs = {**QUICK, "in_process": True}
    return make_settings(pooler_url, database=options, auth=auth, jobs=jobs, mail={"url": "console:"})


@asynccontextmanager
async def application(settings: Settings) -> AsyncIterator[AsyncClient]:
    async with running(create_app(settings)) as client:
        yield client


async def account(settings: Settings, hasher: PasswordHasher, **values: Any) -> str:
    database = Database(settings.database)
    async with database.begin() as session:
        user = await make_user(session, hasher, **values)
    await database.dispose()
    return user.email


@pytest.mark.parametrize("is_direct", [True, False])
async def test_a_login_session_works_behind_a_pooler(
    clone_url: str, pooler_url: str, hasher: PasswordHasher, *, is_direct: bool
) -> None:
    settings = behind(pooler_url, direct_url=clone_url if is_direct else None)
    email = await account(settings, hasher, role="admin")
    async with application(settings) as client:
        await eventually(lambda: is_ready(client))
        form = {"grant_type": "password", "username": email, "password": PASSWORD}
        first = (await client.post(TOKEN, data=form)).json()
        form = {"grant_type": "refresh_token", "refresh_token": first["refresh_token"]}
        second = (await client.post(TOKEN, data=form)).json()
        headers = {"Authorization": f"Bearer {second['access_token']}"}
        written = await client.post(USERS, json={"email": "ada@example.org", "full_name": "Ada"}, headers=headers)
        changed = await client.patch(ME, json={"full_name": "Root"}, headers=headers)
        listed = await client.get(USERS, params={"sort": "email"}, headers=headers)
        await eventually(lambda: has_run_its_jobs(settings))
        await client.post("/api/v1/auth/revoke", data={"token": second["refresh_token"]})
        await eventually(lambda: is_refused(client, headers), within=3)

    assert (written.status_code, changed.status_code) == (201, 200)
    assert [user["email"] for user in listed.json()["items"]] == sorted(["ada@example.org", email])


async def is_ready(client: AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 200


async def is_refused(client: AsyncClient, headers: dict[str, str]) -> bool:
    return (await client.get(ME, headers=headers)).status_code == 401


async def has_run_its_jobs(settings: Settings) -> bool:
    database = Database(settings.database)
    statuses = await rows(
        database, "SELECT DISTINCT status::text FROM procrastinate_jobs WHERE task_name LIKE 'users.%'"
    )
    await database.dispose()
    return [row.status for row in statuses] == ["succeeded"]


async def test_many_requests_share_few_database_sessions_without_errors(
    pooler_url: str, hasher: PasswordHasher
) -> None:
    settings = behind(pooler_url)
    email = await account(settings, hasher, role="admin")
    async with application(settings) as client:
        headers = await log_in(client, email)

        async def work(number: int) -> list[int]:
            body = {"email": f"user{number}@example.org"}
            responses = [
                await client.get(ME, headers=headers),
                await client.post(USERS, json=body, headers=headers),
                await client.get(USERS, params={"limit": 5}, headers=headers),
                await client.patch(ME, json={"full_name": f"Root {number}"}, headers=headers),
            ]
            return [response.status_code for response in responses]

        found = await asyncio.gather(*(work(number) for number in range(10)))

    assert found == [[200, 201, 200, 200]] * 10


async def test_every_transaction_sets_its_timeouts(pooler_url: str) -> None:
    limits = {"statement_timeout": "1.5s", "lock_timeout": "250ms", "idle_in_transaction_timeout": "7s"}
    database = Database(behind(pooler_url, **limits).database)
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "TimeZone", "jit")
    query = text("SELECT " + ", ".join(f"current_setting('{name}')" for name in names))
    found = []
    for sessions in (database.sessions, database.read_sessions):
        async with sessions() as session:
            found.append((await session.execute(query)).one())
    await database.dispose()

    assert found == [("1500ms", "250ms", "7s", "UTC", "off")] * 2


async def test_the_settings_of_a_transaction_end_with_it(clone_url: str) -> None:
    async with pooled(clone_url, sessions=1) as url:
        database = Database(behind(url, statement_timeout="1.5s").database)
        other = Database(behind(url, statement_timeout="3s").database)
        found = []
        for one in (database, other, database):
            async with one.sessions() as session:
                found.append(await session.scalar(text("SHOW statement_timeout")))
        await database.dispose()
        await other.dispose()

    assert found == ["1500ms", "3s", "1500ms"]


async def test_no_prepared_statement_stays_in_the_database_session(clone_url: str) -> None:
    async with pooled(clone_url, sessions=1) as url:
        database = Database(behind(url).database)
        async with database.sessions() as writing:
            await writing.execute(select(User).where(User.email_key == "nobody@x.co"))
        async with database.read_sessions() as reading:
            left = (await reading.scalars(text("SELECT name FROM pg_prepared_statements WHERE name <> ''"))).all()
        await database.dispose()

    assert left == []


async def test_read_sessions_are_read_only_behind_a_pooler(pooler_url: str) -> None:
    database = Database(behind(pooler_url).database)
    async with database.read_sessions() as session:
        with pytest.raises(DBAPIError) as refused:
            await session.execute(text("DELETE FROM users"))
    await database.dispose()

    assert sqlstate(refused.value) == "25006"


async def test_migrations_require_the_direct_url(clone_url: str, pooler_url: str) -> None:
    with pytest.raises(MigrationError, match="set APP_DATABASE__DIRECT_URL"):
        await runner.upgrade(behind(pooler_url).database)

    await runner.upgrade(behind(pooler_url, direct_url=clone_url).database)


async def test_a_pooler_without_the_setting_causes_a_clear_log_message(
    pooler_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with application(make_settings(pooler_url)) as client:
        response = await client.post(TOKEN, data={"grant_type": "password", "username": "a@x.co", "password": PASSWORD})

    assert response.status_code == 503
    assert "unsupported startup parameter" in caplog.text
