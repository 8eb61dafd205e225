"""Logging everybody out: which sessions end, which continue, and what is stored."""

from uuid import UUID

import pytest
from httpx2 import AsyncClient
from sqlalchemy import text
from uuid_utils.compat import uuid7

from app.auth.sessions import revoking_crud
from app.auth.sessions.cutoff import end_every_session
from app.core.db.database import Database, WriteSession
from tests.aftermath import events
from tests.auth.login_sessions import can_refresh, is_accepted, refresh, row, shift, start
from tests.conftest import LoggedIn

HOUR = 3_600_000


async def kinds(session: WriteSession) -> list[int]:
    """Read the kinds of the revocations there are."""
    return list((await session.scalars(text("SELECT kind FROM revocations ORDER BY id"))).all())


async def cutoff_of(session: WriteSession) -> UUID:
    found: UUID = (await session.scalars(text("SELECT cutoff FROM session_cutoffs ORDER BY cutoff DESC"))).all()[0]
    return found


async def test_existing_sessions_end_and_a_new_login_works(
    client: AsyncClient, database: Database, session: WriteSession, user: LoggedIn, admin: LoggedIn
) -> None:
    before = await start(client, user.email)
    refreshed = await refresh(client, before)

    ended = await end_every_session(database)

    assert ended == 3
    for tokens in (before, refreshed):
        assert not await is_accepted(client, tokens)
        assert not await can_refresh(client, tokens)
    assert (await client.get("/api/v1/users/me", headers=admin.headers)).status_code == 401
    after = await start(client, user.email)
    assert await is_accepted(client, after)
    assert await can_refresh(client, after)
    assert (await row(session, before.session_id)).revoke_reason == "all"
    assert (await row(session, after.session_id)).revoked_at is None


async def test_one_row_tells_all_processes_of_the_cutoff(
    client: AsyncClient, database: Database, session: WriteSession, user: LoggedIn
) -> None:
    for _ in range(3):
        await start(client, user.email)

    await end_every_session(database)

    assert await kinds(session) == [4]
    (event,) = await events(session, "auth.everybody_logged_out")
    assert (event.actor_id, event.subject_id, event.detail) == (None, None, {})


async def test_sessions_are_ended_in_batches(client: AsyncClient, database: Database, user: LoggedIn) -> None:
    for _ in range(4):
        await start(client, user.email)

    assert await end_every_session(database, batch=2) == 5
    assert await end_every_session(database, batch=2) == 0


async def test_without_sessions_there_is_nothing_to_end(database: Database, session: WriteSession) -> None:
    assert await end_every_session(database) == 0
    assert await end_every_session(database) == 0
    assert await kinds(session) == [4, 4]


@pytest.mark.parametrize("ahead", [0, HOUR])
async def test_no_clock_decides_which_sessions_are_later(
    client: AsyncClient, database: Database, session: WriteSession, user: LoggedIn, ahead: int
) -> None:
    # As a machine whose clock is ahead would have made it; ours is behind it now.
    early = await start(client, user.email)
    future = UUID(int=uuid7().int + (ahead << 80))
    await shift(session, early.session_id, f"id = '{future}'")

    await end_every_session(database)

    cutoff = await cutoff_of(session)
    after = [await start(client, user.email) for _ in range(3)]
    assert future < cutoff
    assert all(one.session_id > cutoff for one in after)
    assert len({one.session_id for one in after}) == 3
    assert all([await is_accepted(client, one) for one in after])


async def test_sessions_that_a_restored_database_does_not_know_are_below_the_cutoff(
    client: AsyncClient, database: Database, session: WriteSession, user: LoggedIn
) -> None:
    # As on a machine whose clock is ahead by half a minute.
    lost = UUID(int=uuid7().int + (30_000 << 80))

    await end_every_session(database)
    after = await start(client, user.email)

    assert lost < await cutoff_of(session) < after.session_id
    assert await is_accepted(client, after)


def test_an_id_that_is_moved_above_the_cutoff_keeps_its_random_bits() -> None:
    chance = (1 << 80) - 1
    before, cutoff = uuid7(), UUID(int=((uuid7().int >> 80) + 1000) << 80)

    moved = revoking_crud.beyond(cutoff, before)

    assert moved > cutoff
    assert (moved.int >> 80, moved.int & chance) == (cutoff.int >> 80, before.int & chance)


async def test_a_session_that_ends_after_its_cutoff_has_expired_is_published_itself(
    client: AsyncClient, database: Database, session: WriteSession, user: LoggedIn
) -> None:
    left_over = await start(client, user.email)
    await end_every_session(database)
    # As if the command had been interrupted, a while ago.
    await shift(session, left_over.session_id, "revoked_at = NULL, revoke_reason = NULL")
    await session.execute(text("UPDATE session_cutoffs SET created_at = created_at - interval '61 s'"))
    await session.commit()

    await shift(session, left_over.session_id, "revoked_at = now(), revoke_reason = 'user'")

    assert await kinds(session) == [4, 1]


async def test_a_batch_reads_the_next_sessions_below_the_cutoff_and_ends_the_live_ones(
    client: AsyncClient, session: WriteSession, user: LoggedIn
) -> None:
    for _ in range(5):
        await start(client, user.email)
    # The first is the fixture's own.
    ended, *ids, line = (await session.scalars(text("SELECT id FROM sessions ORDER BY id"))).all()
    await shift(session, ended, "revoked_at = now(), revoke_reason = 'user'")

    first = await revoking_crud.revoke_before(session, line, None, batch=2)
    second = await revoking_crud.revoke_before(session, line, first[1], batch=2)
    rest = await revoking_crud.revoke_before(session, line, second[1], batch=2)
    nothing = await revoking_crud.revoke_before(session, line, rest[1], batch=2)
    await session.commit()

    steps = [step[:2] for step in (first, second, rest, nothing)]
    assert steps == [(1, ids[0]), (2, ids[2]), (1, ids[3]), (0, None)]
    assert (await row(session, ended)).revoke_reason == "user"
    assert (await row(session, line)).revoked_at is None
