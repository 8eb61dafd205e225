"""Chromium clears the storage of the origin after a logout, and nothing else."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from tests.conftest import make_settings
from tests.core.browser import PROGRAM, Page, browsing
from tests.factories import PASSWORD, make_user
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
async def foreign_site(target: str, **form: str) -> AsyncIterator[str]:
    """Serve a page of another origin, whose form posts these fields to `target`."""
    fields = "".join(f'<input name="{name}" value="{value}">' for name, value in form.items())
    body = f'<!doctype html><form method="post" action="{target}">{fields}</form>'
    response = (
        f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response.encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        # Another host name: cookies know no ports.
        yield f"http://localhost:{server.sockets[0].getsockname()[1]}/"


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
