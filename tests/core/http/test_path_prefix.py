"""The application below a path of its host, behind a proxy that strips this path and behind one that does not."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, override
from urllib.parse import urlsplit

import pytest
import uvicorn
from fastapi import FastAPI, Request
from httpx2 import ASGITransport, AsyncClient, AsyncHTTPTransport, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from app.core.db.database import Database, WriteSession
from app.core.http import routing
from app.core.http.access import public
from app.core.http.mounts import mount_public
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from tests.aftermath import assert_problem
from tests.conftest import LoggedIn, log_in, make_settings, running
from tests.core.browser import PROGRAM, browsing
from tests.factories import PASSWORD, make_user
from tests.servers import real_server

PREFIX = "/bed"
PUBLIC_URL = f"https://api.example.com{PREFIX}/"
STRIPS = pytest.mark.parametrize("strips", [True, False], ids=["strips", "keeps"])


class PathProxy:
    """A reverse proxy for one path of its host. Anything outside of this path is 404 in plain text."""

    def __init__(self, upstream: Any, *, strips: bool) -> None:
        self.client = AsyncClient(transport=upstream, base_url="http://upstream")
        self._strips = strips

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["raw_path"].decode()
        if scope["type"] != "http" or not path.startswith(f"{PREFIX}/"):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"outside"})
            return
        response = await self._forward(scope, path.removeprefix(PREFIX) if self._strips else path, receive)
        kept = [(name, value) for name, value in response.headers.raw if name.lower() != b"transfer-encoding"]
        await send({"type": "http.response.start", "status": response.status_code, "headers": kept})
        await send({"type": "http.response.body", "body": response.content})

    async def _forward(self, scope: Scope, path: str, receive: Receive) -> Response:
        query = scope["query_string"].decode()
        message = await receive()
        return await self.client.request(
            scope["method"],
            path + (f"?{query}" if query else ""),
            headers=[(name.decode(), value.decode()) for name, value in scope["headers"]],
            content=message["body"],
        )


@pytest.fixture
def app(database_url: str, database: Database, tmp_path: Path) -> FastAPI:
    (tmp_path / "page.txt").write_text("static")
    router = routing.router()

    @router.get("/here", openapi_extra=public)
    async def read_here(request: Request) -> list[str]:
        """Return the addresses of this operation."""
        return [str(request.url_for("read_here")), request.url.path]

    app = create_app(make_settings(database_url, server={"public_url": PUBLIC_URL}), database)
    routing.include(app, router)
    mount_public(app, "/static", StaticFiles(directory=tmp_path))
    return app


@asynccontextmanager
async def proxied(app: FastAPI, *, strips: bool) -> AsyncIterator[AsyncClient]:
    """Yield a client of the host. It reaches the application only below the prefix."""
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        proxy = PathProxy(ASGITransport(with_state), strips=strips)
        async with AsyncClient(transport=ASGITransport(proxy), base_url="https://api.example.com") as host:
            yield host


@STRIPS
async def test_links_of_responses_are_below_the_prefix(
    app: FastAPI, session: WriteSession, hasher: PasswordHasher, *, strips: bool
) -> None:
    admin = await make_user(session, hasher, role="admin")
    await make_user(session, hasher)
    await session.commit()
    form = {"grant_type": "password", "username": admin.email, "password": PASSWORD}
    async with proxied(app, strips=strips) as host:
        token = (await host.post(f"{PREFIX}/api/v1/auth/token", data=form)).json()["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        created = await host.post(f"{PREFIX}/api/v1/users", json={"email": "new@example.com"}, headers=headers)
        found = await host.get(created.headers["location"], headers=headers)
        first = await host.get(f"{PREFIX}/api/v1/users", params={"limit": 1}, headers=headers)
        second = await host.get(first.links["next"]["url"], headers=headers)

    assert created.headers["location"] == f"{PREFIX}/api/v1/users/{created.json()['id']}"
    assert found.json()["email"] == "new@example.com"
    assert first.links["next"]["url"].startswith(f"{PREFIX}/api/v1/users?")
    assert (second.status_code, len(second.json()["items"])) == (200, 1)


@STRIPS
@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/nowhere", 404, "not_found"),
        ("/api/v1/users/me", 401, "unauthorized"),
        ("/livez?token=x", 400, "secret_in_url"),
        ("/a%2Fb", 404, "not_found"),
        ("/static/none.txt", 404, "not_found"),
    ],
)
async def test_errors_point_to_pages_below_the_prefix(
    app: FastAPI, path: str, status: int, code: str, *, strips: bool
) -> None:
    async with proxied(app, strips=strips) as host:
        response = await host.get(PREFIX + path)
        page = await host.get(response.json()["type"])

    assert_problem(response, status, code)
    assert response.json()["type"].startswith(f"{PREFIX}/problems/")
    assert response.json()["instance"].startswith(f"{PREFIX}/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"


@STRIPS
async def test_methods_of_a_path_below_the_prefix_are_named(app: FastAPI, *, strips: bool) -> None:
    async with proxied(app, strips=strips) as host:
        responses = [await host.post(f"{PREFIX}{path}") for path in ("/livez", "/static/page.txt")]

    assert [response.headers["allow"] for response in responses] == ["GET, HEAD"] * 2


@STRIPS
async def test_errors_of_the_token_endpoint_have_the_oauth_members(app: FastAPI, *, strips: bool) -> None:
    async with proxied(app, strips=strips) as host:
        response = await host.post(f"{PREFIX}/api/v1/auth/token?token=x", data={})

    assert response.json()["error"] == "invalid_request"


@STRIPS
async def test_the_framework_builds_urls_below_the_prefix(app: FastAPI, *, strips: bool) -> None:
    async with proxied(app, strips=strips) as host:
        response = await host.get(f"{PREFIX}/here")
        static = await host.get(f"{PREFIX}/static/page.txt")

    assert response.json() == [f"http://api.example.com{PREFIX}/here", f"{PREFIX}/here"]
    assert static.text == "static"


@STRIPS
async def test_the_document_names_the_prefix(app: FastAPI, *, strips: bool) -> None:
    async with proxied(app, strips=strips) as host:
        document = (await host.get(f"{PREFIX}/openapi.json")).json()

    assert document["servers"] == [{"url": PREFIX}]
    flow = document["components"]["securitySchemes"]["login"]["flows"]["password"]
    assert flow["tokenUrl"] == f"{PREFIX}/api/v1/auth/token"
    assert "/livez" in document["paths"]
    # The document of the application itself is not changed.
    assert "servers" not in app.openapi()
    assert app.openapi()["components"]["securitySchemes"]["login"]["flows"]["password"]["tokenUrl"].startswith("/api")


async def test_servers_that_the_application_declares_are_kept(app: FastAPI) -> None:
    app.servers = [{"url": "https://other.example.com"}]
    async with proxied(app, strips=True) as host:
        document = (await host.get(f"{PREFIX}/openapi.json")).json()

    assert document["servers"] == [{"url": PREFIX}, {"url": "https://other.example.com"}]


async def test_without_a_prefix_nothing_is_added(client: AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    missing = await client.get("/nowhere")

    assert "servers" not in document
    assert missing.json()["type"] == "/problems/not-found"


@STRIPS
async def test_pages_load_their_parts_from_below_the_prefix(app: FastAPI, *, strips: bool) -> None:
    async with proxied(app, strips=strips) as host:
        for path in (f"{PREFIX}/docs", f"{PREFIX}/account/set-password"):
            page = await host.get(path)
            parts = [page.url.join(link) for link in re.findall(r'(?:src|href)="(?!data:)([^"]+)"', page.text)]
            assert parts
            assert [(await host.get(part)).status_code for part in parts] == [200] * len(parts)


async def test_probes_and_other_services_may_leave_the_prefix_out(app: FastAPI, user: LoggedIn) -> None:
    async with running(app) as direct:
        alive, me = (
            await direct.get("/livez"),
            await direct.get("/api/v1/users/me", headers=await log_in(direct, user.email)),
        )
        below = await direct.get(f"{PREFIX}/livez")
        similar = await direct.get(f"{PREFIX}room/livez")
        bare = await direct.get(PREFIX)

    assert [response.status_code for response in (alive, me, below, similar)] == [200, 200, 200, 404]
    assert similar.json()["instance"] == f"{PREFIX}{PREFIX}room/livez"
    assert (bare.status_code, bare.json()["instance"]) == (404, PREFIX)


async def test_the_root_path_of_a_server_takes_precedence(app: FastAPI) -> None:
    async with AsyncClient(transport=ASGITransport(app, root_path="/other"), base_url="http://test") as host:
        response = await host.get("/other/nowhere")

    assert response.json()["type"] == "/other/problems/not-found"


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
async def test_the_page_of_the_documentation_works_below_the_prefix_in_a_browser(
    clone_url: str, tmp_path: Path, hasher: PasswordHasher
) -> None:
    database = Database(make_settings(clone_url).database)
    async with database.begin() as session:
        user = await make_user(session, hasher, email="ada@example.com")
    await database.dispose()

    async with (
        listening_proxy() as (url, connect),
        real_server(clone_url, APP_ENVIRONMENT="test", APP_SERVER__PUBLIC_URL=url) as server,
        browsing(tmp_path) as page,
    ):
        connect(server.base_url)
        await page.open(f"{url}/docs")
        await page.click(".auth-wrapper .authorize")
        await page.fill(".modal-ux input[name=username], .modal-ux #oauth_username", user.email)
        await page.fill(".modal-ux input[name=password], .modal-ux #oauth_password", PASSWORD)
        await page.click(".modal-ux .auth-btn-wrapper .authorize")
        await page.wait_for("[...document.querySelectorAll('.modal-ux button')].some(b => b.textContent === 'Logout')")
        await page.click(".modal-ux .btn-done")
        await page.click("#operations-users-read_me .opblock-summary-control")
        await page.click("#operations-users-read_me .try-out__btn")
        await page.click("#operations-users-read_me .execute")
        row = "#operations-users-read_me .live-responses-table tbody"
        await page.wait_for(f"document.querySelector('{row}')")
        status = await page.run(f"document.querySelector('{row} .response-col_status').innerText")

    assert status.split()[0] == "200"
    assert page.complaints == []
    outside = [one for one in page.requests if not one.startswith(f"{url}/") and urlsplit(one).scheme != "data"]
    assert outside == []


@asynccontextmanager
async def listening_proxy() -> AsyncIterator[tuple[str, Any]]:
    """Run a proxy that strips the prefix, on a free port. Yield its URL, and a function that sets the server behind it."""
    proxies: list[PathProxy] = []

    async def forward(scope: Scope, receive: Receive, send: Send) -> None:
        await proxies[0](scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(forward, port=0, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  # There is no event to wait for.
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]

    def connect(base_url: str) -> None:
        proxies.append(PathProxy(_To(base_url), strips=True))

    yield f"http://127.0.0.1:{port}{PREFIX}", connect
    server.should_exit = True
    await serving
    for proxy in proxies:
        await proxy.client.aclose()


class _To(AsyncHTTPTransport):
    """Sends every request to another server."""

    def __init__(self, base_url: str) -> None:
        super().__init__()
        self._url = urlsplit(base_url)

    @override
    async def handle_async_request(self, request: Any) -> Any:
        request.url = request.url.copy_with(host=self._url.hostname, port=self._url.port)
        return await super().handle_async_request(request)
