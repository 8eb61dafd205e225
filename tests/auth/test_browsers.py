"""Logins in Chromium: a logout clears the storage of the origin and nothing else; the page of docs/browsers.md keeps its cookie."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.auth.sessions.dependencies import COOKIE
from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from tests.conftest import ROOT, make_settings
from tests.core.browser import PROGRAM, Page, browsing
from tests.factories import PASSWORD, make_user
from tests.listings import listings
from tests.servers import real_server

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")

TOKEN, REVOKE, ASSET = "/api/v1/auth/token", "/api/v1/auth/revoke", "/docs/favicon.png"
STORE = f"""(async () => {{
    localStorage.setItem("kept", "yes");
    document.cookie = "kept=yes; max-age=3600";
    await new Promise((resolve) => {{ indexedDB.open("kept").onsuccess = (event) => resolve(event.target.result.close()); }});
    await (await caches.open("kept")).put("/kept", new Response("yes"));
    await (await fetch("{ASSET}")).arrayBuffer();
}})()"""
STORED = f"""(async () => ({{
    local: localStorage.length,
    databases: (await indexedDB.databases()).length,
    caches: (await caches.keys()).length,
    cookies: document.cookie,
    http: (await fetch("{ASSET}", {{cache: "only-if-cached", mode: "same-origin"}}).catch(() => ({{}}))).ok || false,
}}))()"""
EVERYTHING = {"local": 1, "databases": 1, "caches": 1, "cookies": "kept=yes", "http": True}
CLEARED = EVERYTHING | {"local": 0, "databases": 0, "caches": 0}


async def post(page: Page, path: str, **form: str) -> tuple[int, Any]:
    """Post a form from the page and give the status and the JSON of the answer."""
    script = f"""fetch("{path}", {{method: "POST", body: new URLSearchParams({json.dumps(form)})}})
        .then(async (response) => [response.status, await response.text()])"""
    status, text = await page.run(script)
    return status, json.loads(text) if text else None


async def go(page: Page, url: str) -> None:
    """Open a page and wait until its scripts may run."""
    await page.open(url)
    await page.wait_for(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")


@pytest.fixture
async def email(clone_url: str, hasher: PasswordHasher) -> str:
    """The email address of an account that may log in."""
    database = Database(make_settings(clone_url).database)
    async with database.begin() as session:
        user = await make_user(session, hasher)
    await database.dispose()
    return user.email


@asynccontextmanager
async def site(read: Callable[[], str]) -> AsyncIterator[str]:
    """Serve one page of another origin."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = read().encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        # Another host name: cookies know no ports.
        yield f"http://localhost:{server.sockets[0].getsockname()[1]}/"


def foreign_site(target: str, **form: str) -> AbstractAsyncContextManager[str]:
    """Serve a page of another origin, whose form posts these fields to `target`."""
    fields = "".join(f'<input name="{name}" value="{value}">' for name, value in form.items())
    return site(lambda: f'<!doctype html><form method="post" action="{target}">{fields}</form>')


async def test_a_logout_clears_the_storage_of_the_origin_and_nothing_else(
    clone_url: str, tmp_path: Path, email: str
) -> None:
    async with (
        real_server(clone_url) as server,
        foreign_site(server.base_url) as elsewhere,
        browsing(tmp_path) as page,
    ):
        await go(page, elsewhere)
        await page.run("localStorage.setItem('kept', 'yes')")
        await go(page, f"{server.base_url}/docs")
        _, tokens = await post(page, TOKEN, grant_type="password", username=email, password=PASSWORD)
        await page.run(STORE)
        before = await page.run(STORED)
        status, _ = await post(page, REVOKE, token=tokens["refresh_token"])
        await page.wait_for("localStorage.length === 0")
        after = await page.run(STORED)
        await go(page, elsewhere)
        foreign = await page.run("localStorage.getItem('kept')")

    assert status == 200
    assert before == EVERYTHING
    assert after == CLEARED
    assert foreign == "yes"


async def test_responses_that_end_no_session_clear_nothing(clone_url: str, tmp_path: Path, email: str) -> None:
    async with real_server(clone_url) as server, browsing(tmp_path) as page:
        await go(page, f"{server.base_url}/docs")
        login = {"grant_type": "password", "username": email, "password": PASSWORD}
        _, tokens = await post(page, TOKEN, **login)
        # Ended before anything is stored, so that the second answer is about an ended session.
        await post(page, REVOKE, token=tokens["refresh_token"])
        await page.run(STORE)
        forms = [
            (REVOKE, {"token": "nonsense"}),
            (REVOKE, {"token": tokens["refresh_token"]}),
            (REVOKE, {}),
            (TOKEN, login | {"password": "wrong"}),
            (TOKEN, {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}),
        ]
        statuses = [(await post(page, path, **form))[0] for path, form in forms]
        after = await page.run(STORED)

    assert statuses == [200, 200, 400, 400, 400]
    assert after == EVERYTHING


async def test_a_form_on_a_foreign_site_clears_nothing(clone_url: str, tmp_path: Path) -> None:
    async with (
        real_server(clone_url) as server,
        foreign_site(f"{server.base_url}{REVOKE}", token="nonsense") as elsewhere,
        browsing(tmp_path) as page,
    ):
        await go(page, f"{server.base_url}/docs")
        await page.run(STORE)
        await go(page, elsewhere)
        await page.run("document.forms[0].submit()")
        await page.wait_for(f"location.href === '{server.base_url}{REVOKE}' && document.readyState === 'complete'")
        await go(page, f"{server.base_url}/docs")
        after = await page.run(STORED)

    assert f"{server.base_url}{REVOKE}" in page.requests
    assert after == EVERYTHING


ADDRESS = "https://api.example.com"
(LISTING,) = [listing.text for listing in listings(ROOT / "docs" / "browsers.md") if listing.language == "html"]
LOGGED_IN = "!document.getElementById('account').hidden"
LOGGED_OUT = "!document.getElementById('login').hidden"
READ = "call('/users/me').then((response) => response.status)"


@dataclass
class Site:
    """The page of the document at its own origin, and the API that it calls."""

    url: str
    api: str
    page: Page

    async def log_in(self, email: str) -> None:
        """Open the page and send its form."""
        await go(self.page, self.url)
        await self.page.wait_for(LOGGED_OUT)
        await self.page.fill("[name=username]", email)
        await self.page.fill("[name=password]", PASSWORD)
        await self.page.click("#login button")
        await self.page.wait_for(LOGGED_IN)

    async def cookies(self) -> list[dict[str, Any]]:
        """Return the cookies of the API that the browser keeps."""
        found: list[dict[str, Any]] = (await self.page.send("Network.getCookies", urls=[self.api]))["cookies"]
        return found


@pytest.fixture
async def example(clone_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    api = ""
    # The scripts of a module are no globals, and the test calls one of its functions.
    async with (
        site(
            lambda: LISTING.replace(ADDRESS, api).replace(
                "open();\n</script>", "open();\nwindow.call = call;\n</script>"
            )
        ) as url,
        real_server(clone_url, APP_SERVER__CORS_ORIGINS=url.rstrip("/")) as server,
        browsing(tmp_path) as page,
    ):
        # Page and API are on one site, which is what the cookie needs.
        api = server.base_url.replace("127.0.0.1", "localhost")
        yield Site(url, api, page)


async def test_the_page_of_the_document_logs_in_continues_in_two_tabs_and_logs_out(example: Site, email: str) -> None:
    assert ADDRESS in LISTING
    assert len(LISTING.splitlines()) <= 80

    await example.log_in(email)
    (cookie,) = await example.cookies()
    visible = await example.page.run("document.cookie + JSON.stringify([localStorage, sessionStorage])")
    other = await example.page.new_tab()
    await go(other, example.url)
    await other.wait_for(LOGGED_IN)
    # A new page has no access token, so both tabs refresh at the same moment.
    await asyncio.gather(*(go(tab, f"{example.url}?again") for tab in (example.page, other)))
    await asyncio.gather(*(tab.wait_for(LOGGED_IN) for tab in (example.page, other)))
    statuses = [await tab.run(READ) for tab in (example.page, other)]
    await other.click("#logout")
    await other.wait_for(LOGGED_OUT)
    await go(example.page, example.url)
    await example.page.wait_for(LOGGED_OUT)

    assert (cookie["name"], cookie["httpOnly"], cookie["secure"]) == (f"__Host-{COOKIE}", True, True)
    assert (cookie["sameSite"], cookie["path"], cookie["domain"]) == ("Strict", "/", "localhost")
    assert visible == "[{},{}]"
    assert statuses == [200, 200]
    assert await example.cookies() == []


async def test_the_page_of_the_document_shows_why_a_login_fails(example: Site, email: str) -> None:
    await go(example.page, example.url)
    await example.page.wait_for(LOGGED_OUT)
    await example.page.fill("[name=username]", email)
    await example.page.fill("[name=password]", "not the password")
    await example.page.click("#login button")

    shown = await example.page.wait_for("document.getElementById('message').textContent")

    assert shown.startswith("These credentials are not valid.")
    assert await example.cookies() == []


async def test_a_page_of_another_site_can_neither_use_nor_set_the_cookie(example: Site, email: str) -> None:
    await example.log_in(email)
    before = await example.cookies()
    elsewhere = example.url.replace("localhost", "127.0.0.1")

    await go(example.page, elsewhere)
    tried = await example.page.run(
        f"""Promise.all([
            fetch("{example.api}{TOKEN}", {{method: "POST", credentials: "include", headers: {{"Token-Transport": "cookie"}},
                body: new URLSearchParams({{grant_type: "refresh_token"}})}}),
            fetch("{example.api}{TOKEN}", {{method: "POST", credentials: "include", mode: "no-cors",
                body: new URLSearchParams({{grant_type: "refresh_token"}})}}),
        ].map((request) => request.then((response) => response.type, (error) => error.name)))"""
    )

    # The preflight of the first one is refused. The second one needs none, but has neither the header nor the cookie.
    assert tried == ["TypeError", "opaque"]
    assert await example.cookies() == before
    await go(example.page, example.url)
    await example.page.wait_for(LOGGED_IN)
