"""The commands of docs/operations/backups.md: a database is dumped and restored, and the application starts on the copy."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from httpx2 import AsyncClient

from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from app.migrations.revisions import head
from tests.auth.login_sessions import REVOKE, Pair, can_refresh, is_accepted, refresh, start
from tests.auth.test_token_status import add_account
from tests.conftest import make_settings, running
from tests.restoring import Restore, documented, execute, restoring
from tests.test_cli import fetch


@pytest.fixture
async def restore(template_url: str, clone_url: str, tmp_path: Path) -> AsyncIterator[Restore]:
    async with restoring(template_url, clone_url, tmp_path) as restore:
        yield restore


@asynccontextmanager
async def served(url: str) -> AsyncIterator[AsyncClient]:
    """Run the application as in production: revocations in memory."""
    database = Database(make_settings(url).database)
    app = create_app(make_settings(url, auth={"access_check": "memory"}), database)
    async with running(app) as client:
        while (await client.get("/readyz")).status_code != 200:
            pass
        yield client
    await database.dispose()


async def add_user(url: str, hasher: PasswordHasher) -> str:
    database = Database(make_settings(url).database)
    try:
        return await add_account(database, hasher)
    finally:
        await database.dispose()


async def log_out(client: AsyncClient, tokens: Pair) -> None:
    assert (await client.post(REVOKE, data={"token": tokens.refresh})).status_code == 200


class Sessions:
    """Login sessions of one account, by what happened to them and when."""

    email: str
    ended_before: Pair
    # Live at the time of the backup.
    kept: Pair
    refreshed_after: Pair
    ended_after: Pair
    # The backup does not know it.
    started_after: Pair

    @property
    def all(self) -> list[Pair]:
        return [self.ended_before, self.kept, self.refreshed_after, self.ended_after, self.started_after]


async def dump_between(restore: Restore, hasher: PasswordHasher) -> Sessions:
    """Dump the database while sessions start, refresh and end. Return them."""
    sessions = Sessions()
    sessions.email = await add_user(restore.source, hasher)
    async with served(restore.source) as client:
        sessions.ended_before, sessions.kept, earlier, sessions.ended_after = [
            await start(client, sessions.email) for _ in range(4)
        ]
        await log_out(client, sessions.ended_before)
        restore.dump()
        sessions.refreshed_after = await refresh(client, earlier)
        await log_out(client, sessions.ended_after)
        sessions.started_after = await start(client, sessions.email)
        assert [await is_accepted(client, one) for one in sessions.all] == [False, True, True, False, True]
    return sessions


async def alarms(url: str) -> list[str]:
    return [row["event"] for row in await fetch(url, "SELECT event FROM audit_events WHERE event ~ 'reuse|future'")]


async def test_after_a_restore_accounts_log_in_and_no_earlier_token_works(
    restore: Restore, hasher: PasswordHasher
) -> None:
    sessions = await dump_between(restore, hasher)

    restore.restore()
    printed = restore.prepare()

    assert "This release can serve the database with these keys.\nEnded 3 login sessions.\n" in printed
    async with served(restore.target) as client:
        assert [await is_accepted(client, one) for one in sessions.all] == [False] * 5
        assert [await can_refresh(client, one) for one in sessions.all] == [False] * 5
        after = await start(client, sessions.email)
        assert await is_accepted(client, after)
        assert await can_refresh(client, after)
    reasons = await fetch(restore.target, "SELECT revoke_reason, count(*) AS n FROM sessions GROUP BY 1 ORDER BY 1")
    assert [(row["revoke_reason"], row["n"]) for row in reasons] == [("all", 3), ("logout", 1), (None, 1)]
    assert await alarms(restore.target) == []


async def test_a_restore_that_leaves_the_sessions_alone_accepts_ended_and_unknown_ones(
    restore: Restore, hasher: PasswordHasher
) -> None:
    sessions = await dump_between(restore, hasher)

    restore.restore()
    assert restore.check()[0] == 0

    async with served(restore.target) as client:
        # The revocation before the backup is part of it.
        assert [await is_accepted(client, one) for one in sessions.all] == [False, True, True, True, True]
        assert not await can_refresh(client, sessions.ended_before)
        assert await can_refresh(client, sessions.ended_after)
        assert not await can_refresh(client, sessions.refreshed_after)
    assert await alarms(restore.target) == ["auth.refresh_from_the_future"]


async def test_a_restore_brings_back_every_row_except_counters(restore: Restore, hasher: PasswordHasher) -> None:
    await dump_between(restore, hasher)
    before = await fetch(restore.source, "SELECT count(*) AS n FROM rate_limits")

    restore.restore()

    code, facts, problems = restore.check()
    assert (code, problems) == (0, [])
    lines = dict(line.split(maxsplit=1) for line in facts.splitlines())
    assert before[0]["n"] > 0
    assert (lines["schema"], lines["rate_limits"], lines["sessions"], lines["users"]) == (head(), "0", "4", "1")
    (newest,) = await fetch(restore.target, "SELECT max(occurred_at) AS at FROM audit_events")
    assert f"newest row         {newest['at']:%Y-%m-%d %H:%M:%S}Z, in audit_events" in facts


async def test_the_old_database_lists_what_the_backup_does_not_know(restore: Restore, hasher: PasswordHasher) -> None:
    sessions = await dump_between(restore, hasher)
    (newest,) = await fetch(restore.source, "SELECT max(occurred_at) AS at FROM audit_events")
    restore.variables["SINCE"] = f"{newest['at']}"
    insert = (
        "INSERT INTO audit_events (id, event, subject_id, detail) SELECT gen_random_uuid(), '{}', id, '{{}}' FROM users"
    )
    for event in ("users.disabled", "auth.login_failed"):
        await execute(restore.source, insert.format(event))

    listed = restore.succeed(documented("psql")).splitlines()

    assert listed[0] == "occurred_at,event,actor_id,subject_id,detail"
    (row,) = listed[1:]
    assert f",users.disabled,,{sessions.kept.claims['sub']},{{}}" in row
