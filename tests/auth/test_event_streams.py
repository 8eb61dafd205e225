"""Event streams end with the session of their caller, and cost a process one connection."""

import asyncio
import itertools
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import pytest
from httpx2 import AsyncClient

from app.auth.access import session_watch
from app.auth.access.revocation import MAX_AGE
from app.auth.access.session_watch import SessionWatch
from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from tests.aftermath import assert_problem
from tests.auth.event_streams import PATH, PATIENCE, TOPIC, Site, Stream, site
from tests.auth.login_sessions import start
from tests.auth.test_token_status import ENDS, MODES, add_account
from tests.conftest import ROOT, cloned, make_settings
from tests.jobs.conftest import eventually
from tests.proxy import proxied
from tests.servers import server_by
from tests.test_servers import command_of


@pytest.fixture(scope="module")
async def shared_url(template_url: str) -> AsyncIterator[str]:
    async with cloned(template_url) as url:
        yield url


@pytest.fixture
async def running(shared_url: str, hasher: PasswordHasher) -> AsyncIterator[Site]:
    async with site(shared_url, hasher, access_check="memory") as running:
        yield running


def end(reason: str) -> list[dict[str, str]]:
    return [{"event": "end", "data": reason}]


async def test_a_client_asks_for_an_event_stream_by_its_media_type(running: Site) -> None:
    tokens = await running.log_in()
    headers = {**tokens.headers, "Accept": "text/event-stream"}

    async with running.client.stream("GET", PATH, headers=headers) as response:
        assert response.status_code == 200
        assert await Stream(response).event() == {"": "subscribed"}


async def test_a_stream_is_not_stored_or_buffered_on_its_way(running: Site) -> None:
    async with running.stream(await running.log_in()) as stream:
        headers = stream.response.headers

    assert headers["content-type"].startswith("text/event-stream")
    assert headers.get_list("cache-control") == ["no-store"]
    assert headers.get_list("x-accel-buffering") == ["no"]
    assert headers["x-content-type-options"] == "nosniff"


async def test_all_streams_of_a_process_share_one_connection(running: Site) -> None:
    assert await running.listeners() == 0
    tokens = await running.log_in()
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(running.stream(tokens)) for _ in range(20)]

        await running.publish("first\nsecond line")

        events = [await stream.event() for stream in streams]
        # The test reads the last of two lines with the same name.
        assert events == [{"data": "second line"}] * 20
        assert await running.listeners() == 1
        taken = [getattr(running.database, name).pool.checkedout() for name in ("engine", "read_engine")]
        assert taken == [0, 0]

    await eventually(running.is_at_rest)


@MODES
@pytest.mark.parametrize("kind", ENDS)
async def test_a_stream_ends_when_its_session_is_revoked_elsewhere(
    shared_url: str, hasher: PasswordHasher, access_check: str, kind: str
) -> None:
    async with site(shared_url, hasher, access_check=access_check) as running:
        tokens, other = await running.log_in(), await running.log_in()
        async with running.stream(tokens) as ending, running.stream(other) as staying:
            await running.run(ENDS[kind], tokens)

            assert await ending.rest() == end("revoked")

            await running.publish("still here")
            assert await staying.event() == {"data": "still here"}
            assert (await running.client.get(PATH, headers=tokens.headers)).status_code == 401


@pytest.mark.usefixtures("without_polls")
async def test_a_revocation_ends_streams_without_waiting_for_the_next_check(
    running: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_watch, "CHECK_INTERVAL", 600)
    tokens = await running.log_in()
    async with running.stream(tokens) as stream:
        # The check that is waiting still has the short interval.
        await asyncio.sleep(1.1)

        await running.run(ENDS["session"], tokens)

        assert await stream.rest() == end("revoked")


async def test_a_stream_ends_when_its_token_expires(shared_url: str, hasher: PasswordHasher) -> None:
    async with site(shared_url, hasher, access_check="memory", access_token_ttl="4s") as running:
        tokens = await running.log_in()
        async with running.stream(tokens) as stream:
            assert await stream.rest() == end("expired")

        assert 0 <= time.time() - tokens.claims["exp"] < PATIENCE


async def test_streams_end_when_the_server_shuts_down(running: Site) -> None:
    tokens = await running.log_in()
    async with running.stream(tokens) as stream:
        running.shutdown.begin()

        assert await stream.rest() == end("shutdown")

    async with running.stream(tokens) as late:
        assert await late.rest() == end("shutdown")


@MODES
async def test_a_stream_ends_if_its_session_cannot_be_confirmed(
    shared_url: str, hasher: PasswordHasher, access_check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_watch, "_QUERY_TIMEOUT", 0.2)
    async with (
        proxied(shared_url) as proxy,
        site(proxy.url, hasher, watcher_url=shared_url, access_check=access_check) as running,
    ):
        async with running.stream(await running.log_in()) as stream:
            stalled = time.monotonic()
            proxy.stall()

            # The connection for messages may be the first to be lost.
            assert await stream.rest() in (end("unconfirmed"), end("lost"))

            assert time.monotonic() - stalled > MAX_AGE - session_watch.CHECK_INTERVAL
        proxy.resume()


async def test_a_short_outage_ends_no_stream(
    shared_url: str, hasher: PasswordHasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_watch, "_QUERY_TIMEOUT", 0.5)
    async with (
        proxied(shared_url) as proxy,
        site(proxy.url, hasher, access_check="database", direct_url=shared_url, watcher_url=shared_url) as running,
        running.stream(await running.log_in()) as stream,
    ):
        proxy.stall()
        await asyncio.sleep(1.5)
        proxy.resume()

        await asyncio.sleep(2.5)
        await running.publish("still here")
        assert await stream.event() == {"data": "still here"}


async def test_an_account_has_a_limit_of_streams(shared_url: str, hasher: PasswordHasher) -> None:
    async with site(shared_url, hasher, access_check="memory", streams_per_account=2) as running:
        tokens, other = await running.log_in(), await running.log_in()
        async with running.stream(tokens):
            async with running.stream(tokens), running.stream(other):
                refused = await running.client.get(PATH, headers=tokens.headers)
                assert_problem(refused, 429, "too_many_streams")
                assert refused.headers["retry-after"] == "10"

            await eventually(lambda: is_accepted(running, tokens))


async def is_accepted(running: Site, tokens: Any) -> bool:
    async with running.client.stream("GET", PATH, headers=tokens.headers) as response:
        return response.status_code == 200


async def test_a_client_that_leaves_leaves_nothing_behind(running: Site) -> None:
    tokens = await running.log_in()
    for _ in range(5):
        async with running.stream(tokens):
            pass

    await eventually(running.is_at_rest)
    subscriptions = [reading.value for reading in running.broadcasts.readings()]
    assert subscriptions == [0]


async def test_a_subscription_ends_if_its_connection_is_lost(running: Site) -> None:
    tokens = await running.log_in()
    async with running.stream(tokens) as stream:
        await running.watcher.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name LIKE '%-broadcasts'"
        )
        assert await stream.rest() == end("lost")

    async with running.stream(tokens) as stream:
        await running.publish("again")
        assert await stream.event() == {"data": "again"}


async def test_a_client_that_does_not_read_loses_its_stream_and_not_the_memory_of_the_server(running: Site) -> None:
    tokens = await running.log_in()
    reader, writer = await asyncio.open_connection(*running.address, limit=1024)
    writer.write(f"GET {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: {tokens.headers['Authorization']}\r\n\r\n".encode())
    await reader.readuntil(b"subscribed")

    async with running.stream(tokens) as healthy:
        # First the buffers of the kernel and of the server fill up.
        for number in itertools.count():
            await running.publish(f"{number} {'x' * 7000}")
            assert (await healthy.event())["data"].startswith(f"{number} ")
            if any(one.ended for one in running.broadcasts._topics[TOPIC]):
                break

        assert [one.ended for one in running.broadcasts._topics[TOPIC] if one.ended] == ["slow"]

    now = asyncio.get_running_loop().time()
    running.connections.enforce_timeouts(now + 31)
    await eventually(running.is_at_rest)
    writer.close()


SERVERS = {
    "app serve": (sys.executable, "-m", "tests.auth.served_streams", "serve"),
    "app serve, two workers": (sys.executable, "-m", "tests.auth.served_streams", "serve", "--workers", "2"),
    **dict.fromkeys(("uvicorn", "gunicorn", "granian"), ()),
}


@pytest.mark.parametrize(
    "program", ["app serve", *(pytest.param(name, marks=pytest.mark.slow) for name in list(SERVERS)[1:])]
)
async def test_a_stream_does_not_delay_a_shutdown(clone_url: str, hasher: PasswordHasher, program: str) -> None:
    command = SERVERS[program] or [
        "tests.auth.served_streams:app" if argument == "app.asgi:app" else argument for argument in command_of(program)
    ]
    database = Database(make_settings(clone_url).database)
    email = await add_account(database, hasher)
    settings = {"PYTHONPATH": str(ROOT), "APP_SERVER__SHUTDOWN_GRACE": "120s", "APP_RATE_LIMIT__ENABLED": "false"}
    async with server_by(tuple(command), clone_url, settings) as server:
        async with AsyncClient(base_url=server.base_url, timeout=60) as client:
            tokens = await start(client, email)
            async with client.stream("GET", f"/api/v1{PATH}", headers=tokens.headers) as response:
                stream = Stream(response)
                assert await stream.event() == {"": "subscribed"}

                server.process.send_signal(signal.SIGTERM)

                assert await stream.rest() == end("shutdown")
        # The client has closed its connection: granian sometimes waits for an idle one.
        assert await asyncio.wait_for(server.process.wait(), PATIENCE) == 0
    await database.dispose()


async def test_a_timeout_of_the_source_is_not_an_end() -> None:
    watch = SessionWatch(user_id=uuid4(), session_id=uuid4(), version=1, expires_at=0)

    async def source() -> AsyncIterator[int]:
        yield 1
        raise TimeoutError

    items = watch.until_end(source())

    assert await anext(items) == 1
    with pytest.raises(TimeoutError):
        await anext(items)
    assert watch.ended is None


async def test_an_item_that_arrives_together_with_the_end_is_not_yielded() -> None:
    watch = SessionWatch(user_id=uuid4(), session_id=uuid4(), version=1, expires_at=0)
    arrived = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        await arrived.wait()
        yield 1

    reading = asyncio.create_task(anext(watch.until_end(source()), None))
    await asyncio.sleep(0)
    arrived.set()
    watch.end("revoked")

    assert await reading is None


def test_an_end_has_the_first_reason() -> None:
    watch = SessionWatch(user_id=uuid4(), session_id=uuid4(), version=1, expires_at=0)

    watch.end("expired")
    watch.end("revoked")

    assert watch.ended == "expired"
