"""Attacks on the handshake of WebSockets, and on open ones. tests/server/test_sockets.py has those on frames."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator

import pytest
from httpx2 import AsyncClient
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from tests.auth.login_sessions import REVOKE, start, ticket_of
from tests.auth.socket_routes import ECHO
from tests.auth.sockets import PATIENCE, Site, site
from tests.auth.test_sockets import DENIAL, closed, conversation, refused
from tests.auth.test_token_status import add_account
from tests.conftest import ROOT, cloned, make_settings
from tests.jobs.conftest import eventually
from tests.servers import server_by
from tests.test_servers import command_of

PUBLIC = "https://app.example.com"
ALLOWED = "https://other.example.com:8443"


@pytest.fixture(scope="module")
async def target(template_url: str, hasher: PasswordHasher) -> AsyncIterator[Site]:
    origins = {"public_url": f"{PUBLIC.upper()}:443", "cors_origins": (ALLOWED,)}
    async with cloned(template_url) as url, site(url, hasher, server=origins) as running:
        yield running


@pytest.mark.parametrize("origin", [PUBLIC, ALLOWED, None])
async def test_a_page_of_a_listed_origin_opens_a_socket(target: Site, origin: str | None) -> None:
    tokens = await target.log_in()

    async with target.open(tokens, additional_headers={"Origin": origin} if origin else {}) as socket:
        await socket.send("hello")
        assert await socket.recv() == "hello"


FOREIGN = [
    *("null", "", "https://evil.example", "http://app.example.com", "wss://app.example.com", f"{PUBLIC}:8443"),
    *(f"{PUBLIC}.", f"{PUBLIC}/", f"{PUBLIC}.evil.example", "https://app.example.com@evil.example", "*"),
    *("https://evilapp.example.com", "https://app.example.com.", "https://APP.example.com", f"{PUBLIC} {ALLOWED}"),
    *(f"{PUBLIC}, https://evil.example", "https://sub.app.example.com", "https://other.example.com", "file://"),
    *("https://app%2eexample.com", "https://app.example.com:443", "chrome-extension://abc", "https://127.0.0.1"),
]


@pytest.mark.parametrize("origin", FOREIGN)
async def test_a_page_of_another_origin_is_refused(target: Site, origin: str) -> None:
    ticket = await target.ticket(await target.log_in())

    assert await refused(target, ticket, additional_headers={"Origin": origin}) == (403, "origin_refused")

    # The page cannot use up the ticket of its visitor.
    async with target.open(ticket):
        pass


async def test_two_origins_are_refused(target: Site) -> None:
    headers = [("Origin", PUBLIC), ("Origin", "https://evil.example")]
    ticket = await target.ticket(await target.log_in())

    assert await refused(target, ticket, additional_headers=headers) == (400, "malformed_request")

    # Other servers pass them on.
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    async with conversation(target, subprotocols=["ticket", ticket], headers=raw, extensions=DENIAL) as sent:
        assert json.loads(sent[1]["body"])["code"] == "origin_refused"


async def test_the_host_does_not_decide_which_origins_are_allowed(target: Site) -> None:
    own = f"http://{target.address[0]}:{target.address[1]}"
    headers = {"Origin": own, "X-Forwarded-Host": "127.0.0.1", "Forwarded": "host=127.0.0.1;proto=http"}

    assert await refused(target, await target.log_in(), additional_headers=headers) == (403, "origin_refused")


NO_TICKETS = {
    "nothing": [],
    "only the name": ["ticket"],
    "an empty one": ["ticket", "x"],
    "an unknown one": ["ticket", "st1." + "A" * 43],
    "one with a mark": ["ticket", "st1." + "A" * 42 + "!"],
    "a long one": ["ticket", "st1." + "A" * 4000],
    "one under another name": ["chat", "st1." + "A" * 43],
    "an access token": ["ticket", "eyJhbGciOiJFUzI1NiJ9.e30.c2ln"],
}


@pytest.mark.parametrize("name", NO_TICKETS)
async def test_a_handshake_without_a_valid_ticket_is_refused(target: Site, name: str) -> None:
    assert await answer(target, NO_TICKETS[name]) == (401, "invalid_ticket")


async def answer(target: Site, offered: list[str], path: str = ECHO, **options: object) -> tuple[int, str]:
    url = f"ws://{target.address[0]}:{target.address[1]}{path}"
    with pytest.raises(InvalidStatus) as refusal:
        async with connect(url, subprotocols=offered or None, proxy=None, **options):  # type: ignore[arg-type]  # A NewType.
            pass
    return refusal.value.response.status_code, json.loads(refusal.value.response.body)["code"]


async def test_a_ticket_elsewhere_than_in_the_subprotocols_opens_nothing(target: Site) -> None:
    tokens = await target.log_in()
    ticket = await target.ticket(tokens)

    assert await answer(target, [], f"{ECHO}?ticket={ticket}") == (422, "validation_error")
    assert await answer(target, [], f"{ECHO}?access_token={tokens.access}") == (400, "secret_in_url")
    for headers in ({"Authorization": f"Bearer {tokens.access}"}, {"Cookie": f"ticket={ticket}"}):
        assert await answer(target, [], additional_headers=headers) == (401, "invalid_ticket")


@pytest.mark.parametrize(
    ("path", "end"),
    [
        (f"{ECHO}?{'a' * 15_000}", (422, "validation_error")),
        (f"{ECHO}?{'&'.join(f'a{n}=1' for n in range(200))}", (422, "validation_error")),
        (f"{ECHO}%2f", (404, "not_found")),
        ("/sockets%2fecho", (404, "not_found")),
        (f"{ECHO}%0a", (404, "not_found")),
        (f"{ECHO}%00", (404, "not_found")),
        (f"{ECHO}/../echo", (404, "not_found")),
        ("/api/v1/users/me", (404, "not_found")),
    ],
)
async def test_a_hostile_target_is_refused_before_the_ticket(target: Site, path: str, end: tuple[int, str]) -> None:
    ticket = await target.ticket(await target.log_in())

    assert await answer(target, ["ticket", ticket], path) == end
    async with target.open(ticket):
        pass


async def test_a_ticket_opens_a_socket_of_its_own_account_only(target: Site) -> None:
    mine, theirs = await target.log_in(), await target.log_in()

    async with target.open(mine) as socket, target.open(theirs) as other:
        for one in (socket, other):
            await one.send("who")
        assert await socket.recv() != await other.recv()


async def test_one_of_many_handshakes_with_one_ticket_opens_a_socket(target: Site) -> None:
    ticket = await target.ticket(await target.log_in())

    async def attempt() -> ClientConnection | int:
        url = f"ws://{target.address[0]}:{target.address[1]}{ECHO}"
        try:
            return await connect(url, subprotocols=["ticket", ticket], proxy=None)  # type: ignore[list-item]  # A NewType.
        except InvalidStatus as error:
            return error.response.status_code

    results = await asyncio.gather(*(attempt() for _ in range(30)))

    opened = [one for one in results if isinstance(one, ClientConnection)]
    assert len(opened) == 1
    assert results.count(401) == 29
    await opened[0].close()


async def test_sockets_that_come_and_go_leave_nothing_behind(target: Site) -> None:
    tokens = await target.log_in()

    async def come_and_go() -> None:
        async with target.open(tokens) as socket:
            await socket.send("x")

    for _ in range(2):
        await asyncio.gather(*(come_and_go() for _ in range(10)))

    await eventually(target.is_at_rest)
    assert await target.watcher.fetchval("SELECT count(*) FROM socket_tickets") <= 20


COMMAND = (sys.executable, "-m", "tests.auth.served_sockets", "serve")
UVICORN = tuple("tests.auth.served_sockets:app" if one == "app.asgi:app" else one for one in command_of("uvicorn"))


@pytest.mark.parametrize(
    "command",
    [
        (*COMMAND, "--workers", "2"),
        pytest.param(COMMAND, marks=pytest.mark.slow),
        pytest.param(UVICORN, marks=pytest.mark.slow),
    ],
    ids=["app serve, two workers", "app serve", "uvicorn"],
)
async def test_a_server_ends_its_sockets_and_logs_no_ticket(
    clone_url: str, hasher: PasswordHasher, command: tuple[str, ...]
) -> None:
    database = Database(make_settings(clone_url).database)
    email = await add_account(database, hasher)
    settings = {
        "PYTHONPATH": str(ROOT),
        "APP_SERVER__SHUTDOWN_GRACE": "120s",
        "APP_RATE_LIMIT__ENABLED": "false",
        "APP_LOG__LEVEL": "debug",
    }
    secrets = []

    async def open_one(client: AsyncClient, headers: dict[str, str]) -> ClientConnection:
        secrets.append(await ticket_of(client, headers))
        url = server.base_url.replace("http", "ws") + f"/api/v1{ECHO}"
        return await connect(url, subprotocols=["ticket", secrets[-1]], proxy=None)  # type: ignore[list-item]  # A NewType.

    async with (
        server_by(command, clone_url, settings) as server,
        AsyncClient(base_url=server.base_url, timeout=60) as client,
    ):
        revoked, staying = await start(client, email), await start(client, email)
        ending = [await open_one(client, revoked.headers) for _ in range(4)]
        sockets = [await open_one(client, staying.headers) for _ in range(4)]
        for socket in (*ending, *sockets):
            await socket.send("a private message")
            assert await socket.recv() == "a private message"
        # One ticket, two processes.
        race = await ticket_of(client, staying.headers)
        url = server.base_url.replace("http", "ws") + f"/api/v1{ECHO}"
        attempts = [connect(url, subprotocols=["ticket", race], proxy=None) for _ in range(10)]  # type: ignore[list-item]  # A NewType.
        results = await asyncio.gather(*(one.__aenter__() for one in attempts), return_exceptions=True)
        assert [type(one) for one in results].count(ClientConnection) == 1

        # Another process than that of the sockets may get the logout.
        await client.post(REVOKE, data={"token": revoked.refresh})
        assert [await closed(socket) for socket in ending] == [(4401, "invalid_token")] * 4

        server.process.send_signal(signal.SIGTERM)
        assert {(await closed(socket))[0] for socket in sockets} == {1012}
        assert await asyncio.wait_for(server.process.wait(), PATIENCE) == 0
        log = "\n".join(server.lines())
    await database.dispose()
    assert log.count('"close_code":4401') + log.count('"close_code": 4401') == 4
    for secret in (*secrets, race, "a private message"):
        assert secret not in log
        assert secret.removeprefix("st1.") not in log
