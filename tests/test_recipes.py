"""The listings of `docs/recipes.md` do what they say, and return all connections to the pools, even after a thousand runs."""

import asyncio
import hashlib
import importlib
import os
import re
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import asyncpg
import pytest
import uvicorn
from httpx2 import AsyncClient
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

import app as package
from app.core.config import ServerSettings
from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from app.jobs.worker import JobWorker
from app.main import API_PREFIX, create_app
from app.server.connections import Connections
from app.server.requests import Connection
from tests.conftest import ROOT, log_in, make_settings
from tests.core.browser import PROGRAM, browsing
from tests.factories import make_user
from tests.jobs.conftest import QUICK, eventually, make_work
from tests.listings import apply, copy_repository, listings, run
from tests.test_generated_client import check_types, generate
from tests.test_generated_client import run as run_module
from tests.volume import plain

RECIPES = ROOT / "docs" / "recipes.md"
SCENARIO = ROOT / "tests" / "recipes_client_scenario.py"
MODULES = (
    *("jobs", "lists", "numbered", "streams", "events", "sockets", "visits", "tasks", "summaries", "assets"),
    *("uploads", "imports", "tags", "tables", "callbacks", "yearly"),
)
CONCURRENT = 10
POOL_SIZE = 3
FEW, MANY = 500, 20_000
# RECIPE_ROUNDS=1000 sets the number of the slow runs.
_MANY = int(os.environ.get("RECIPE_ROUNDS", "100"))
TIMES = pytest.mark.parametrize("times", [30, pytest.param(_MANY, marks=pytest.mark.slow)])
_HEAD = b"GET %b HTTP/1.1\r\nHost: test\r\nAuthorization: %b\r\n\r\n"
_RESET = struct.pack("ii", 1, 0)


@dataclass
class Site:
    """The application with the recipes, on real sockets. `watcher` is a separate connection to the database."""

    database: Database
    connections: Connections
    address: tuple[str, int]
    client: AsyncClient
    headers: dict[str, str]
    watcher: asyncpg.Connection
    modules: dict[str, ModuleType]

    async def is_at_rest(self) -> bool:
        """Return whether no request runs, no connection is checked out of a pool, and no session of PostgreSQL is busy."""
        busy = await self.watcher.fetchval(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'"
        )
        taken = [getattr(self.database, name).pool.checkedout() for name in ("engine", "read_engine")]
        return not self.connections.tasks and taken == [0, 0] and busy == 0

    async def count(self, event: str) -> int:
        """Return the number of audit events with this name."""
        found: int = await self.watcher.fetchval("SELECT count(*) FROM audit_events WHERE event = $1", event)
        return found

    async def add_accounts(self, number: int) -> None:
        await self.watcher.execute(
            "INSERT INTO users (id, email, email_key) SELECT gen_random_uuid(), n || '@x.co', n || '@x.co' "
            "FROM generate_series(1, $1) AS n ON CONFLICT DO NOTHING",
            number,
        )


@pytest.fixture
def reports(tmp_path: Path) -> Iterator[dict[str, ModuleType]]:
    """The listings as modules of a package `app.reports`, which is removed after the test."""
    folder = tmp_path / "reports"
    folder.mkdir()
    (folder / "__init__.py").touch()
    for listing in listings(RECIPES):
        if listing.path is None or not listing.path.startswith("src/app/reports/"):
            continue  # tests/test_migration_files.py, or the test of `articles` below, runs it.
        file = tmp_path / Path(listing.path).relative_to("src/app")
        file.parent.mkdir(exist_ok=True)
        file.write_text(listing.text)
    package.__path__.append(str(tmp_path))
    yield {name: importlib.import_module(f"app.reports.{name}") for name in MODULES}
    package.__path__.remove(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("app.reports")]:
        del sys.modules[name]


@pytest.fixture
async def site(clone_url: str, hasher: PasswordHasher, reports: dict[str, ModuleType]) -> AsyncIterator[Site]:
    # A thousand background tasks wait for three connections at once.
    patient = {"pool_wait": "300s", "connect_timeout": "30s", "statement_timeout": "30s"}
    settings = make_settings(clone_url, database={"pool_size": POOL_SIZE, **patient}, jobs=QUICK)
    database = Database(settings.database)
    async with database.begin() as session:
        email = (await make_user(session, hasher, role="admin")).email
    app = create_app(settings, database)
    for name in MODULES[1:]:
        app.include_router(reports[name].router, prefix=API_PREFIX)
    watcher = await asyncpg.connect(plain(clone_url))
    async with (
        app.router.lifespan_context(app) as state,
        listening(app, dict(state or {})) as (connections, address),
        AsyncClient(base_url=f"http://{address[0]}:{address[1]}", timeout=60) as client,
    ):
        headers = await log_in(client, email)
        yield Site(database, connections, address, client, headers, watcher, reports)
    await watcher.close()
    await database.dispose()


@asynccontextmanager
async def listening(
    app: Any, state: dict[str, Any], settings: ServerSettings | None = None
) -> AsyncIterator[tuple[Connections, tuple[str, int]]]:
    """Serve the application like `app serve`, in this process."""
    config = uvicorn.Config(app, http=Connection, ws="none", log_config=None, access_log=False)
    config.load()
    connections = Connections(settings or ServerSettings(), limit=1000)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: Connection(config, connections, state, loop), "127.0.0.1", 0)
    try:
        yield connections, listener.sockets[0].getsockname()
    finally:
        listener.close()
        for connection in list(connections.connections):
            connection.transport.abort()
        async with asyncio.timeout(10):
            while connections.tasks or connections.connections:  # noqa: ASYNC110  # There is no event to wait for.
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("parameters", "emails"),
    [
        ({"sort": "email", "q": "x%_"}, ["x%_1@x.co", "x%_2@x.co"]),
        ({"sort": "-email", "q": "x"}, ["xyz@x.co", "x%_2@x.co", "x%_1@x.co"]),
        ({"sort": "created_at", "q": "x%", "created_after": "2000-01-01T00:00:00Z"}, ["x%_2@x.co", "x%_1@x.co"]),
        ({"created_after": "2999-01-01T00:00:00Z"}, []),
    ],
)
async def test_lists_are_sorted_and_filtered(site: Site, parameters: dict[str, str], emails: list[str]) -> None:
    for number, email in enumerate(["x%_2@x.co", "xyz@x.co", "x%_1@x.co"]):
        await site.watcher.execute(
            "INSERT INTO users (id, email, email_key, created_at) "
            "VALUES (gen_random_uuid(), $1, $1, now() + $2 * interval '1 s')",
            email,
            number,
        )
    listed: list[str] = []
    query: dict[str, str | int] = {**parameters, "limit": 1}

    while True:
        response = await site.client.get(f"{API_PREFIX}/reports/list", params=query, headers=site.headers)
        assert response.status_code == 200, response.text
        listed += [item["email"] for item in response.json()["items"]]
        if "next" not in response.links:
            break
        query["cursor"] = response.json()["next_cursor"]

    assert listed == emails


async def test_numbered_pages_have_a_total_and_lead_to_the_last(site: Site) -> None:
    await site.add_accounts(5)

    first = await site.client.get(f"{API_PREFIX}/reports/numbered?limit=2", headers=site.headers)
    last = await site.client.get(first.links["last"]["url"], headers=site.headers)

    assert (first.json()["total"], first.json()["items"][0]["role"]) == (6, "admin")
    emails = [
        row["email"] for row in await site.watcher.fetch("SELECT email FROM users WHERE role = 'user' ORDER BY id")
    ]
    assert last.json()["items"] == [{"email": email, "role": "user"} for email in emails[-2:]]


async def test_a_summary_shows_more_to_an_administrator(site: Site) -> None:
    await site.watcher.execute(
        "INSERT INTO users (id, email, email_key, is_active) VALUES (gen_random_uuid(), 'x@x.co', 'x@x.co', false)"
    )
    path = f"{API_PREFIX}/reports/summary"

    anonymous, admin = [await site.client.get(path, headers=headers) for headers in ({}, site.headers)]
    refused = await site.client.get(path, headers={"Authorization": "Bearer expired"})

    assert (anonymous.json(), admin.json()) == ({"accounts": 2, "disabled": None}, {"accounts": 2, "disabled": 1})
    assert (refused.status_code, refused.json()["code"]) == (401, "invalid_token")
    assert anonymous.headers["vary"] == "Authorization"


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
async def test_a_page_below_a_mount_has_its_style(site: Site, tmp_path: Path) -> None:
    async with browsing(tmp_path / "profile") as page:
        await page.open(f"{site.client.base_url}{API_PREFIX}/assets/report.html")
        await page.wait_for("document.querySelector('h1') && document.readyState === 'complete'")
        colour = await page.run("getComputedStyle(document.querySelector('h1')).color")

    assert colour == "rgb(0, 0, 128)"
    assert page.complaints == []


async def repeat(times: int, act: Callable[[], Awaitable[None]]) -> None:
    """Call a function this many times, ten calls at a time."""

    async def some(number: int) -> None:
        for _ in range(number):
            await act()

    await asyncio.gather(*(some(times // CONCURRENT) for _ in range(CONCURRENT)))


async def start_reading(site: Site) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Request a stream that does not fit into the socket buffers, and read its first line."""
    reader, writer = await asyncio.open_connection(*site.address, limit=1024)
    path = f"{API_PREFIX}/reports/accounts".encode()
    writer.write(_HEAD % (path, site.headers["Authorization"].encode()))
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
    return reader, writer


@TIMES
async def test_streams_are_complete_and_give_their_connections_back(site: Site, times: int) -> None:
    await site.add_accounts(FEW)

    async def read() -> None:
        response = await site.client.get(f"{API_PREFIX}/reports/accounts", headers=site.headers)
        assert (response.status_code, response.text.count("\n")) == (200, FEW + 1)

    await repeat(times, read)

    await eventually(site.is_at_rest)


@TIMES
async def test_streams_whose_clients_disconnect_give_their_connections_back(site: Site, times: int) -> None:
    await site.add_accounts(MANY)

    async def disconnect() -> None:
        _, writer = await start_reading(site)
        # A connection reset, as from a crashed client.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()

    await repeat(times, disconnect)

    await eventually(site.is_at_rest)
    response = await site.client.get(f"{API_PREFIX}/reports/accounts", headers=site.headers)
    assert response.text.count("\n") == MANY + 1


async def test_streams_that_a_shutdown_cuts_give_their_connections_back(site: Site) -> None:
    await site.add_accounts(MANY)
    writers = [(await start_reading(site))[1] for _ in range(POOL_SIZE)]

    # The server does the same at the end of the shutdown grace.
    for task in list(site.connections.tasks):
        task.cancel()

    await eventually(site.is_at_rest)
    for writer in writers:
        writer.transport.abort()


async def test_an_event_reaches_its_streams_until_the_session_ends(site: Site) -> None:
    path = f"{API_PREFIX}/reports/comments"
    async with site.client.stream("GET", path, headers=site.headers) as response:
        lines = response.aiter_lines()
        assert (await site.client.post(path, json={"text": "fine"}, headers=site.headers)).status_code == 202
        assert [await anext(lines), await anext(lines)] == ["event: comment", 'data: "fine"']

        await site.watcher.execute("UPDATE sessions SET revoked_at = now(), revoke_reason = 'logout'")
        async with asyncio.timeout(20):
            assert [line async for line in lines] == [""]

    await eventually(site.is_at_rest)


@TIMES
async def test_background_tasks_give_their_connections_back(site: Site, times: int) -> None:
    async def send() -> None:
        assert (await site.client.post(f"{API_PREFIX}/reports/glances", headers=site.headers)).status_code == 202

    await repeat(times, send)

    await eventually(site.is_at_rest)
    assert await site.count("reports.glanced") == times // CONCURRENT * CONCURRENT


@TIMES
async def test_jobs_run_after_the_response_and_give_their_connections_back(site: Site, times: int) -> None:
    async def send() -> None:
        assert (await site.client.post(f"{API_PREFIX}/reports/visits", headers=site.headers)).status_code == 202

    async def is_done() -> bool:
        return await site.count("reports.visited") == times // CONCURRENT * CONCURRENT

    await repeat(times, send)
    settings = make_settings(site.database.engine.url.render_as_string(hide_password=False), jobs=QUICK)
    work = make_work(settings, site.database)

    async with JobWorker(work, (site.modules["jobs"].record_visit,), ()).running():
        await eventually(is_done, within=300)
    await eventually(site.is_at_rest)


@pytest.fixture(scope="module")
def articles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the listings of `articles`."""
    copy = tmp_path_factory.mktemp("articles")
    copy_repository(ROOT, copy)
    for listing in listings(RECIPES):
        if listing.path and not listing.path.startswith("src/app/reports/"):
            apply(listing, copy)
    return copy


async def test_articles_relate_models_and_read_across_features(articles: Path, template_url: str) -> None:
    options = ("-q", "-n0", "-p", "no:cacheprovider")

    output = await run(articles, "python", "-m", "pytest", *options, "tests/articles", DATABASE_URL=template_url)

    assert re.search(r"^[1-9][0-9]* passed", output, re.MULTILINE), output


async def test_articles_keep_the_style_and_the_import_contracts(articles: Path) -> None:
    files = ("src/app/articles", "src/app/users/views.py", "tests/articles")
    await run(articles, "ruff", "check", *files)
    await run(articles, "ruff", "format", "--check", *files)
    contracts = articles / "contracts.toml"
    contracts.write_text(await run(articles, "python", "-m", "app.dev", "contracts"))

    output = await run(articles, "lint-imports", "--no-cache", "--config", str(contracts))

    assert "The queries of articles are private to it KEPT" in output


@pytest.mark.slow
async def test_articles_have_correct_types(articles: Path) -> None:
    await run(articles, "mypy", "src/app/articles", "src/app/users/views.py", "tests/articles")


async def test_a_file_is_uploaded_with_its_title(site: Site) -> None:
    content = b"x" * 1_500_000
    files: dict[str, Any] = {"file": ("a.bin", content), "title": (None, "A title")}

    received = await site.client.post(f"{API_PREFIX}/reports/files", files=files, headers=site.headers)
    refused = await site.client.post(f"{API_PREFIX}/reports/files", files=files)

    digest = hashlib.sha256(content).hexdigest()
    assert received.json() == {"title": "A title", "size": len(content), "sha256": digest}
    assert refused.status_code == 401


async def test_a_large_body_is_read_as_a_stream(site: Site) -> None:
    headers = site.headers | {"Content-Type": "text/csv"}

    response = await site.client.post(f"{API_PREFIX}/reports/imports", content=b"a,b\n" * 400_000, headers=headers)

    assert response.json() == 400_000


@pytest.mark.parametrize(
    ("path", "accept", "status", "expected"),
    [
        ("tags?tag=b&tag=a&tag=b", "*/*", 200, '["a","b"]'),
        ("table", "*/*", 200, '{"a":1,"b":2}'),
        ("table", "text/csv", 200, "a,1\r\nb,2\r\n"),
        ("table", "text/html", 406, "application/json or text/csv"),
        ("table.csv", "*/*", 200, "a,1\r\nb,2\r\n"),
        ("page", "text/html", 200, "<!doctype html>"),
        ("callback?code=c&state=s&iss=https://provider.example", "*/*", 200, '{"code":1,"state":1}'),
        ("callback?code=c&state=s&token=t", "*/*", 400, "secret_in_url"),
        ("yearly", "*/*", 200, '"1min"'),
    ],
)
async def test_recipes_open_only_what_they_declare(
    site: Site, path: str, accept: str, status: int, expected: str
) -> None:
    response = await site.client.get(f"{API_PREFIX}/reports/{path}", headers=site.headers | {"Accept": accept})

    assert (response.status_code, expected in response.text) == (status, True), response.text


async def test_a_job_with_a_statement_timeout_runs(site: Site) -> None:
    await site.modules["yearly"].write_yearly(make_work(make_settings("postgresql://x/x"), site.database))

    await eventually(site.is_at_rest)


@pytest.mark.slow
async def test_a_generated_client_uploads_a_file_repeats_a_parameter_and_downloads_csv(
    site: Site, tmp_path: Path
) -> None:
    document = (await site.client.get("/openapi.json")).json()
    # The generator cannot send a body that is neither JSON nor a form.
    del document["paths"][f"{API_PREFIX}/reports/imports"]
    token = site.headers["Authorization"].removeprefix("Bearer ")

    await generate(tmp_path, document)

    await check_types(tmp_path, SCENARIO)
    await run_module(tmp_path, SCENARIO, str(site.client.base_url), token)


async def test_devices_talk_over_web_sockets(site: Site) -> None:
    url = f"ws://{site.address[0]}:{site.address[1]}{API_PREFIX}/reports/talk"

    async def open_one() -> ClientConnection:
        ticket = (await site.client.post("/api/v1/auth/socket-tickets", headers=site.headers)).json()["ticket"]
        return await connect(url, subprotocols=["ticket", ticket], proxy=None)  # type: ignore[list-item]  # A NewType.

    first, second = await open_one(), await open_one()
    await first.send('{"text": "hello"}')
    assert [await first.recv(), await second.recv()] == ["hello", "hello"]

    await second.send('{"text": "hello", "more": 1}')
    with pytest.raises(ConnectionClosed):
        await second.recv()
    assert (second.close_code, second.close_reason) == (4422, "validation_error")

    await first.close()
    await eventually(site.is_at_rest)
