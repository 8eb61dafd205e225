"""The login in a browser: with a keyboard, with errors, with the page that follows, and in several tabs."""

import asyncio
import json

import pytest

from tests.core.browser import PROGRAM
from tests.factories import PASSWORD
from tests.self_service.site import FOCUS, LOADED, LOGIN, SECURITY, Site

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")

STORED = "document.cookie + JSON.stringify([localStorage, sessionStorage]) + location.href + history.length"
NEXT = "import('./assets/api.js').then(({ nextPage }) => nextPage(`?next=${encodeURIComponent(%s)}`))"
ELSEWHERE = [
    "//evil.example",
    "//evil.example/account/security",
    "/\\evil.example",
    "\\\\evil.example",
    "/\t/evil.example",
    "/\n/evil.example",
    " //evil.example",
    "https://evil.example",
    "https:evil.example",
    "javascript:alert(1)",
    "/javascript:alert(1)\u0000",
    "data:text/html,x",
    "evil.example",
    "@evil.example",
    "./../evil",
    "",
]


async def test_a_login_with_the_keyboard_leads_to_the_security_page(site: Site, email: str) -> None:
    page = site.page
    await site.open("security")
    await page.wait_for(LOGIN)
    await page.press("Tab")
    await page.write(email)
    await page.press("Tab")
    await page.write(PASSWORD)
    await page.press("Enter")
    await page.wait_for(LOADED)

    assert await page.run("document.querySelector('#owner').textContent") == email
    assert await page.run(STORED) == f"[{{}},{{}}]{site.url}security" + str(await page.run("history.length"))
    assert not any(PASSWORD in url or "@" in url for url in page.requests)


async def test_a_wrong_password_is_told_beside_the_field(site: Site, email: str) -> None:
    page = site.page
    await site.open("login")
    await page.fill("#username", email)
    await page.fill("#password", "not the password")
    await page.press("Enter")
    await page.wait_for("document.querySelector('#password').ariaInvalid")
    described = await page.run(
        "document.getElementById(document.querySelector('#password').getAttribute('aria-describedby')).textContent"
    )
    focused = await page.run(FOCUS)
    await page.run("document.querySelector('#password').value = ''")
    await page.fill("#password", PASSWORD)
    await page.press("Enter")
    await page.wait_for(LOADED)

    assert described.startswith("These credentials are not valid.")
    assert focused == "password"


async def test_a_forgotten_password_is_one_mail(site: Site, email: str) -> None:
    page = site.page
    await site.open("login")
    await page.click("[href=forgot-password]")
    await page.wait_for("location.pathname.endsWith('forgot-password') && document.readyState === 'complete'")
    await page.fill("#email", email)
    await page.press("Enter")
    sent = await page.wait_for(
        "document.querySelector('form')?.hidden && document.querySelector('#status').textContent"
    )
    jobs = await site.count("SELECT count(*) FROM procrastinate_jobs WHERE args::text LIKE :text", text=f"%{email}%")

    assert sent == "If this can be done, a mail is on its way."
    assert await page.run(FOCUS) == "status"
    assert jobs == 1


@pytest.mark.parametrize("path", ["/docs", "/account/security?x=1#here"])
async def test_after_the_login_the_asked_page_follows(site: Site, path: str) -> None:
    await site.open("login")

    assert await site.page.run(NEXT % json.dumps(path)) == site.server.base_url + path


async def test_after_the_login_no_page_of_another_origin_follows(site: Site) -> None:
    await site.open("login")

    found = {await site.page.run(NEXT % json.dumps(text)) for text in ELSEWHERE}

    assert found == {f"{site.url}security"}


async def test_a_login_follows_next(site: Site, email: str) -> None:
    await site.log_in(email)
    await site.page.open(f"{site.url}login?next=%2Flivez")
    await site.page.wait_for("location.pathname === '/livez'")
    await site.page.open(f"{site.url}login?next=%2F%2Fevil.example")
    await site.page.wait_for(SECURITY)


async def test_a_browser_that_keeps_no_cookie_is_told(site: Site, email: str) -> None:
    page = site.page
    async with site.answering("/auth/token", 400, {"code": "invalid_request"}, body="grant_type=refresh_token"):
        await site.open("login")
        await page.fill("#username", email)
        await page.fill("#password", PASSWORD)
        await page.press("Enter")
        told = await page.wait_for("document.querySelector('#first [role=alert]').textContent")

    assert str(told).startswith("Your browser did not keep the cookie")


async def test_a_login_waits_for_the_answer_about_an_earlier_one_which_may_delete_the_cookie(
    site: Site, email: str
) -> None:
    page = site.page
    # The name of a window stays when the page changes.
    script = """const real = fetch; let isFirst = true;
        window.fetch = async (url, options) => {
            if (String(options.body).includes("grant_type=password")) window.name += "sent ";
            if (!isFirst || !String(options.body).includes("grant_type=refresh_token")) return real(url, options);
            isFirst = false;
            await new Promise((resolve) => { setTimeout(resolve, 1500); });
            if (location.pathname.endsWith("login")) window.name += "answered ";
            return location.pathname.endsWith("login")
                ? new Response('{"code": "invalid_grant"}', {status: 400}) : real(url, options);
        }"""
    added = await page.send("Page.addScriptToEvaluateOnNewDocument", source=script)
    await page.run("window.name = ''")
    await site.log_in(email)
    await page.send("Page.removeScriptToEvaluateOnNewDocument", **added)

    assert await page.run("window.name") == "answered sent "


async def test_a_login_and_a_logout_reach_the_other_tabs_which_refresh_at_once(site: Site, email: str) -> None:
    await site.open("login")
    other = await site.page.new_tab()
    await site.open("login", other)
    await site.log_in(email)
    await other.wait_for(LOADED)
    # A new page has no access token, so both tabs refresh at the same moment.
    await asyncio.gather(*(site.open("security", tab) for tab in (site.page, other)))
    await asyncio.gather(*(tab.wait_for(LOADED) for tab in (site.page, other)))
    await site.page.click("#log-out")
    await site.page.wait_for(LOGIN)
    await other.wait_for(LOGIN)
    cookies = await site.page.send("Network.getCookies", urls=[site.url])
    await other.send("Page.close")

    assert cookies["cookies"] == []


async def test_a_page_shows_the_account_on_which_it_acts(site: Site, email: str) -> None:
    second = await site.add_account()
    await site.log_in(email)
    other = await site.page.new_tab()
    # The page of the first account does not hear of the second login, as if the browser had suspended the tab.
    await site.page.run("document.querySelector('#owner').dataset.old = true")
    await site.open("forgot-password", other)
    form = json.dumps({"grant_type": "password", "username": second, "password": PASSWORD})
    await other.run(
        f"""fetch("../api/v1/auth/token", {{method: "POST", headers: {{"Token-Transport": "cookie"}},
            body: new URLSearchParams({form})}}).then((response) => response.status)"""
    )
    await site.execute(
        "UPDATE sessions SET revoked_at = now() FROM users WHERE user_id = users.id AND email = :email", email=email
    )
    await site.page.click("#end-others")
    await site.page.wait_for(f"!document.querySelector('#owner')?.dataset.old && {LOADED}")
    await other.send("Page.close")

    assert await site.page.run("document.querySelector('#owner').textContent") == second
    assert (
        await site.count(
            "SELECT count(*) FROM sessions JOIN users ON user_id = users.id WHERE email = :email AND revoked_at IS NULL",
            email=second,
        )
        == 1
    )
