"""The pages and their files, as the server sends them."""

import re
from urllib.parse import urljoin

import pytest
from httpx2 import AsyncClient

from app.core.db.database import Database
from app.main import create_app
from tests.aftermath import assert_problem
from tests.conftest import make_settings, running

PATHS = ["/account/login", "/account/forgot-password", "/account/security"]


@pytest.mark.parametrize("path", PATHS)
async def test_a_page_allows_only_its_own_scripts_and_styles_and_has_no_inline_code(
    client: AsyncClient, path: str
) -> None:
    response = await client.get(path)

    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    (policy,) = response.headers.get_list("content-security-policy")
    assert {part.strip() for part in policy.split(";")} == {
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    }
    assert not re.search(r"<style|style=|<script>|\son\w+=|javascript:|https?://", response.text)
    assert "noindex" in response.text
    # Without its script, a form must not put the password into the address.
    assert response.text.count("<form") == response.text.count('method="post"')


@pytest.mark.parametrize("path", PATHS)
async def test_all_files_of_a_page_are_found_relative_to_it(client: AsyncClient, path: str) -> None:
    page = (await client.get(path)).text
    waiting = {urljoin(path, name) for name in re.findall(r'(?:href|src)="(?!data:)([^"]+)"', page)}
    found: dict[str, str] = {}
    while waiting:
        url = waiting.pop()
        response = await client.get(url)
        found[url] = response.headers["content-type"].partition(";")[0]
        assert response.status_code == 200, url
        if found[url] == "text/javascript":
            imported = re.findall(r'from "(\./[^"]+)"', response.text)
            waiting |= {urljoin(url, name) for name in imported} - found.keys()

    assert not re.search(r'(?:href|src)="/', page)
    assert {"text/css", "text/javascript"} <= set(found.values())
    assert "/account/assets/api.js" in found


async def test_the_login_page_takes_the_page_that_follows(client: AsyncClient) -> None:
    response = await client.get("/account/login", params={"next": "/somewhere"})

    assert response.status_code == 200
    assert "somewhere" not in response.text


async def test_the_new_password_has_the_configured_length(database_url: str, database: Database) -> None:
    settings = make_settings(database_url, auth={"password_min_length": 23})
    async with running(create_app(settings, database)) as client:
        page = (await client.get("/account/security")).text

    assert 'minlength="23"' in page
    assert "At least 23 characters." in page
    assert "maxlength" not in page


@pytest.mark.parametrize("name", ["none.js", "login.html", "..%2Frouter.py", ".", "__init__.py"])
async def test_no_other_file_is_served(client: AsyncClient, name: str) -> None:
    assert_problem(await client.get(f"/account/assets/{name}"), 404, "not_found")


async def test_the_pages_are_not_in_the_openapi_document(client: AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]

    assert not any(path.startswith("/account") for path in paths)
