"""The revocation listener, with a real database and a faulty network."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from httpx2 import AsyncClient
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import make_url

from app.auth.access import revocation
from app.auth.access.revocation import MAX_AGE, RevocationListener, RevocationSet
from app.core import product
from app.core.config import DatabaseSettings
from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from tests.auth.login_sessions import Pair, refresh, start
from tests.auth.test_token_status import (
    ENDS,
    PATIENCE,
    WHO,
    add_account,
    answers,
    is_ready,
    run,
    until,
    with_who,
)
from tests.conftest import cloned, make_settings, running
from tests.proxy import Proxy, proxied

NOTIFIED = "SELECT publish_revocation(1::smallint, $1, NULL, NULL)"
UNNOTIFIED = "INSERT INTO revocations (kind, subject, expires_at) VALUES (1, $1, now() + interval '17 minutes')"


@pytest.fixture(scope="module")
async def shared_url(template_url: str) -> AsyncIterator[str]:
    """A database with real connections, for tests that leave each other alone in it."""
    async with cloned(template_url) as url:
        yield url


def database_settings(url: str, **more: Any) -> DatabaseSettings:
    return DatabaseSettings.model_validate({"url": url, "connect_timeout": "500ms", **more})


@asynccontextmanager
async def listening(url: str) -> AsyncIterator[RevocationListener]:
    """Run a listener, and wait until it knows everything."""
    listener = RevocationListener(database_settings(url))
    listener.start()
    try:
        async with asyncio.timeout(10):
            await listener.loaded.wait()
        yield listener
    finally:
        await listener.stop()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(plain)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def connection(shared_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the test's own."""
    async with connected(shared_url) as connection:
        yield connection


def knows(listener: RevocationListener, session_id: UUID) -> bool:
    return listener.is_revoked(session_id=session_id, user_id=UUID(int=0), version=1)


def lacks(listener: RevocationListener, session_id: UUID) -> bool:
    return not knows(listener, session_id)


async def becomes(condition: Callable[[], bool], *, within: float) -> float:
    """Wait until it is so, and give the seconds that took."""

    async def asked() -> bool:
        return condition()

    return await until(asked, within=within)


def polls_of(proxy: Proxy) -> int:
    return proxy.sent.count(b"pg_snapshot_xmin")


async def nudge(connection: asyncpg.Connection) -> None:
    """Send what no listener can read: it polls at once."""
    await connection.execute("NOTIFY revocations, 'nudge'")


# From the database to memory


async def test_earlier_revocations_are_known_from_the_start(shared_url: str, connection: asyncpg.Connection) -> None:
    session_id, user_id, over = uuid4(), uuid4(), uuid4()
    await connection.execute(NOTIFIED, session_id)
    await connection.execute("SELECT publish_revocation(2::smallint, $1, 5, NULL)", user_id)
    await connection.execute(
        "INSERT INTO revocations (kind, subject, expires_at) VALUES (1, $1, now() - interval '1 s')", over
    )

    async with listening(shared_url) as listener:
        nobody = UUID(int=0)
        assert listener.is_revoked(session_id=session_id, user_id=nobody, version=1)
        assert listener.is_revoked(session_id=nobody, user_id=user_id, version=4)
        assert not listener.is_revoked(session_id=nobody, user_id=user_id, version=5)
        assert not listener.is_revoked(session_id=nobody, user_id=nobody, version=1)
        assert not knows(listener, over)


@pytest.mark.usefixtures("without_polls")
async def test_a_revocation_is_known_as_soon_as_it_is_committed(
    shared_url: str, connection: asyncpg.Connection
) -> None:
    committed, withdrawn = uuid4(), uuid4()
    async with listening(shared_url) as listener:
        assert listener.mode == "listening"
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(NOTIFIED, withdrawn)
        await transaction.rollback()

        await connection.execute(NOTIFIED, committed)
        await becomes(lambda: knows(listener, committed), within=PATIENCE)

        assert not knows(listener, withdrawn)


async def test_the_listener_listens_before_it_reads(shared_url: str) -> None:
    async with proxied(shared_url) as proxy, listening(proxy.url):
        sent = bytes(proxy.sent)

    assert 0 < sent.index(b"LISTEN") < sent.index(b"pg_snapshot_xmin")


async def test_the_poll_finds_a_revocation_whose_notification_was_lost(
    shared_url: str, connection: asyncpg.Connection
) -> None:
    session_id = uuid4()
    async with proxied(shared_url) as proxy, listening(proxy.url) as listener:
        # The notification that it sends itself brings an early poll, which must not find the row.
        await becomes(lambda: polls_of(proxy) >= 2, within=PATIENCE)
        await asyncio.sleep(0.3)
        await connection.execute(UNNOTIFIED, session_id)
        before = polls_of(proxy)

        await becomes(lambda: knows(listener, session_id), within=PATIENCE)

        # One may have been under way.
        assert polls_of(proxy) - before <= 2


@pytest.mark.usefixtures("without_polls")
@pytest.mark.parametrize("held_back", [False, True])
async def test_transactions_that_commit_out_of_order_lose_no_revocation(
    shared_url: str, connection: asyncpg.Connection, *, held_back: bool
) -> None:
    early, late, last = uuid4(), uuid4(), uuid4()
    async with listening(shared_url) as listener, connected(shared_url) as slow, connected(shared_url) as long:
        # One that holds everybody's horizon back, or does not, and one that writes first and commits last.
        holding, slowly = long.transaction(), slow.transaction()
        await holding.start()
        if held_back:
            await long.execute("SELECT pg_current_xact_id()")
        await slowly.start()
        await slow.execute(UNNOTIFIED, early)

        await connection.execute(UNNOTIFIED, late)
        await nudge(connection)
        await becomes(lambda: knows(listener, late), within=PATIENCE)
        assert not knows(listener, early)
        await slowly.commit()
        await nudge(connection)
        await becomes(lambda: knows(listener, early), within=PATIENCE)
        await holding.commit()
        await connection.execute(UNNOTIFIED, last)
        await nudge(connection)
        await becomes(lambda: knows(listener, last), within=PATIENCE)


async def test_the_listener_waits_for_the_schema(
    shared_url: str, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    await connection.execute("ALTER TABLE revocations RENAME TO later")
    listener = RevocationListener(database_settings(shared_url))
    listener.start()
    await asyncio.sleep(0.3)
    before = listener.unready(), listener.is_current

    await connection.execute("ALTER TABLE later RENAME TO revocations")
    async with asyncio.timeout(10):
        await listener.loaded.wait()
    after = listener.unready(), listener.is_current
    await listener.stop()

    assert before == ("the revocations have not been read yet", False)
    assert after == (None, True)
    assert "lost its connection" not in caplog.text, "nothing is lost that there never was"


async def test_the_listener_connects_as_the_engines_do(shared_url: str) -> None:
    url = make_url(shared_url).update_query_dict({"ssl": "prefer"})

    async with listening(url.render_as_string(hide_password=False)) as listener:
        assert listener.is_current


async def test_a_host_that_does_not_respond_is_skipped(shared_url: str) -> None:
    url = make_url(shared_url)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = (f"127.0.0.1:{silent.getsockname()[1]}", f"{url.host}:{url.port}")
        several = url.set(host=None, port=None).update_query_dict({"host": hosts})

        async with listening(several.render_as_string(hide_password=False)) as listener:
            assert listener.is_current


async def test_the_listener_logs_that_the_revocations_are_loaded(
    shared_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="app.auth.access.revocation"):
        async with listening(shared_url):
            pass

    (line,) = [one for one in caplog.records if one.message == "revocations loaded"]
    assert line.__dict__["mode"] == "listening"
    assert isinstance(line.__dict__["entries"], int)


async def test_the_listener_uses_the_direct_url(shared_url: str) -> None:
    pooler = make_url(shared_url).set(port=1).render_as_string(hide_password=False)
    listener = RevocationListener(database_settings(pooler, direct_url=shared_url))

    listener.start()
    async with asyncio.timeout(10):
        await listener.loaded.wait()
    await listener.stop()

    assert listener.mode == "listening"


async def test_stopping_a_listener_that_was_not_started_is_no_error(shared_url: str) -> None:
    listener = RevocationListener(database_settings(shared_url))

    await listener.stop()

    assert listener.age is None
    assert not listener.is_current


# Notifications that are none of ours


@pytest.mark.parametrize(
    "payload",
    [
        "",
        " ",
        "1",
        "1 ",
        "1 not-a-uuid",
        "x 00000000-0000-0000-0000-000000000001",
        "2 00000000-0000-0000-0000-000000000001 x",
        "4 00000000-0000-0000-0000-000000000001",
        "2 00000000-0000-0000-0000-000000000001",
        "2 00000000-0000-0000-0000-000000000001 -1",
        "9" * 5000,
        f"2 00000000-0000-0000-0000-000000000001 {'9' * 5000}",
        "\u0661 \U0001f98a",
        "3",
        "3 ",
        "3 a key",
        "3 00000000-0000-0000-0000-000000000001",
    ],
)
def test_a_payload_without_a_meaning_revokes_nothing(payload: str) -> None:
    listener = RevocationListener(DatabaseSettings.model_validate({"url": "postgresql://nobody@127.0.0.1:1/nothing"}))

    listener._apply(payload)

    assert not listener.is_revoked(session_id=UUID(int=1), user_id=UUID(int=1), version=0)


@pytest.mark.usefixtures("without_polls")
async def test_a_notification_that_cannot_be_parsed_triggers_a_poll(
    shared_url: str, connection: asyncpg.Connection
) -> None:
    session_id = uuid4()
    async with listening(shared_url) as listener:
        await connection.execute(UNNOTIFIED, session_id)
        await nudge(connection)

        await becomes(lambda: knows(listener, session_id), within=PATIENCE)


@pytest.mark.usefixtures("without_polls")
async def test_a_forged_notification_can_only_revoke(shared_url: str, connection: asyncpg.Connection) -> None:
    session_id, user_id = uuid4(), uuid4()
    async with listening(shared_url) as listener:
        await connection.execute("SELECT publish_revocation(2::smallint, $1, 5, NULL)", user_id)
        await connection.execute("SELECT pg_notify('revocations', $1)", f"2 {user_id} 3")
        await connection.execute("SELECT pg_notify('revocations', $1)", f"1 {session_id}")
        await becomes(lambda: knows(listener, session_id), within=PATIENCE)

        assert listener.is_revoked(session_id=UUID(int=0), user_id=user_id, version=4)
        assert not listener.is_revoked(session_id=UUID(int=0), user_id=user_id, version=5)


async def test_a_flood_of_forged_notifications_costs_few_polls_and_hides_nothing(
    shared_url: str, connection: asyncpg.Connection
) -> None:
    session_id = uuid4()
    async with proxied(shared_url) as proxy, listening(proxy.url) as listener:
        before, started = polls_of(proxy), time.monotonic()
        await connection.execute("SELECT pg_notify('revocations', 'junk ' || n) FROM generate_series(1, 5000) AS n")
        for number in range(300):
            await connection.execute(f"NOTIFY revocations, 'junk {number}'")
        await connection.execute(NOTIFIED, session_id)
        await becomes(lambda: knows(listener, session_id), within=MAX_AGE)
        lasted = time.monotonic() - started
        polls = polls_of(proxy) - before

        # A small fraction of the 5,300: twice the pace allowed, for a machine that does not keep time.
        assert polls <= 10 + 2 * lasted / 0.05
        assert listener.is_current


# A connection that fails


async def test_a_killed_connection_is_replaced_and_no_revocation_is_lost(
    shared_url: str, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    during = uuid4()
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1"
    async with listening(shared_url) as listener:
        with caplog.at_level(logging.WARNING, logger=revocation.__name__):
            await connection.execute(f"{kill} AND datname = current_database()", f"{product.SLUG}-revocations")
            await connection.execute(UNNOTIFIED, during)
            await becomes(lambda: not listener.is_current, within=MAX_AGE)
            assert listener.mode == "fallback"
            await becomes(lambda: knows(listener, during) and listener.is_current, within=5)
            assert listener.loaded.is_set()

    (line, *_) = [one for one in caplog.records if one.message == "revocation listener lost its connection"]
    assert line.__dict__["reason"].endswith("Error")


async def test_a_silent_connection_is_detected_within_the_fence_and_replaced(
    shared_url: str, connection: asyncpg.Connection
) -> None:
    during = uuid4()
    async with proxied(shared_url) as proxy, listening(proxy.url) as listener:
        proxy.stall()
        await connection.execute(NOTIFIED, during)
        await becomes(lambda: not listener.is_current, within=MAX_AGE)
        assert not knows(listener, during)

        proxy.resume()
        await becomes(lambda: knows(listener, during) and listener.is_current, within=5)


@pytest.mark.parametrize("moment", [b"LISTEN", b"pg_snapshot_xmin"])
async def test_a_connection_that_is_silent_from_the_start_is_given_up(shared_url: str, moment: bytes) -> None:
    async with proxied(shared_url) as proxy:
        proxy.silent_at = moment
        listener = RevocationListener(database_settings(proxy.url))
        listener.start()
        await becomes(lambda: not proxy.is_forwarding, within=5)
        tried = proxy.sent.count(moment)

        # New connections get through, the silent one stays silent.
        proxy.silent_at = None
        await becomes(lambda: listener.mode == "fallback" and proxy.connections > 1, within=5)
        proxy.resume()
        async with asyncio.timeout(5):
            await listener.loaded.wait()
        await listener.stop()

    assert tried == 1


async def test_a_process_that_was_paused_does_not_trust_its_state(
    shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocation, "MAX_AGE", 0.2)
    async with listening(shared_url) as listener:
        assert listener.is_current

        time.sleep(0.25)  # noqa: ASYNC251  # This blocks the whole process.

        assert not listener.is_current


async def test_a_slow_poll_counts_from_the_time_it_was_sent(shared_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocation, "_POLL_TIMEOUT", PATIENCE)
    async with proxied(shared_url) as proxy, listening(proxy.url) as listener:
        proxy.silent_at = b"pg_snapshot_xmin"
        await becomes(lambda: not proxy.is_forwarding, within=PATIENCE)
        # No other poll follows this one.
        monkeypatch.setattr(revocation, "POLL_INTERVAL", PATIENCE)
        await asyncio.sleep(0.3)
        old = listener.age or 0.0
        proxy.resume()
        await becomes(lambda: (listener.age or 0.0) < old, within=PATIENCE)

        assert 0.3 <= (listener.age or 0.0) < old


async def test_without_notifications_polling_alone_finds_revocations(
    shared_url: str, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    session_id = uuid4()
    with caplog.at_level(logging.WARNING, logger=revocation.__name__):
        async with proxied(shared_url, swallows_notifications=True) as proxy, listening(proxy.url) as listener:
            assert listener.mode == "polling"
            await connection.execute(NOTIFIED, session_id)
            await becomes(lambda: knows(listener, session_id), within=PATIENCE)
            assert listener.is_current

    told = [record.message for record in caplog.records if record.name == revocation.__name__]
    assert told == ["notifications not received; a revocation takes effect within a second, by polling"]


# The set itself


type Entry = tuple[int, UUID, int | None]

subjects = st.sampled_from([UUID(int=number) for number in range(4)])
entries: st.SearchStrategy[Entry] = st.one_of(
    st.tuples(st.just(1), subjects, st.none()),
    st.tuples(st.just(2), subjects, st.integers(1, 5)),
    st.tuples(st.just(4), subjects, st.none()),
)


def filled(applied: Sequence[Entry]) -> RevocationSet:
    made = RevocationSet()
    for entry in applied:
        made.add(*entry)
    return made


@given(st.lists(entries, max_size=12), st.data())
def test_order_and_repetition_of_revocations_do_not_matter(applied: list[Entry], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(applied)) + applied[: data.draw(st.integers(0, 12))]

    one, other = filled(applied), filled(shuffled)

    assert len(one) == len(other)
    for subject in (UUID(int=number) for number in range(4)):
        for version in (1, 3, 5):
            for session_id, user_id in ((subject, UUID(int=9)), (UUID(int=9), subject)):
                covered = [
                    each.is_revoked(session_id=session_id, user_id=user_id, version=version) for each in (one, other)
                ]
                assert covered[0] == covered[1]


def test_entries_are_removed_when_no_live_token_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, dropped = uuid4(), uuid4()
    known = RevocationSet()
    monkeypatch.setattr(revocation, "_MAX_ENTRY_AGE", -1.0)
    known.add(1, dropped, None)
    known.add(2, dropped, 3)
    monkeypatch.undo()
    known.add(1, kept, None)
    known.add(2, kept, 3)

    known.sweep()

    assert len(known) == 2
    assert known.is_revoked(session_id=kept, user_id=dropped, version=1)
    assert known.is_revoked(session_id=dropped, user_id=kept, version=1)
    assert not known.is_revoked(session_id=dropped, user_id=dropped, version=1)


def test_a_cutoff_covers_lower_sessions_until_no_live_token_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known, (below, cutoff, higher) = RevocationSet(), (UUID(int=number << 80) for number in (1, 2, 3))

    def covered(session_id: UUID) -> bool:
        return known.is_revoked(session_id=session_id, user_id=below, version=1)

    known.add(4, cutoff, None)
    assert (covered(below), covered(cutoff), covered(higher), len(known)) == (True, False, False, 1)

    # They come in any order; what is known only grows.
    known.add(4, below, None)
    known.sweep()
    assert (covered(below), covered(cutoff)) == (True, False)

    monkeypatch.setattr(revocation, "_MAX_ENTRY_AGE", 0.0)
    known.add(4, higher, None)
    assert covered(cutoff)
    known.sweep()
    assert (covered(below), len(known)) == (False, 0)


@pytest.mark.usefixtures("without_polls")
async def test_a_running_listener_removes_old_entries(
    shared_url: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocation, "_SWEEP_INTERVAL", 0.0)
    monkeypatch.setattr(revocation, "_MAX_ENTRY_AGE", 0.0)
    async with listening(shared_url) as listener:
        for session_id in (uuid4(), uuid4()):
            await connection.execute("SELECT pg_notify('revocations', $1)", f"1 {session_id}")
            await becomes(partial(knows, listener, session_id), within=PATIENCE)

            await nudge(connection)
            await becomes(partial(lacks, listener, session_id), within=PATIENCE)

        assert listener.is_current


# Responses without a working listener or database


@asynccontextmanager
async def service_behind(
    direct: Proxy, pool: Proxy | None, hasher: PasswordHasher
) -> AsyncIterator[tuple[AsyncClient, Database, Pair, Pair]]:
    """Run the application with its listener behind one proxy and its pool behind another; log in twice."""
    database = {
        "url": pool.url if pool else direct.target,
        "direct_url": direct.url,
        "connect_timeout": "500ms",
        "statement_timeout": "500ms",
    }
    settings = make_settings(direct.target, auth={"access_check": "memory"}, database=database)
    opened, straight = Database(settings.database), Database(database_settings(direct.target))
    async with running(with_who(settings, opened)) as client:
        await until(lambda: is_ready(client), within=10)
        email = await add_account(straight, hasher)
        yield client, straight, await start(client, email), await start(client, email)
    await opened.dispose()
    await straight.dispose()


async def test_with_a_silent_listener_only_revoked_tokens_stop_working_within_the_fence(
    shared_url: str, hasher: PasswordHasher
) -> None:
    async with proxied(shared_url) as direct, service_behind(direct, None, hasher) as (client, straight, good, ended):
        direct.stall()
        await run(straight, ENDS["session"], session_id=ended.session_id)

        async def is_refused() -> bool:
            assert await answers(client, good) == 200
            return await answers(client, ended) == 401

        assert await until(is_refused, within=MAX_AGE) <= MAX_AGE
        assert await answers(client, good) == 200
        direct.resume()


async def is_unavailable(client: AsyncClient, tokens: Pair) -> bool:
    return await answers(client, tokens) == 503


@pytest.mark.parametrize("failure", ["stall", "cut"])
async def test_without_the_database_no_token_is_accepted_after_the_fence(
    shared_url: str, hasher: PasswordHasher, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    if failure == "cut":
        # No poll notices that the connection has ended.
        monkeypatch.setattr(revocation, "POLL_INTERVAL", 10 * PATIENCE)
        monkeypatch.setattr(revocation, "MAX_AGE", 10 * PATIENCE)
    async with (
        proxied(shared_url) as direct,
        proxied(shared_url) as pool,
        service_behind(direct, pool, hasher) as (client, straight, good, ended),
    ):
        for proxy in (direct, pool):
            proxy.stall() if failure == "stall" else proxy.cut()
        await run(straight, ENDS["session"], session_id=ended.session_id)
        if failure == "stall":
            await asyncio.sleep(MAX_AGE)
        else:
            await until(partial(is_unavailable, client, good), within=PATIENCE)

        refused = [await client.get(WHO, headers=tokens.headers) for tokens in (good, ended)]

        for response in refused:
            assert response.status_code == 503
            assert int(response.headers["Retry-After"]) >= 1
        for proxy in (direct, pool):
            proxy.resume()
            proxy.accept()

        async def recovers() -> bool:
            assert await answers(client, ended) in {401, 503}
            return await answers(client, good) == 200

        await until(recovers, within=10)
        assert await answers(client, ended) == 401
        assert (await refresh(client, good)).access


def test_before_the_first_read_no_age_is_shown(shared_url: str) -> None:
    shown = {reading.name for reading in RevocationListener(database_settings(shared_url)).readings()}

    assert "revocation_mode" in shown
    assert "revocation_age_seconds" not in shown
