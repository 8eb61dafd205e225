"""Login sessions over HTTP: rotation, reuse, ending, listing, logging out and giving the password again."""

import asyncio
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from httpx2 import AsyncClient
from sqlalchemy import text

from app.audit.service import Actor
from app.auth import jobs
from app.auth.errors import InvalidGrantError
from app.auth.sessions import rotation
from app.auth.sessions.refresh_tokens import _LAYOUT
from app.core import product
from app.core.config import Settings
from app.core.db.database import Database, WriteSession
from app.core.security.hashing import PasswordHasher
from app.core.security.keys import parse_key_ring
from app.jobs.queue import Work
from app.mail.mailer import make_mailer
from app.mail.settings import MailSettings
from app.main import create_app
from tests.aftermath import assert_problem, events
from tests.aftermath import jobs as waiting_jobs
from tests.auth.login_sessions import (
    ME,
    REVOKE,
    SESSIONS,
    TOKEN,
    Pair,
    can_refresh,
    is_accepted,
    pair,
    refresh,
    row,
    send_refresh,
    shift,
    start,
)
from tests.auth.test_router import assert_oauth_error
from tests.conftest import KEY_SET, LoggedIn, make_settings, running
from tests.factories import ADMINISTRATION, PASSWORD, make_user

REAUTHENTICATE = "/api/v1/auth/reauthenticate"
OUTSIDE_GRACE = "rotated_at = clock_timestamp() - interval '30.1 s'"
FORTNIGHT = 14 * 86_400

type Change = Callable[[str], str]


@pytest.fixture
async def email(session: WriteSession, hasher: PasswordHasher) -> str:
    """The address of an account without login sessions."""
    account = await make_user(session, hasher)
    await session.commit()
    return account.email


@pytest.fixture
async def admin_email(session: WriteSession, hasher: PasswordHasher) -> str:
    """The address of an administrator."""
    account = await make_user(session, hasher, role="admin")
    await session.commit()
    return account.email


@asynccontextmanager
async def with_auth(database_url: str, database: Database, **auth: Any) -> AsyncIterator[AsyncClient]:
    """Run the application under other settings."""
    async with running(create_app(make_settings(database_url, auth=auth), database)) as client:
        yield client


async def notices(session: WriteSession) -> list[str]:
    """Name the notices to owners that wait to be mailed."""
    return [
        job.args["arguments"]["notice"]
        for job in await waiting_jobs(session)
        if job.task_name.endswith("mail_user_notice")
    ]


# Rotation


async def test_a_refresh_token_is_exchanged_for_the_next_pair(client: AsyncClient, email: str) -> None:
    first = await start(client, email)

    response = await send_refresh(client, first.refresh)
    second = pair(response)

    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Pragma"] == "no-cache"
    assert set(second.body) == {
        "access_token",
        "token_type",
        "expires_in",
        "refresh_token",
        "refresh_expires_in",
        "scope",
    }
    assert second.refresh != first.refresh
    assert second.claims["jti"] != first.claims["jti"]
    assert {name: second.claims[name] for name in ("sub", "sid", "auth_time", "ver")} == {
        name: first.claims[name] for name in ("sub", "sid", "auth_time", "ver")
    }


async def test_a_rotation_does_not_end_older_access_tokens(client: AsyncClient, email: str) -> None:
    first = await start(client, email)

    second = await refresh(client, first)

    assert await is_accepted(client, first)
    assert await is_accepted(client, second)


async def test_a_session_stays_one_row_over_many_rotations(
    client: AsyncClient, session: WriteSession, email: str
) -> None:
    tokens = await start(client, email)

    for _ in range(5):
        tokens = await refresh(client, tokens)

    count = await session.scalar(
        text("SELECT count(*) FROM sessions WHERE user_id = :id"), {"id": tokens.claims["sub"]}
    )
    assert count == 1
    assert (await row(session, tokens.session_id)).generation == 5
    assert await is_accepted(client, tokens)


async def test_reusing_a_refresh_token_within_the_grace_period_gives_the_same_successor(
    client: AsyncClient, session: WriteSession, email: str
) -> None:
    first = await start(client, email)

    second, again, once_more = [await refresh(client, first) for _ in range(3)]

    assert second.refresh == again.refresh == once_more.refresh
    assert len({tokens.claims["jti"] for tokens in (second, again, once_more)}) == 3
    assert all([await is_accepted(client, tokens) for tokens in (second, again, once_more)])
    assert (await row(session, first.session_id)).replays == 2
    assert await can_refresh(client, again)


async def test_a_rotation_restarts_the_grace_period_and_shows_in_the_list(
    client: AsyncClient, session: WriteSession, email: str
) -> None:
    first = await start(client, email)
    long_ago = "clock_timestamp() - interval '1 hour'"
    await shift(session, first.session_id, f"rotated_at = {long_ago}, last_seen_at = {long_ago}")

    second = await refresh(client, first)
    again = await refresh(client, first)

    assert again.refresh == second.refresh
    (listed,) = (await client.get(SESSIONS, headers=second.headers)).json()["items"]
    assert datetime.now(UTC) - datetime.fromisoformat(listed["last_seen_at"]) < timedelta(minutes=1)


async def test_the_next_rotation_resets_the_count_of_replays(
    client: AsyncClient, session: WriteSession, email: str
) -> None:
    first = await start(client, email)
    second = await refresh(client, first)
    await refresh(client, first)

    await refresh(client, second)

    assert (await row(session, first.session_id)).replays == 0


@pytest.mark.parametrize(
    ("age", "is_fine"),
    [pytest.param("20 s", True, id="inside the window"), pytest.param("30.1 s", False, id="just outside the window")],
)
async def test_the_grace_period_ends(
    client: AsyncClient, session: WriteSession, email: str, age: str, *, is_fine: bool
) -> None:
    first = await start(client, email)
    second = await refresh(client, first)
    await shift(session, first.session_id, f"rotated_at = clock_timestamp() - interval '{age}'")

    assert await can_refresh(client, first) == is_fine
    assert await can_refresh(client, second) == is_fine


async def assert_stolen(
    client: AsyncClient, session: WriteSession, event: str, stolen: tuple[Pair, ...], other: Pair
) -> None:
    """Check that a session is over for every token of it, that this is on record, and that another session lives."""
    assert not any([await is_accepted(client, tokens) for tokens in stolen])
    assert not any([await can_refresh(client, tokens) for tokens in stolen])
    assert await is_accepted(client, other)
    assert await can_refresh(client, other)
    ended = await row(session, stolen[0].session_id)
    assert ended.revoke_reason == "refresh_reuse"
    (recorded,) = await events(session, event)
    assert recorded.session_id == stolen[0].session_id
    assert str(recorded.subject_id) == stolen[0].claims["sub"]
    assert recorded.actor_id is None
    assert await notices(session) == ["session_stolen"]


async def test_reusing_a_refresh_token_after_the_grace_period_ends_the_session(
    client: AsyncClient, session: WriteSession, email: str
) -> None:
    first, other = await start(client, email), await start(client, email)
    second = await refresh(client, first)
    await shift(session, first.session_id, OUTSIDE_GRACE)

    replay = await send_refresh(client, first.refresh)

    assert_oauth_error(replay, 400, "invalid_grant")
    await assert_stolen(client, session, "auth.refresh_reuse_detected", (first, second), other)


async def test_a_token_two_generations_old_ends_the_session_even_within_the_grace_period(
    client: AsyncClient, session: WriteSession, email: str
) -> None:
    first, other = await start(client, email), await start(client, email)
    second = await refresh(client, first)
    third = await refresh(client, second)

    replay = await send_refresh(client, first.refresh)

    assert_oauth_error(replay, 400, "invalid_grant")
    await assert_stolen(client, session, "auth.refresh_reuse_detected", (first, second, third), other)


async def test_without_a_grace_period_any_second_use_ends_the_session(
    database_url: str, database: Database, session: WriteSession, email: str
) -> None:
    async with with_auth(database_url, database, refresh_reuse_grace="0") as client:
        first, other = await start(client, email), await start(client, email)
        second = await refresh(client, first)

        replay = await send_refresh(client, first.refresh)

        assert_oauth_error(replay, 400, "invalid_grant")
        await assert_stolen(client, session, "auth.refresh_reuse_detected", (first, second), other)


async def test_without_a_grace_period_a_concurrent_second_use_ends_the_session(
    clone_url: str, hasher: PasswordHasher
) -> None:
    database = Database(make_settings(clone_url).database)
    app = create_app(make_settings(clone_url, auth={"refresh_reuse_grace": "0"}), database)
    async with database.begin() as session:
        account = await make_user(session, hasher)

    async with running(app) as client, app.router.lifespan_context(app) as state:
        first = await start(client, account.email)
        async with database.sessions() as early:
            # The time of a transaction is that of its first statement.
            await early.execute(text("SELECT 1"))
            second = await refresh(client, first)
            with pytest.raises(InvalidGrantError):
                await rotation.refresh(early, dict(state or {})["auth"], Actor(), first.refresh)

        assert not await can_refresh(client, second)
    await database.dispose()


async def test_a_refresh_token_from_the_future_ends_the_session(
    client: AsyncClient, session: WriteSession, email: str
) -> None:
    first, other = await start(client, email), await start(client, email)
    second = await refresh(client, first)
    # As after the restoration of a backup from before the rotation.
    await shift(session, first.session_id, "generation = 0")

    response = await send_refresh(client, second.refresh)

    assert_oauth_error(response, 400, "invalid_grant")
    await assert_stolen(client, session, "auth.refresh_from_the_future", (first, second), other)


async def test_more_than_200_replays_are_refused_and_the_session_continues(
    client: AsyncClient, session: WriteSession, email: str
) -> None:
    first = await start(client, email)
    second = await refresh(client, first)
    await shift(session, first.session_id, "replays = 199")

    last = await send_refresh(client, first.refresh)
    too_many = [await send_refresh(client, first.refresh) for _ in range(2)]

    assert pair(last).refresh == second.refresh
    for answer in too_many:
        assert_oauth_error(answer, 429, "temporarily_unavailable")
        assert answer.json()["code"] == "too_many_replays"
        assert answer.headers["Retry-After"] == "30"
    assert (await row(session, first.session_id)).replays == 200
    assert await is_accepted(client, second)
    assert await can_refresh(client, second)


# Tokens that are none


def repacked(change: Callable[[bytes, int, int, bytes], tuple[bytes, int, int, bytes]]) -> Change:
    """Change fields of a refresh token and keep its form."""

    def changed(token: str) -> str:
        fields = _LAYOUT.unpack(urlsafe_b64decode(token.removeprefix("rt1.")))
        return "rt1." + urlsafe_b64encode(_LAYOUT.pack(*change(*fields))).decode()

    return changed


FOREIGN: dict[str, Change] = {
    "empty but for its prefix": lambda _: "rt1.",
    "a word": lambda _: "token",
    "cut by one character": lambda token: token[:-1],
    "cut in half": lambda token: token[: len(token) // 2],
    "one character longer": lambda token: f"{token}A",
    "padded": lambda token: f"{token}=",
    "a space behind": lambda token: f"{token} ",
    "a newline behind": lambda token: f"{token}\n",
    "of another version": lambda token: token.replace("rt1.", "rt2."),
    "without a version": lambda token: token.removeprefix("rt1."),
    "version in upper case": lambda token: token.replace("rt1.", "RT1."),
    "in the standard alphabet": lambda _: "rt1." + "+/" * 38,
    "beyond ASCII": lambda token: f"{token[:-1]}\u00e9",
    "with one bit of the MAC changed": repacked(lambda sid, n, pepper, mac: (sid, n, pepper, mac[:-1] + bytes([mac[-1] ^ 1]))),
    "with a MAC of zeros": repacked(lambda sid, n, pepper, _: (sid, n, pepper, bytes(32))),
    "of the next generation": repacked(lambda sid, n, pepper, mac: (sid, n + 1, pepper, mac)),
    "of generation 2^63 - 2": repacked(lambda sid, _, pepper, mac: (sid, 2**63 - 2, pepper, mac)),
    "of generation 2^63 - 1": repacked(lambda sid, _, pepper, mac: (sid, 2**63 - 1, pepper, mac)),
    "of generation 2^63": repacked(lambda sid, _, pepper, mac: (sid, 2**63, pepper, mac)),
    "of generation 2^64 - 1": repacked(lambda sid, _, pepper, mac: (sid, 2**64 - 1, pepper, mac)),
    "with another pepper id": repacked(lambda sid, n, pepper, mac: (sid, n, pepper + 1, mac)),
    "with pepper 0": repacked(lambda sid, n, _, mac: (sid, n, 0, mac)),
    "of a session that is none": repacked(lambda _, n, pepper, mac: (bytes(16), n, pepper, mac)),
}  # fmt: skip


async def test_a_forged_refresh_token_is_refused_and_changes_nothing(
    client: AsyncClient, session: WriteSession, email: str
) -> None:
    tokens = await refresh(client, await start(client, email))
    before = await row(session, tokens.session_id)

    for name, change in FOREIGN.items():
        response = await send_refresh(client, change(tokens.refresh))

        assert_oauth_error(response, 400, "invalid_grant")
        assert await row(session, tokens.session_id) == before, name

    assert not await events(session, "auth.refresh_%")
    assert await can_refresh(client, tokens)


async def test_a_token_moved_to_another_session_is_refused(
    client: AsyncClient, session: WriteSession, email: str
) -> None:
    mine, other = await start(client, email), await start(client, email)
    moved = repacked(lambda _, n, pepper, mac: (other.session_id.bytes, n, pepper, mac))

    response = await send_refresh(client, moved(mine.refresh))

    assert_oauth_error(response, 400, "invalid_grant")
    assert (await row(session, other.session_id)).generation == 0
    assert await can_refresh(client, mine)
    assert await can_refresh(client, other)


async def test_a_token_of_one_kind_is_refused_as_another(client: AsyncClient, email: str) -> None:
    tokens = await start(client, email)

    as_refresh_token = await send_refresh(client, tokens.access)
    as_access_token = await client.get(ME, headers={"Authorization": f"Bearer {tokens.refresh}"})

    assert_oauth_error(as_refresh_token, 400, "invalid_grant")
    assert_problem(as_access_token, 401, "invalid_token")
    assert await can_refresh(client, tokens)


@pytest.mark.parametrize(
    ("form", "error"),
    [
        pytest.param("grant_type=refresh_token", "invalid_request", id="missing"),
        pytest.param("grant_type=refresh_token&refresh_token=", "invalid_request", id="empty"),
        pytest.param("grant_type=refresh_token&refresh_token=a&refresh_token=b", "invalid_request", id="twice"),
        pytest.param("grant_type=refresh_token&refresh_token=a&password=b", "invalid_grant", id="with a password"),
        pytest.param(f"grant_type=refresh_token&refresh_token={'a' * 10_000}", "invalid_grant", id="too long"),
        pytest.param("grant_type=refresh_token&refresh_token=%00", "invalid_grant", id="NUL"),
    ],
)
async def test_a_malformed_refresh_is_an_error(client: AsyncClient, form: str, error: str) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}

    response = await client.post(TOKEN, content=form, headers=headers)

    assert_oauth_error(response, 400, error)


# Ends


@pytest.mark.parametrize("column", ["idle_expires_at", "absolute_expires_at"])
async def test_a_session_expires(client: AsyncClient, session: WriteSession, email: str, column: str) -> None:
    tokens = await start(client, email)
    await shift(session, tokens.session_id, f"{column} = now() - interval '1 ms'")

    assert not await is_accepted(client, tokens)
    assert not await can_refresh(client, tokens)
    assert (await row(session, tokens.session_id)).revoked_at is None
    (recorded,) = await events(session, "auth.refresh_refused")
    assert recorded.detail == {"reason": "expired"}
    assert recorded.session_id == tokens.session_id


async def test_a_refresh_extends_the_idle_expiry_but_not_the_absolute_expiry(
    client: AsyncClient, session: WriteSession, email: str
) -> None:
    tokens = await start(client, email)
    await shift(session, tokens.session_id, "idle_expires_at = now() + interval '1 min'")
    before = await row(session, tokens.session_id)

    refreshed = await refresh(client, tokens)

    after = await row(session, tokens.session_id)
    assert abs(refreshed.body["refresh_expires_in"] - FORTNIGHT) <= 5
    assert (after.idle_expires_at - before.idle_expires_at).total_seconds() == FORTNIGHT - 60
    assert after.absolute_expires_at == before.absolute_expires_at


async def test_no_expiry_is_later_than_the_absolute_one(client: AsyncClient, session: WriteSession, email: str) -> None:
    tokens = await start(client, email)
    await shift(session, tokens.session_id, "absolute_expires_at = clock_timestamp() + interval '100 s'")

    refreshed = await refresh(client, tokens)

    ends = await row(session, tokens.session_id)
    assert 90 <= refreshed.body["refresh_expires_in"] <= 100
    assert 90 <= refreshed.body["expires_in"] <= 100
    assert refreshed.claims["exp"] <= ends.absolute_expires_at.timestamp()
    assert ends.idle_expires_at == ends.absolute_expires_at


@pytest.mark.parametrize("setting", ["refresh_idle_ttl", "refresh_absolute_ttl"])
async def test_an_access_token_does_not_outlive_its_session(
    database_url: str, database: Database, session: WriteSession, email: str, setting: str
) -> None:
    async with with_auth(database_url, database, **{setting: "90s"}) as client:
        first = await start(client, email)
        second = await refresh(client, first)
        again = await refresh(client, first)

    ends = (await row(session, first.session_id)).idle_expires_at.timestamp()
    for tokens in (first, second, again):
        assert 60 <= tokens.body["expires_in"] <= 90
        assert tokens.claims["exp"] - tokens.claims["iat"] == tokens.body["expires_in"]
        assert tokens.claims["exp"] <= ends
        assert tokens.body["refresh_expires_in"] <= 90


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param("UPDATE users SET is_active = false WHERE id = :id", "disabled", id="disabled"),
        pytest.param("DELETE FROM users WHERE id = :id", None, id="deleted"),
    ],
)
async def test_deleting_an_account_deletes_its_sessions(
    client: AsyncClient, session: WriteSession, email: str, change: str, reason: str | None
) -> None:
    first = await start(client, email)
    second = await refresh(client, first)

    await session.execute(text(change), {"id": UUID(first.claims["sub"])})
    await session.commit()

    assert not any([await is_accepted(client, tokens) for tokens in (first, second)])
    assert not any([await can_refresh(client, tokens) for tokens in (first, second)])
    recorded = await events(session, "auth.refresh_refused")
    assert [event.detail for event in recorded] == [{"reason": reason}] * 2 * bool(reason)
    assert await notices(session) == []


async def test_a_disabled_account_cannot_refresh_even_a_live_session(
    client: AsyncClient, session: WriteSession, email: str
) -> None:
    tokens = await start(client, email)
    for statement in (
        "ALTER TABLE users DISABLE TRIGGER users_change_is_published",
        "UPDATE users SET is_active = false",
        "ALTER TABLE users ENABLE TRIGGER users_change_is_published",
    ):
        await session.execute(text(statement))
    await session.commit()

    assert not await is_accepted(client, tokens)
    assert not await can_refresh(client, tokens)
    assert (await row(session, tokens.session_id)).generation == 0


async def test_refreshing_an_ended_session_is_recorded_only_until_the_limit(
    client: AsyncClient, session: WriteSession, email: str
) -> None:
    tokens = await start(client, email)
    await shift(session, tokens.session_id, "revoked_at = now(), revoke_reason = 'admin'")
    await session.execute(text("UPDATE rate_limits SET hits = 0"))
    await session.commit()

    first = await send_refresh(client, tokens.refresh)
    await session.execute(text("UPDATE rate_limits SET hits = 100 WHERE key LIKE 'token-misuse%'"))
    await session.commit()
    second = await send_refresh(client, tokens.refresh)

    assert_oauth_error(first, 400, "invalid_grant")
    assert_oauth_error(second, 429, "temporarily_unavailable")
    (recorded,) = await events(session, "auth.refresh_refused")
    assert recorded.detail == {"reason": "admin"}
    assert str(recorded.subject_id) == tokens.claims["sub"]


async def test_ended_sessions_are_deleted_after_a_month(
    client: AsyncClient, settings: Settings, database: Database, session: WriteSession, email: str
) -> None:
    kept, live, revoked, expired = [await start(client, email) for _ in range(4)]
    await shift(session, kept.session_id, "revoked_at = now() - interval '29 days', revoke_reason = 'logout'")
    await shift(session, revoked.session_id, "revoked_at = now() - interval '31 days', revoke_reason = 'logout'")
    await shift(session, expired.session_id, "absolute_expires_at = now() - interval '31 days'")
    stale = text("UPDATE revocations SET expires_at = now() - interval '1 s' WHERE subject = :id")
    await session.execute(stale, {"id": revoked.session_id})
    await session.commit()
    keys = parse_key_ring(KEY_SET, source="tests")

    await jobs.purge(Work(database, make_mailer(settings.of(MailSettings)), keys, settings))

    remaining = set((await session.scalars(text("SELECT id FROM sessions"))).all())
    published = set((await session.scalars(text("SELECT subject FROM revocations"))).all())
    assert {tokens.session_id for tokens in (kept, live)} <= remaining
    assert not {tokens.session_id for tokens in (revoked, expired)} & remaining
    assert kept.session_id in published
    assert revoked.session_id not in published


# Scopes


async def test_a_refresh_may_narrow_the_scope_of_its_access_token(client: AsyncClient, admin_email: str) -> None:
    tokens = await start(client, admin_email)

    narrowed = await refresh(client, tokens, scope="users:read")
    again = await refresh(client, tokens, scope="users:read")
    whole = await refresh(client, narrowed)

    assert narrowed.body["scope"] == narrowed.claims["scope"] == "users:read"
    assert again.body["scope"] == again.claims["scope"] == "users:read"
    assert whole.body["scope"] == ADMINISTRATION


async def test_a_refresh_never_exceeds_the_scopes_of_the_login(
    client: AsyncClient, session: WriteSession, admin_email: str
) -> None:
    tokens = await start(client, admin_email, scope="users:read")

    refused = await send_refresh(client, tokens.refresh, scope="users:read users:write")

    assert_oauth_error(refused, 400, "invalid_scope")
    assert (await row(session, tokens.session_id)).generation == 0
    refreshed = await refresh(client, tokens)
    assert refreshed.body["scope"] == "users:read"


async def test_a_login_without_requested_scopes_follows_later_changes_of_the_role(
    client: AsyncClient, session: WriteSession, email: str
) -> None:
    tokens = await start(client, email)
    await session.execute(text("UPDATE users SET role = 'admin' WHERE email = :email"), {"email": email})
    await session.commit()

    assert tokens.body["scope"] == ""
    assert (await refresh(client, tokens)).body["scope"] == ADMINISTRATION


async def test_a_refresh_gives_the_current_scopes_of_the_role(
    client: AsyncClient, session: WriteSession, admin_email: str
) -> None:
    tokens = await start(client, admin_email, scope="users:read")
    demoted = "UPDATE users SET role = 'user', authz_version = authz_version + 1 WHERE email = :email"
    await session.execute(text(demoted), {"email": admin_email})
    await session.commit()

    refreshed = await refresh(client, tokens)

    assert refreshed.body["scope"] == refreshed.claims["scope"] == ""
    assert not await is_accepted(client, tokens)
    assert await is_accepted(client, refreshed)


# How many, and from where


async def test_the_session_idle_longest_is_evicted_for_a_new_one(
    database_url: str, database: Database, session: WriteSession, email: str
) -> None:
    async with with_auth(database_url, database, sessions_per_user=2) as client:
        oldest, idle = await start(client, email), await start(client, email)
        await shift(session, idle.session_id, "last_seen_at = last_seen_at - interval '1 h'")

        newest = await start(client, email)

        assert [await is_accepted(client, tokens) for tokens in (oldest, idle, newest)] == [True, False, True]
        assert not await can_refresh(client, idle)
    assert (await row(session, idle.session_id)).revoke_reason == "evicted"


async def test_only_live_sessions_of_the_same_account_are_evicted(
    database_url: str, database: Database, session: WriteSession, email: str, admin_email: str
) -> None:
    async with with_auth(database_url, database, sessions_per_user=3) as client:
        others = [await start(client, admin_email) for _ in range(3)]
        oldest, *ended = [await start(client, email) for _ in range(3)]
        for tokens in ended:
            await client.post(REVOKE, data={"token": tokens.refresh})

        newest = await start(client, email)

        assert all([await is_accepted(client, tokens) for tokens in (*others, oldest, newest)])
    reasons = (await session.scalars(text("SELECT revoke_reason FROM sessions WHERE revoked_at IS NOT NULL"))).all()
    assert reasons == ["logout", "logout"]


async def test_fifty_concurrent_logins_leave_the_maximum_number_of_sessions(
    clone_url: str, hasher: PasswordHasher
) -> None:
    settings = make_settings(
        clone_url,
        auth={"hash_queue": 100},
        rate_limit={"enabled": False},
        database={"lock_timeout": "10s", "pool_wait": "10s"},
    )
    database = Database(settings.database)
    async with database.begin() as session:
        account = await make_user(session, hasher)

    async with running(create_app(settings, database)) as client:
        opened = await asyncio.gather(*(start(client, account.email) for _ in range(50)))
        live = [tokens for tokens in opened if await is_accepted(client, tokens)]

    async with database.read_sessions() as reading:
        kept = (await reading.scalars(text("SELECT id FROM sessions WHERE revoked_at IS NULL"))).all()
    await database.dispose()
    assert len(live) == 25
    assert {tokens.session_id for tokens in live} == set(kept)


async def test_a_login_stores_where_it_comes_from(client: AsyncClient, session: WriteSession, email: str) -> None:
    user_agent = f"Browser/1.2\t{'x' * 300}"

    tokens = await start(client, email, user_agent=user_agent)

    noted = await row(session, tokens.session_id)
    assert noted.user_agent == f"Browser/1.2{'x' * 300}"[:256]
    assert noted.ip_prefix is not None


async def test_the_audit_log_has_the_session_of_a_login(client: AsyncClient, session: WriteSession, email: str) -> None:
    tokens = await start(client, email)

    (recorded,) = await events(session, "auth.login_succeeded")
    assert recorded.session_id == tokens.session_id


async def test_a_login_may_have_no_user_agent(client: AsyncClient, session: WriteSession, email: str) -> None:
    del client.headers["User-Agent"]

    tokens = await start(client, email)

    assert (await row(session, tokens.session_id)).user_agent is None


@pytest.mark.parametrize(
    ("known", "now", "is_new"),
    [
        pytest.param("Browser/1.0 (Linux)", "Browser/1.0 (Linux)", False, id="the same"),
        pytest.param("Browser/1.0 (Linux)", "Browser/127.5_3 (Linux)", False, id="after an update"),
        pytest.param("Browser/1.0 (Linux)", "Browser/1.0 (Windows)", True, id="another system"),
    ],
)
async def test_the_owner_gets_a_notice_about_a_login_from_a_new_device(
    client: AsyncClient, session: WriteSession, email: str, known: str, now: str, *, is_new: bool
) -> None:
    await start(client, email, user_agent=known)
    assert await notices(session) == []

    await start(client, email, user_agent=now)

    assert await notices(session) == ["new_device"] * is_new


# The list, and ending sessions from it


async def test_an_owner_sees_their_live_sessions(client: AsyncClient, session: WriteSession, email: str) -> None:
    first, second, ended, expired = [await start(client, email, user_agent=f"Browser {n}") for n in "abcd"]
    await shift(session, first.session_id, "last_seen_at = last_seen_at - interval '1 h'")
    await shift(session, ended.session_id, "revoked_at = now(), revoke_reason = 'logout'")
    await shift(session, expired.session_id, "idle_expires_at = now()")

    response = await client.get(SESSIONS, headers=first.headers)

    page = response.json()
    assert [(item["id"], item["user_agent"], item["is_current"]) for item in page["items"]] == [
        (str(second.session_id), "Browser b", False),
        (str(first.session_id), "Browser a", True),
    ]
    assert set(page["items"][0]) == {"id", "created_at", "last_seen_at", "user_agent", "ip_prefix", "acr", "is_current"}
    assert page["next_cursor"] is None


async def test_the_list_of_sessions_comes_in_pages(client: AsyncClient, email: str) -> None:
    opened = [await start(client, email) for _ in range(3)]
    found: list[str] = []
    query = {"limit": "2"}

    while query:
        page = (await client.get(SESSIONS, params=query, headers=opened[0].headers)).json()
        found += [item["id"] for item in page["items"]]
        query = {"limit": "2", "cursor": page["next_cursor"]} if page["next_cursor"] else {}

    assert found == [str(tokens.session_id) for tokens in reversed(opened)]


@pytest.mark.usefixtures("user")
async def test_a_user_cannot_see_the_sessions_of_others(client: AsyncClient, email: str) -> None:
    mine = await start(client, email)

    page = (await client.get(SESSIONS, headers=mine.headers)).json()

    assert [item["id"] for item in page["items"]] == [str(mine.session_id)]


async def test_ending_a_session_ends_its_tokens_at_once(client: AsyncClient, session: WriteSession, email: str) -> None:
    mine, lost = await start(client, email), await start(client, email)

    response = await client.delete(f"{SESSIONS}/{lost.session_id}", headers=mine.headers)

    assert response.status_code == 204
    assert not await is_accepted(client, lost)
    assert not await can_refresh(client, lost)
    assert await is_accepted(client, mine)
    (recorded,) = await events(session, "auth.session_ended")
    assert recorded.detail == {"ended": str(lost.session_id)}
    assert recorded.session_id == mine.session_id
    assert (await row(session, lost.session_id)).revoke_reason == "user"


async def test_an_owner_may_end_the_session_they_are_in(client: AsyncClient, email: str) -> None:
    mine = await start(client, email)

    response = await client.delete(f"{SESSIONS}/{mine.session_id}", headers=mine.headers)

    assert response.status_code == 204
    assert not await is_accepted(client, mine)


async def test_only_live_sessions_of_ones_own_can_be_ended(
    client: AsyncClient, session: WriteSession, user: LoggedIn, email: str
) -> None:
    mine, ended, theirs = await start(client, email), await start(client, email), await start(client, user.email)
    await client.delete(f"{SESSIONS}/{ended.session_id}", headers=mine.headers)

    for session_id in (theirs.session_id, ended.session_id, UUID(int=0), "current"):
        response = await client.delete(f"{SESSIONS}/{session_id}", headers=mine.headers)
        assert response.status_code == 404, session_id

    assert await is_accepted(client, theirs)
    assert len(await events(session, "auth.session_ended")) == 1


async def test_an_owner_ends_all_their_other_sessions(
    client: AsyncClient, session: WriteSession, user: LoggedIn, email: str
) -> None:
    mine, *others = [await start(client, email) for _ in range(3)]
    theirs = await start(client, user.email)

    response = await client.delete(SESSIONS, headers=mine.headers)

    assert response.status_code == 204
    assert not any([await is_accepted(client, tokens) for tokens in others])
    assert not any([await can_refresh(client, tokens) for tokens in others])
    assert await is_accepted(client, mine)
    assert await is_accepted(client, theirs)
    (recorded,) = await events(session, "auth.other_sessions_ended")
    assert recorded.detail == {"count": 2}


async def test_an_administrator_ends_all_sessions_of_an_account(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, email: str
) -> None:
    opened = [await start(client, email) for _ in range(2)]

    response = await client.delete(f"/api/v1/users/{opened[0].claims['sub']}/sessions", headers=admin.headers)

    assert response.status_code == 204
    assert not any([await is_accepted(client, tokens) for tokens in opened])
    assert not any([await can_refresh(client, tokens) for tokens in opened])
    assert (await client.get(ME, headers=admin.headers)).status_code == 200
    (recorded,) = await events(session, "auth.all_sessions_ended")
    assert recorded.detail == {"count": 2, "reason": "admin"}
    assert {(await row(session, tokens.session_id)).revoke_reason for tokens in opened} == {"admin"}
    assert str(recorded.actor_id) == admin.user_id


async def test_the_sessions_of_an_unknown_account_cannot_be_ended(client: AsyncClient, admin: LoggedIn) -> None:
    response = await client.delete(f"/api/v1/users/{UUID(int=0)}/sessions", headers=admin.headers)

    assert_problem(response, 404, "user_not_found")


async def test_other_owners_cannot_end_the_sessions_of_an_account(
    client: AsyncClient, user: LoggedIn, email: str
) -> None:
    tokens = await start(client, email)

    response = await client.delete(f"/api/v1/users/{tokens.claims['sub']}/sessions", headers=user.headers)

    assert_problem(response, 403, "insufficient_scope")
    assert await is_accepted(client, tokens)


# Logging out (RFC 7009)


@pytest.mark.parametrize(
    ("which", "hint"),
    [
        ("refresh", None),
        ("refresh", "access_token"),
        ("refresh", "junk"),
        ("access", None),
        ("access", "refresh_token"),
        ("access", ""),
        ("spent refresh", "refresh_token"),
        ("older access", "access_token"),
    ],
)
async def test_any_token_of_a_session_logs_it_out(
    client: AsyncClient, session: WriteSession, email: str, which: str, hint: str | None
) -> None:
    first, other = await start(client, email), await start(client, email)
    second = await refresh(client, first)
    token = {
        "refresh": second.refresh,
        "access": second.access,
        "spent refresh": first.refresh,
        "older access": first.access,
    }[which]

    response = await client.post(REVOKE, data={"token": token, **({} if hint is None else {"token_type_hint": hint})})

    assert response.status_code == 200
    assert not any([await is_accepted(client, tokens) for tokens in (first, second)])
    assert not any([await can_refresh(client, tokens) for tokens in (first, second)])
    assert await is_accepted(client, other)
    assert await can_refresh(client, other)
    (recorded,) = await events(session, "auth.logged_out")
    assert (str(recorded.actor_id), recorded.session_id) == (first.claims["sub"], first.session_id)
    assert (await row(session, first.session_id)).revoke_reason == "logout"


@pytest.mark.parametrize("kind", ["access", "refresh"])
async def test_logging_out_clears_what_the_browser_has_stored(client: AsyncClient, email: str, kind: str) -> None:
    tokens = await start(client, email)

    first, again = [await client.post(REVOKE, data={"token": getattr(tokens, kind)}) for _ in range(2)]

    assert first.headers["clear-site-data"] == '"storage"'
    assert "clear-site-data" not in again.headers


async def test_a_token_that_ends_no_session_clears_nothing(client: AsyncClient, email: str) -> None:
    tokens = await start(client, email)

    for token in (
        "nonsense",
        "x" * 5000,
        "eyJhbGciOiJub25lIn0.e30.",
        *(change(tokens.refresh) for change in FOREIGN.values()),
    ):
        response = await client.post(REVOKE, data={"token": token}, headers={"Origin": "https://evil.example"})

        assert response.status_code == 200
        assert "clear-site-data" not in response.headers, token
    assert await is_accepted(client, tokens)


async def test_logging_out_with_an_unknown_token_changes_nothing_and_is_no_error(
    client: AsyncClient, session: WriteSession, email: str
) -> None:
    tokens = await start(client, email)

    for name, change in FOREIGN.items():
        response = await client.post(REVOKE, data={"token": change(tokens.refresh)})

        assert response.status_code == 200, name
        assert (await row(session, tokens.session_id)).revoked_at is None, name

    assert await is_accepted(client, tokens)
    assert not await events(session, "auth.logged_out")


async def test_every_response_to_a_logout_that_ends_no_session_is_the_same(client: AsyncClient, email: str) -> None:
    tokens = await start(client, email)

    answers = [
        await client.post(REVOKE, data={"token": token})
        for token in (tokens.refresh, tokens.refresh, tokens.access, "junk", tokens.refresh[:-1], "x" * 5000)
    ]

    def shown(answer: Any) -> tuple[int, bytes, dict[str, str]]:
        return answer.status_code, answer.content, {k: v for k, v in answer.headers.items() if k != "x-request-id"}

    assert all(shown(answer) == shown(answers[1]) for answer in answers[1:])
    assert shown(answers[0])[:2] == shown(answers[1])[:2]


async def test_logging_out_twice_is_recorded_once(client: AsyncClient, session: WriteSession, email: str) -> None:
    tokens = await start(client, email)

    for token in (tokens.refresh, tokens.refresh, tokens.access):
        await client.post(REVOKE, data={"token": token})

    assert len(await events(session, "auth.logged_out")) == 1


@pytest.mark.parametrize(
    "form",
    ["", "token=", "token=a&token=b", "token_type_hint=access_token", "token=a&client_secret="],
)
async def test_a_malformed_logout_is_an_error(client: AsyncClient, form: str) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}

    response = await client.post(REVOKE, content=form, headers=headers)

    if form == "token=a&client_secret=":
        assert response.status_code == 200
    else:
        assert_oauth_error(response, 400, "invalid_request")


async def test_a_logout_without_a_database_is_told_to_retry(settings: Settings) -> None:
    database = Database(make_settings("postgresql://nobody@127.0.0.1:1/nothing").database)
    token = "rt1." + "A" * 76

    async with running(create_app(settings, database)) as client:
        response = await client.post(REVOKE, data={"token": token})
    await database.dispose()

    assert_oauth_error(response, 503, "temporarily_unavailable")
    assert int(response.headers["Retry-After"]) >= 1


# Giving the password again (RFC 9470)


async def test_a_sensitive_operation_needs_a_recent_login_and_gets_it_from_the_password(
    client: AsyncClient, session: WriteSession, email: str
) -> None:
    tokens = await start(client, email)
    await shift(session, tokens.session_id, "auth_time = clock_timestamp() - interval '400 s'")
    old = await refresh(client, tokens)

    refused = await client.delete(ME, headers=old.headers)
    renewed = pair(await client.post(REAUTHENTICATE, json={"password": PASSWORD}, headers=old.headers))
    deleted = await client.delete(ME, headers=renewed.headers)

    assert_problem(refused, 401, "insufficient_user_authentication")
    challenge = refused.headers["WWW-Authenticate"]
    assert challenge.startswith(f'Bearer realm="{product.SLUG}", error="insufficient_user_authentication"')
    assert challenge.endswith("max_age=300")
    assert deleted.status_code == 204


async def test_giving_the_password_again_keeps_the_session_and_its_refresh_token(
    client: AsyncClient, session: WriteSession, email: str
) -> None:
    first = await start(client, email)
    await shift(session, first.session_id, "auth_time = now() - interval '400 s'")
    second = await refresh(client, first)
    await shift(session, first.session_id, "last_seen_at = now() - interval '1 hour'")

    renewed = pair(await client.post(REAUTHENTICATE, json={"password": PASSWORD}, headers=second.headers))

    assert (await row(session, first.session_id)).last_seen_at > datetime.now(UTC) - timedelta(minutes=1)
    assert renewed.session_id == first.session_id
    assert renewed.refresh == second.refresh
    assert renewed.claims["auth_time"] > second.claims["auth_time"]
    after = await refresh(client, renewed)
    assert after.claims["auth_time"] == renewed.claims["auth_time"]
    (recorded,) = await events(session, "auth.reauthenticated")
    assert recorded.session_id == first.session_id


async def test_a_wrong_password_renews_nothing(client: AsyncClient, session: WriteSession, email: str) -> None:
    tokens = await start(client, email)
    before = await row(session, tokens.session_id)

    response = await client.post(REAUTHENTICATE, json={"password": "wrong password"}, headers=tokens.headers)

    assert_problem(response, 403, "wrong_password")
    assert await row(session, tokens.session_id) == before
    assert len(await events(session, "auth.password_confirmation_failed")) == 1
    assert await is_accepted(client, tokens)


async def test_giving_the_password_again_does_not_revive_an_ended_session(client: AsyncClient, email: str) -> None:
    tokens = await start(client, email)
    await client.post(REVOKE, data={"token": tokens.refresh})

    response = await client.post(REAUTHENTICATE, json={"password": PASSWORD}, headers=tokens.headers)

    assert_problem(response, 401, "invalid_token")


async def test_a_session_that_ended_during_hashing_stays_ended(
    client: AsyncClient, session: WriteSession, email: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = await start(client, email)
    verify = PasswordHasher.verify

    async def slow(hasher: PasswordHasher, password: str, stored: str | None) -> Any:
        await shift(session, tokens.session_id, "revoked_at = now(), revoke_reason = 'user'")
        return await verify(hasher, password, stored)

    monkeypatch.setattr(PasswordHasher, "verify", slow)

    response = await client.post(REAUTHENTICATE, json={"password": PASSWORD}, headers=tokens.headers)

    assert_problem(response, 401, "invalid_token")
    assert not await events(session, "auth.reauthenticated")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE users SET is_active = false WHERE email = :email",
        "UPDATE users SET authz_version = authz_version + 1 WHERE email = :email",
        "DELETE FROM users WHERE email = :email",
    ],
)
async def test_a_login_whose_account_changes_during_hashing_is_refused(
    client: AsyncClient, session: WriteSession, email: str, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    verify = PasswordHasher.verify

    async def slow(hasher: PasswordHasher, password: str, stored: str | None) -> Any:
        await session.execute(text(change), {"email": email})
        await session.commit()
        return await verify(hasher, password, stored)

    monkeypatch.setattr(PasswordHasher, "verify", slow)

    response = await client.post(TOKEN, data={"grant_type": "password", "username": email, "password": PASSWORD})

    assert_oauth_error(response, 400, "invalid_grant")
    assert await session.scalar(text("SELECT count(*) FROM sessions")) == 0


# Peppers


def with_peppers(*peppers: tuple[int, str]) -> str:
    """Make the tests' key set with peppers of these ids and states; the pepper of an id is always the same."""
    signing = [key for key in json.loads(KEY_SET)["keys"] if key["kty"] != "oct"]
    made = [
        {"kty": "oct", "k": urlsafe_b64encode(bytes([number]) * 32).decode(), "kid": str(number), "state": state}
        for number, state in peppers
    ]
    return json.dumps({"keys": [*signing, *made]})


async def test_tokens_move_to_a_new_pepper_when_they_rotate(
    database_url: str, database: Database, session: WriteSession, email: str
) -> None:
    before, rotating, after = (
        with_peppers((1, "active"), (2, "next")),
        with_peppers((1, "retiring"), (2, "active")),
        with_peppers((2, "active")),
    )
    async with with_auth(database_url, database, signing_keys=before) as client:
        moved, left = await start(client, email), await start(client, email)
    async with with_auth(database_url, database, signing_keys=rotating) as client:
        moved = await refresh(client, moved)

    async with with_auth(database_url, database, signing_keys=after) as client:
        assert await can_refresh(client, moved)
        assert not await can_refresh(client, left)
    assert (await row(session, moved.session_id)).pepper_id == 2


async def test_a_worker_that_does_not_know_the_pepper_of_a_session_gives_the_same_generation(
    database_url: str, database: Database, session: WriteSession, email: str
) -> None:
    old, both = with_peppers((1, "active")), with_peppers((1, "retiring"), (2, "active"))
    async with with_auth(database_url, database, signing_keys=old) as client:
        first = await start(client, email)
    async with with_auth(database_url, database, signing_keys=both) as client:
        second = await refresh(client, first)
    async with with_auth(database_url, database, signing_keys=old) as client:
        replayed = await refresh(client, first)

    async with with_auth(database_url, database, signing_keys=both) as client:
        assert (await refresh(client, second)).refresh == (await refresh(client, replayed)).refresh
    assert (await row(session, first.session_id)).generation == 2


async def test_a_replay_after_a_change_of_pepper_gives_the_same_successor(
    database_url: str, database: Database, email: str
) -> None:
    old, both = with_peppers((1, "active")), with_peppers((1, "retiring"), (2, "active"))
    async with with_auth(database_url, database, signing_keys=old) as client:
        first = await start(client, email)
        second = await refresh(client, first)

    async with with_auth(database_url, database, signing_keys=both) as client:
        assert (await refresh(client, first)).refresh == second.refresh


# Under pressure


async def test_a_refresh_that_cannot_lock_its_session_is_told_to_retry_and_not_used_up(
    clone_url: str, hasher: PasswordHasher
) -> None:
    settings = make_settings(clone_url, database={"lock_timeout": "50ms"})
    database = Database(settings.database)
    async with database.begin() as session:
        account = await make_user(session, hasher)

    async with running(create_app(settings, database)) as client:
        tokens = await start(client, account.email)
        async with database.begin() as holding:
            await holding.execute(text("SELECT 1 FROM sessions WHERE id = :id FOR UPDATE"), {"id": tokens.session_id})
            response = await send_refresh(client, tokens.refresh)

        assert_oauth_error(response, 503, "temporarily_unavailable")
        assert int(response.headers["Retry-After"]) >= 1
        assert await can_refresh(client, tokens)
    await database.dispose()


_WAITING = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")


async def test_a_login_waits_for_a_change_of_its_account_and_sees_it(clone_url: str, hasher: PasswordHasher) -> None:
    settings = make_settings(clone_url)
    database = Database(settings.database)
    async with database.begin() as session:
        account = await make_user(session, hasher)
    form = {"grant_type": "password", "username": account.email, "password": PASSWORD}

    async with running(create_app(settings, database)) as client, database.read_sessions() as watching:
        async with database.begin() as disabling:
            await disabling.execute(text("UPDATE users SET is_active = false"))
            login = asyncio.create_task(client.post(TOKEN, data=form))
            async with asyncio.timeout(5):
                while not login.done() and not await watching.scalar(_WAITING):  # noqa: ASYNC110  # In the database.
                    await asyncio.sleep(0.005)
        response = await login

        assert_oauth_error(response, 400, "invalid_grant")
        assert await watching.scalar(text("SELECT count(*) FROM sessions")) == 0
    await database.dispose()


async def test_a_session_cannot_end_for_an_unknown_reason(
    client: AsyncClient, session: WriteSession, email: str
) -> None:
    tokens = await start(client, email)

    with pytest.raises(Exception, match="ck_sessions_revoke_reason"):
        await shift(session, tokens.session_id, "revoke_reason = 'a whim'")
    await session.rollback()
