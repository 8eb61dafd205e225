"""The pages that mailed links lead to."""

import re
from pathlib import Path
from urllib.parse import urljoin

import pytest
from httpx2 import AsyncClient

from app.core.db.database import Database, WriteSession
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from app.users.jobs import _PAGES
from tests.access import table
from tests.aftermath import assert_problem, existing, snapshot
from tests.auth.post import AUTH, NEW_PASSWORD, Post, link_in, log_in
from tests.conftest import make_settings, running
from tests.core.browser import PROGRAM, browsing
from tests.factories import make_user
from tests.servers import real_server

# The pages of mailed links that the installed features have.
PATHS = sorted({page.path for page in _PAGES.values()} & {operation.removeprefix("GET ") for operation in table()})


@pytest.mark.parametrize("path", PATHS)
async def test_a_page_loads_nothing_from_elsewhere_and_has_no_inline_code(client: AsyncClient, path: str) -> None:
    response = await client.get(path)

    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["cache-control"] == "no-store"
    (policy,) = response.headers.get_list("content-security-policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"<style|style=|<script>|\son\w+=|javascript:|https?://", response.text)
    assert "noindex" in response.text


@pytest.mark.parametrize("path", PATHS)
async def test_the_files_of_a_page_are_found_below_a_path_prefix(client: AsyncClient, path: str) -> None:
    page = (await client.get(path)).text
    referred = re.findall(r'(?:href|src)="(?!data:)([^"]+)"', page)
    (endpoint,) = re.findall(r'data-endpoint="([^"]+)"', page)

    answers = [await client.get(urljoin(path, one)) for one in referred]
    proof = await client.post(urljoin(path, endpoint), json={"token": "junk", "new_password": NEW_PASSWORD})

    types = [response.headers["content-type"].partition(";")[0] for response in answers]
    assert sorted(types) == ["text/css", "text/javascript"]
    assert proof.status_code in {400, 422}
    assert not any(one.startswith("/") for one in [*referred, endpoint])


async def test_the_mailed_links_lead_to_the_pages() -> None:
    assert "/account/set-password" in PATHS


async def test_the_form_requires_the_configured_password_length(database_url: str, database: Database) -> None:
    settings = make_settings(database_url, auth={"password_min_length": 23})
    async with running(create_app(settings, database)) as client:
        page = (await client.get("/account/set-password")).text

    assert 'minlength="23"' in page
    assert "maxlength" not in page
    assert 'autocomplete="new-password"' in page


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", PATHS)
async def test_opening_a_page_changes_nothing(
    client: AsyncClient, session: WriteSession, hasher: PasswordHasher, post: Post, path: str, method: str
) -> None:
    account = await make_user(session, hasher, email_verified_at=None)
    await session.commit()
    await client.post(f"{AUTH}/password/forgot", json={"email": account.email})
    (mail,) = await post.collect()
    before = await snapshot(session)

    await client.request(method, path)
    await client.request(method, link_in(mail).partition("#")[0].removeprefix("http://127.0.0.1:8000"))

    assert await snapshot(session) == before
    assert (await existing(session, account.id)).email_verified_at is None


async def test_a_secret_in_the_query_is_refused_by_the_pages_too(client: AsyncClient) -> None:
    assert_problem(await client.get("/account/set-password?token=lt1.x"), 400, "secret_in_url")


@pytest.mark.parametrize("name", ["", "nothing", "set-password/", "page.js.map", "..%2Fpage.js", "__init__"])
async def test_there_are_no_other_pages(client: AsyncClient, name: str) -> None:
    assert (await client.get(f"/account/{name}")).status_code == 404


async def test_a_page_accepts_no_post(client: AsyncClient) -> None:
    assert_problem(
        await client.post("/account/set-password", data={"password": NEW_PASSWORD}), 405, "method_not_allowed"
    )


async def test_the_pages_are_not_in_the_openapi_document(client: AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]

    assert not any(path.startswith("/account") for path in paths)


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
async def test_in_a_browser_a_password_is_set_and_the_secret_stays_out_of_every_address(
    clone_url: str, tmp_path: Path, hasher: PasswordHasher
) -> None:
    database = Database(make_settings(clone_url).database)
    async with database.begin() as session:
        user = await make_user(session, hasher, email="ada@example.com")

    async with (
        real_server(clone_url) as server,
        AsyncClient(base_url=server.base_url) as client,
        browsing(tmp_path) as page,
    ):
        await client.post(f"{AUTH}/password/forgot", json={"email": user.email})
        settings = make_settings(clone_url, server={"public_url": server.base_url})
        (mail,) = await Post(database, settings).collect()
        secret = link_in(mail).partition("#token=")[2]

        await page.open(link_in(mail))
        await page.wait_for("document.querySelector('form') && location.hash === ''")
        await page.fill("#password", "123456789012345")
        await page.click("button")
        refused = await page.wait_for("document.querySelector('[role=status]').textContent")
        complaints = [one for one in page.complaints if "422" not in one]
        await page.run("document.querySelector('#password').value = ''")
        await page.fill("#password", NEW_PASSWORD)
        await page.click("button")
        done = await page.wait_for(
            "document.querySelector('form')?.hidden && document.querySelector('[role=status]').textContent"
        )
        addresses = [*page.requests, await page.run("location.href")]
        await page.open(link_in(mail).partition("#")[0])
        incomplete = await page.wait_for("document.querySelector('form')?.hidden")
        login = await log_in(client, user.email, NEW_PASSWORD)
        said = "\n".join(server.lines())

    await database.dispose()
    assert "attackers try it early" in str(refused)
    assert str(done).startswith("Done.")
    assert incomplete
    assert complaints == []
    assert login.status_code == 200
    assert all(address.startswith(server.base_url) for address in addresses)
    assert not any(secret in address for address in addresses)
    assert secret not in said
