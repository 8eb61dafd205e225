"""The cookie transport: the refresh token in a cookie that no script can read. Every way to misuse the cookie is refused."""

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from httpx2 import AsyncClient, Response
from sqlalchemy import text

from app.auth.sessions.dependencies import COOKIE
from app.core.config import Settings
from app.core.db.database import Database, WriteSession
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from tests.aftermath import assert_problem
from tests.conftest import LoggedIn, make_settings, running
from tests.factories import PASSWORD, make_user

TOKEN, REVOKE, REAUTHENTICATE = (f"/api/v1/auth/{name}" for name in ("token", "revoke", "reauthenticate"))
LISTED = "https://app.example.com"
NAME = f"__Host-{COOKIE}"
CLEARED = f"{NAME}=; Max-Age=0; Path=/; Secure; HttpOnly; SameSite=Strict"
_LIVE_SESSIONS = text("SELECT count(*) FROM sessions WHERE revoked_at IS NULL")


@dataclass(frozen=True)
class Page:
    """A page in a browser. The test keeps its cookie, because the client of the tests would send it to every host."""

    client: AsyncClient
    email: str
    origin: str

    async def post(self, path: str, cookie: str | None = None, **options: Any) -> Response:
        """Send what a page sends. `headers` replaces headers; None leaves one out."""
        given: Mapping[str, str | None] = options.pop("headers", {})
        headers = {"Token-Transport": "cookie", "Origin": self.origin, "Sec-Fetch-Site": "same-origin", **given}
        if cookie is not None:
            headers["Cookie"] = f"{NAME}={cookie}"
        self.client.cookies.clear()
        sent = {name: value for name, value in headers.items() if value is not None}
        return await self.client.post(path, headers=sent, **options)

    async def log_in(self, **options: Any) -> Response:
        form = {"grant_type": "password", "username": self.email, "password": PASSWORD}
        return await self.post(TOKEN, data=form, **options)

    async def refresh(self, cookie: str | None, **options: Any) -> Response:
        return await self.post(TOKEN, cookie, data={"grant_type": "refresh_token"}, **options)


@pytest.fixture
async def page(user: LoggedIn, client: AsyncClient, settings: Settings) -> Page:
    """A page of this service, whose visitor has an account."""
    return Page(client, user.email, settings.public_url)


@pytest.fixture
async def listed(
    database: Database, session: WriteSession, hasher: PasswordHasher, settings: Settings
) -> AsyncIterator[Page]:
    """A page of a listed origin. A refresh token that is used twice ends its session at once."""
    account = await make_user(session, hasher, email="page@example.com")
    await session.commit()
    server, auth = {"cors_origins": [LISTED, "*"]}, {"refresh_reuse_grace": 0}
    async with running(create_app(make_settings(url_of(settings), server=server, auth=auth), database)) as client:
        yield Page(client, account.email, LISTED)


def url_of(settings: Settings) -> str:
    return settings.database.url.get_secret_value()


def cookie_of(response: Response) -> str:
    """Return the value of the cookie that a response sets."""
    (header,) = response.headers.get_list("set-cookie")
    value: str = header.partition(";")[0].partition("=")[2]
    return value


async def live_sessions(session: WriteSession) -> int:
    count: int = (await session.execute(_LIVE_SESSIONS)).scalar_one()
    return count


async def test_a_login_sets_a_cookie_that_only_this_host_gets_and_no_script_can_read(page: Page) -> None:
    response = await page.log_in()

    body = response.json()
    assert response.status_code == 200, body
    assert body.keys() == {"access_token", "token_type", "expires_in", "refresh_expires_in", "scope"}
    (header,) = response.headers.get_list("set-cookie")
    assert re.fullmatch(
        rf"{NAME}=rt1\.[\w-]{{76}}; Max-Age={body['refresh_expires_in']}; Path=/; Secure; HttpOnly; SameSite=Strict",
        header,
    )
    assert response.headers["Cache-Control"] == "no-store"


async def test_the_cookie_is_exchanged_for_the_next_one(page: Page) -> None:
    first = cookie_of(await page.log_in())

    response = await page.refresh(first)

    assert response.status_code == 200
    assert "refresh_token" not in response.json()
    assert cookie_of(response) not in {"", first}
    headers = {"Authorization": f"Bearer {response.json()['access_token']}"}
    assert (await page.client.get("/api/v1/users/me", headers=headers)).status_code == 200


async def test_giving_the_password_again_sets_the_cookie_too(page: Page) -> None:
    access_token = (await page.log_in()).json()["access_token"]

    response = await page.post(
        REAUTHENTICATE, json={"password": PASSWORD}, headers={"Authorization": f"Bearer {access_token}"}
    )

    assert response.status_code == 200
    assert "refresh_token" not in response.json()
    assert (await page.refresh(cookie_of(response))).status_code == 200


async def test_a_logout_needs_no_body_and_leaves_nothing(page: Page, session: WriteSession) -> None:
    cookie, before = cookie_of(await page.log_in()), await live_sessions(session)

    response = await page.post(REVOKE, cookie)

    assert (response.status_code, response.content) == (200, b"null")
    assert response.headers.get_list("set-cookie") == [CLEARED]
    assert response.headers["Clear-Site-Data"] == '"storage"'
    assert await live_sessions(session) == before - 1
    assert (await page.refresh(cookie)).status_code == 400


@pytest.mark.parametrize("cookie", [None, "", "nonsense"])
async def test_a_logout_without_a_session_deletes_the_cookie_and_is_no_error(page: Page, cookie: str | None) -> None:
    response = await page.post(REVOKE, cookie)

    assert response.status_code == 200
    assert response.headers.get_list("set-cookie") == [CLEARED]
    assert "Clear-Site-Data" not in response.headers


@pytest.mark.parametrize("path", [TOKEN, REVOKE])
async def test_a_cookie_without_the_header_is_not_read(page: Page, session: WriteSession, path: str) -> None:
    cookie, before = cookie_of(await page.log_in()), await live_sessions(session)

    response = await page.post(path, cookie, data={"grant_type": "refresh_token"}, headers={"Token-Transport": None})

    assert_problem(response, 400, "invalid_request")
    assert "set-cookie" not in response.headers
    assert await live_sessions(session) == before
    assert (await page.refresh(cookie)).status_code == 200


@pytest.mark.parametrize(("path", "field"), [(TOKEN, "refresh_token"), (REVOKE, "token")])
@pytest.mark.parametrize("has_cookie", [True, False])
async def test_a_token_in_the_body_beside_the_header_is_refused(
    page: Page, session: WriteSession, path: str, field: str, has_cookie: bool
) -> None:
    cookie, before = cookie_of(await page.log_in()), await live_sessions(session)

    response = await page.post(
        path, cookie if has_cookie else None, data={"grant_type": "refresh_token", field: cookie}
    )

    assert_problem(response, 400, "invalid_request")
    assert await live_sessions(session) == before
    assert (await page.refresh(cookie)).status_code == 200


async def test_two_cookies_of_the_name_are_refused(page: Page) -> None:
    cookie = cookie_of(await page.log_in())

    for header in (f"{NAME}=other; {NAME}={cookie}", f"{NAME}={cookie};{NAME}={cookie}"):
        response = await page.refresh(None, headers={"Cookie": header})
        assert_problem(response, 400, "ambiguous_cookie")

    assert (await page.refresh(cookie)).status_code == 200


@pytest.mark.parametrize("name", [COOKIE, f"__host-{COOKIE}", f"__Secure-{COOKIE}", f"{NAME}2", f"x{NAME}"])
async def test_a_cookie_of_another_name_is_not_read(page: Page, name: str) -> None:
    cookie = cookie_of(await page.log_in())

    response = await page.refresh(None, headers={"Cookie": f"a=b; {name}={cookie}; c"})

    assert_problem(response, 400, "invalid_request")


async def test_an_invalid_cookie_is_deleted(page: Page) -> None:
    response = await page.refresh("nonsense")

    assert_problem(response, 400, "invalid_grant")
    assert response.headers.get_list("set-cookie") == [CLEARED]


async def test_using_a_cookie_twice_ends_the_session(listed: Page, session: WriteSession) -> None:
    stolen = cookie_of(await listed.log_in())
    current = cookie_of(await listed.refresh(stolen))

    replayed = await listed.refresh(stolen)

    assert_problem(replayed, 400, "invalid_grant")
    assert replayed.headers.get_list("set-cookie") == [CLEARED]
    assert await live_sessions(session) == 0
    assert (await listed.refresh(current)).status_code == 400


async def test_a_wrong_password_sets_and_deletes_no_cookie(page: Page) -> None:
    form = {"grant_type": "password", "username": page.email, "password": "wrong"}

    response = await page.post(TOKEN, cookie_of(await page.log_in()), data=form)

    assert_problem(response, 400, "invalid_grant")
    assert "set-cookie" not in response.headers


FOREIGN = {
    "no origin": {"Origin": None},
    "an opaque origin": {"Origin": "null"},
    "another site": {"Origin": "https://evil.example.org"},
    "an origin that ends like ours": {"Origin": "https://evilapp.example.com"},
    "an origin that begins like ours": {"Origin": f"{LISTED}.evil.org"},
    "another scheme": {"Origin": LISTED.replace("https", "http")},
    "another port": {"Origin": f"{LISTED}:8443"},
    "a path": {"Origin": f"{LISTED}/"},
    "capital letters": {"Origin": LISTED.upper()},
    "several origins": {"Origin": f"{LISTED}, {LISTED}"},
    "the wildcard": {"Origin": "*"},
    "a request from another site": {"Sec-Fetch-Site": "cross-site"},
    "a request by the user": {"Sec-Fetch-Site": "none"},
    "an unknown kind of site": {"Sec-Fetch-Site": "same-origin, cross-site"},
}


@pytest.mark.parametrize("foreign", FOREIGN)
async def test_a_foreign_page_is_refused_and_nothing_happens(listed: Page, session: WriteSession, foreign: str) -> None:
    headers = FOREIGN[foreign]
    cookie, before = cookie_of(await listed.log_in()), await live_sessions(session)

    responses = [
        await listed.log_in(headers=headers),
        await listed.refresh(cookie, headers=headers),
        await listed.post(REVOKE, cookie, headers=headers),
    ]

    for response in responses:
        assert_problem(response, 403, "origin_refused")
        assert "set-cookie" not in response.headers
    assert await live_sessions(session) == before
    assert (await listed.refresh(cookie)).status_code == 200


async def test_a_browser_without_fetch_metadata_is_served(listed: Page) -> None:
    assert (await listed.log_in(headers={"Sec-Fetch-Site": None})).status_code == 200


@pytest.mark.parametrize("value", ["", "body", "Cookie", "cookie,cookie", " cookie;"])
@pytest.mark.parametrize("path", [TOKEN, REVOKE, REAUTHENTICATE])
async def test_another_value_of_the_header_is_refused(page: Page, user: LoggedIn, path: str, value: str) -> None:
    body: dict[str, Any] = (
        {"json": {"password": PASSWORD}} if path == REAUTHENTICATE else {"data": {"grant_type": "refresh_token"}}
    )

    response = await page.post(path, headers={"Token-Transport": value, **user.headers}, **body)

    assert_problem(response, 400, "token_transport_refused")
    assert response.json()["detail"] == "The header Token-Transport can only have the value cookie."


async def test_the_operator_can_turn_cookies_off(database: Database, user: LoggedIn, settings: Settings) -> None:
    off = make_settings(
        url_of(settings),
        server={"cors_origins": [LISTED]},
        auth={"cookie_transport": False},
    )
    async with running(create_app(off, database)) as client:
        response = await Page(client, user.email, LISTED).log_in()

    assert_problem(response, 400, "token_transport_refused")
    assert response.json()["detail"].startswith("This server sets no cookies.")
    assert "Access-Control-Allow-Credentials" not in response.headers


async def test_pages_of_listed_origins_may_send_cookies_and_no_others(listed: Page) -> None:
    login = await listed.log_in()
    foreign = await listed.client.get("/livez", headers={"Origin": "https://evil.example.org"})
    preflight = await listed.client.options(
        TOKEN,
        headers={
            "Origin": LISTED,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "token-transport",
        },
    )

    assert login.headers["Access-Control-Allow-Credentials"] == "true"
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Credentials"] == "true"
    assert "Token-Transport" in preflight.headers["Access-Control-Allow-Headers"]
    # The wildcard lets every page read responses, but none of them sends a cookie.
    assert foreign.headers["Access-Control-Allow-Origin"] == "https://evil.example.org"
    assert "Access-Control-Allow-Credentials" not in foreign.headers


async def test_no_log_line_and_no_problem_contains_the_cookie(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    cookie = cookie_of(await page.log_in())

    refused = await page.refresh(None, headers={"Cookie": f"{NAME}={cookie}; {NAME}={cookie}"})
    accepted = await page.refresh(cookie)
    later = cookie_of(accepted)

    assert accepted.status_code == 200
    written = capsys.readouterr().out + refused.text
    assert '"route":"/api/v1/auth/token"' in written
    assert cookie not in written
    assert later not in written
