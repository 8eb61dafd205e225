"""What the proxies of `deploy/proxy` make of requests: headers, bodies, streams, WebSockets, and requests that fail."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from httpx2 import AsyncClient, RemoteProtocolError
from websockets.asyncio.client import connect

from tests.aftermath import assert_problem
from tests.auth.event_streams import PATH, TOPIC, Stream
from tests.auth.login_sessions import TOKEN, start, ticket_of
from tests.auth.socket_routes import ECHO
from tests.conftest import ROOT, cloned
from tests.deploy.instances import add_account, two_instances
from tests.deploy.proxies import PROGRAMS, Proxy, path_of, running_proxy
from tests.deploy.recorder import Recorder, recorder
from tests.deploy.test_proxies import each_proxy
from tests.volume import plain

pytestmark = pytest.mark.deploy

SERVED = (sys.executable, "-m", "tests.deploy.served", "serve")
# More than the service accepts, and more than a proxy buffers.
LARGE = b"x" * 3_000_000
# Wrong passwords for different accounts, until an address is refused.
MOST_FAILURES = 150
DROPPED = {
    "Forwarded": "for=192.0.2.1",
    "Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "Tracestate": "vendor=1",
}
FORGED = {"X-Forwarded-For": "192.0.2.1, 127.0.0.1"} | DROPPED


@dataclass(frozen=True)
class Site:
    """A proxy in front of the application."""

    proxy: Proxy
    url: str


@pytest.fixture(scope="module")
async def instances(template_url: str) -> AsyncIterator[tuple[str, list[int]]]:
    """The database and the ports of two instances, for all tests of this file."""
    settings = {"PYTHONPATH": str(ROOT), "APP_RATE_LIMIT__ENABLED": "true", "APP_SERVER__DRAIN_DELAY": "0"}
    async with (
        cloned(template_url) as url,
        two_instances(url, command=SERVED, APP_SERVER__PUBLIC_URL="https://api.example.com", **settings) as both,
    ):
        yield url, [instance.port for instance in both]


@pytest.fixture
async def site(name: str, instances: tuple[str, list[int]], tmp_path: Path) -> AsyncIterator[Site]:
    url, ports = instances
    async with running_proxy(name, tmp_path, ports) as proxy:
        yield Site(proxy, url)


@each_proxy
async def test_limits_count_the_address_of_the_client_whatever_it_forwards(site: Site) -> None:
    async def fail(client: AsyncClient, number: int) -> int:
        form = {"grant_type": "password", "username": f"{number}@example.com", "password": "not the password, surely"}
        headers = {"X-Forwarded-For": f"192.0.2.{number}"}
        return (await client.post(TOKEN, data=form, headers=headers)).status_code

    address = f"127.0.1.{list(PROGRAMS).index(site.proxy.name) + 1}"
    async with site.proxy.client(address) as attacker, site.proxy.client("127.0.2.1") as other:
        statuses = [await fail(attacker, number) for number in range(MOST_FAILURES)]

        assert statuses[0] == 400
        assert statuses[-1] == 429
        assert await fail(other, MOST_FAILURES) == 400


@each_proxy
async def test_an_event_arrives_while_the_stream_is_open(site: Site) -> None:
    connection = await asyncpg.connect(plain(site.url))
    async with site.proxy.client() as client:
        tokens = await start(client, await add_account(site.url))
        async with client.stream("GET", f"/api/v1{PATH}", headers=tokens.headers) as response:
            stream = Stream(response)
            assert await stream.event() == {"": "subscribed"}
            for number in range(3):
                await connection.execute("SELECT pg_notify('broadcasts', $1)", f"{TOPIC}\n{number}")

                assert (await stream.event())["data"] == str(number)
    await connection.close()


@each_proxy
async def test_each_message_of_a_websocket_arrives(site: Site) -> None:
    async with site.proxy.client() as client:
        tokens = await start(client, await add_account(site.url))
        ticket = await ticket_of(client, tokens.headers)
    async with connect(
        f"wss://{site.proxy.host}/api/v1{ECHO}",
        subprotocols=["ticket", ticket],  # type: ignore[list-item]  # A NewType.
        proxy=None,
        host="127.0.0.1",
        port=site.proxy.https,
        ssl=site.proxy.tls,
        server_hostname=site.proxy.host,
    ) as socket:
        for text in ("one", "two", "x" * 60_000):
            await socket.send(text)

            assert await socket.recv() == text


@each_proxy
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_above_the_limit_gets_the_problem_of_the_service(site: Site, *, is_chunked: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for begin in range(0, len(LARGE), 100_000):
            yield LARGE[begin : begin + 100_000]

    async with site.proxy.client() as client:
        tokens = await start(client, await add_account(site.url))
        headers = {**tokens.headers, "Content-Type": "application/json"}

        response = await client.patch("/api/v1/users/me", content=chunks() if is_chunked else LARGE, headers=headers)

    assert_problem(response, 413, "payload_too_large")


@each_proxy
async def test_plain_http_is_redirected(site: Site) -> None:
    async with AsyncClient(base_url=f"http://127.0.0.1:{site.proxy.http}", headers={"Host": site.proxy.host}) as client:
        response = await client.get("/api/v1/users/me?a=1")

    assert response.is_redirect
    assert response.headers["Location"].startswith(f"https://{site.proxy.host}")
    assert response.headers["Location"].endswith("/api/v1/users/me?a=1")


@asynccontextmanager
async def recorded(name: str, directory: Path) -> AsyncIterator[tuple[Proxy, Recorder, Recorder]]:
    """Run a proxy in front of two recorders."""
    async with (
        recorder() as one,
        recorder() as two,
        running_proxy(name, directory, [one.port, two.port]) as proxy,
    ):
        yield proxy, one, two


@each_proxy
async def test_the_service_gets_the_address_of_the_client_and_no_trace_from_outside(name: str, tmp_path: Path) -> None:
    async with recorded(name, tmp_path) as (proxy, one, two), proxy.client("127.0.3.1") as client:
        response = await client.get("/api/v1/users/me", headers=FORGED)

    assert response.status_code == 200
    (head,) = one.requests + two.requests
    assert head.count("x-forwarded-for:") == 1
    assert "x-forwarded-for: 127.0.3.1\r\n" in head
    for header in DROPPED:
        assert f"{header.lower()}:" not in head


@each_proxy
@pytest.mark.parametrize("is_kept_alive", [False, True])
async def test_a_post_whose_connection_breaks_off_is_not_sent_again(
    name: str, tmp_path: Path, *, is_kept_alive: bool
) -> None:
    async with recorded(name, tmp_path) as (proxy, one, two), proxy.client() as client:
        if is_kept_alive:
            for _ in range(4):
                assert (await client.post("/api/v1/users/me/export")).status_code == 200
        one.breaks_off = two.breaks_off = True

        for _ in range(8):
            with suppress(RemoteProtocolError):  # haproxy sends no response if the client's connection had one before.
                assert (await client.post("/api/v1/users", json={})).status_code == 502

    received = [head for head in one.requests + two.requests if head.startswith("post /api/v1/users ")]
    assert len(received) == 8


@each_proxy
async def test_a_get_is_sent_twice_at_most(name: str, tmp_path: Path) -> None:
    async with recorded(name, tmp_path) as (proxy, one, two), proxy.client() as client:
        one.breaks_off = two.breaks_off = True

        response = await client.get("/api/v1/users/me")

    assert response.status_code in {502, 503}
    assert 1 <= len(one.requests + two.requests) <= 2


@each_proxy
async def test_a_request_goes_to_the_other_instance_if_one_refuses_the_connection(name: str, tmp_path: Path) -> None:
    async with recorded(name, tmp_path) as (proxy, one, two), proxy.client() as client:
        # Before a health check notices it. Caddy tries requests with a body only since the version after 2.11.1 (caddyserver/caddy#7546).
        await two.stop()
        two.requests.clear()

        responses = [await client.post("/api/v1/users/me/export") for _ in range(20)]

    assert [response.status_code for response in responses] == [200] * 20
    assert len(one.requests) == 20


@pytest.mark.skipif(path_of("caddy") is None, reason="caddy is not installed")
async def test_caddy_asks_any_instance_if_none_was_ready_at_the_last_check(tmp_path: Path) -> None:
    async with recorded("caddy", tmp_path) as (proxy, one, two), proxy.client() as client:
        one.is_ready = two.is_ready = False
        # Several checks.
        await asyncio.sleep(3)

        responses = [await client.post("/api/v1/users", json={}) for _ in range(4)]

    assert [response.status_code for response in responses] == [200] * 4
    assert len(one.requests + two.requests) == 4
