"""The security page in a browser: sessions, password, address, data, and closing the account."""

import asyncio
import json
import time
from pathlib import Path

import pytest

from tests.auth.post import NEW_PASSWORD
from tests.core.browser import PROGRAM
from tests.factories import PASSWORD
from tests.self_service.site import FOCUS, LOADED, LOGIN, Site

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"
DEVICES = {
    FIREFOX: "Firefox on Linux",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/142.0.0.0 Safari/537.36 Edg/142.0.0.0": "Edge on Windows",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/142.0.0.0 Safari/537.36": "Chrome on Windows",
    "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 Chrome/142.0.0.0 Mobile Safari/537.36": "Chrome on Android",
    "Mozilla/5.0 (Linux; Android 14) SamsungBrowser/27.0 Chrome/125.0.0.0 Mobile Safari/537.36": "Samsung Internet on Android",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) Version/18.1 Mobile/15E148 Safari/604.1": "Safari on iPhone",
    "Mozilla/5.0 (iPad; CPU OS 18_1 like Mac OS X) AppleWebKit/605.1.15 CriOS/142.0.0.0 Mobile/15E148 Safari/604.1": "Chrome on iPad",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 Version/18.1 Safari/605.1.15": "Safari on macOS",
    "Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 Chrome/142.0.0.0 Safari/537.36": "Chrome on ChromeOS",
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/142.0.0.0 Safari/537.36 OPR/127.0.0.0": "Opera on Linux",
    "curl/8.5.0": "curl",
    "okhttp/4.12.0": "okhttp",
    "nightly report (Linux)": "Linux",
    "a" * 300: "a" * 39 + "…",
    "<img src=x onerror=alert(1)>": "<img",
    " ": "Unknown device",
    "": "Unknown device",
}
NAMES = "[...document.querySelectorAll('.device')].map((one) => one.textContent)"


def message(section: str, role: str = "status") -> str:
    """Return an expression for the message of a section."""
    return f"document.querySelector('#{section} .message[role={role}]').textContent"


def read_soon(file: Path) -> str:
    """Read a file that the browser is about to write."""
    for _ in range(500):
        if file.exists():
            break
        time.sleep(0.02)
    return file.read_text()


async def test_devices_have_readable_names(site: Site) -> None:
    # This page stays, without a login.
    await site.open("forgot-password")

    found = await site.page.run(
        f"import('./assets/device.js').then(({{ deviceName }}) => {json.dumps([*DEVICES])}.map(deviceName))"
    )
    missing = await site.page.run("import('./assets/device.js').then(({ deviceName }) => deviceName(null))")

    assert dict(zip(DEVICES, found, strict=True)) == DEVICES
    assert missing == "Unknown device"


async def test_a_session_of_another_device_ends(site: Site, email: str) -> None:
    page = site.page
    await site.log_in_elsewhere(email, "<b>device</b>/1.0", FIREFOX)
    await site.log_in(email)
    before = await page.run(NAMES)
    has_markup = await page.run("document.querySelector('.sessions b') !== null")
    await page.click("button[aria-label^='End Firefox on Linux, last used']")
    said = await page.wait_for(message("sessions"))
    left = await page.run(NAMES)
    await page.click("#end-others")
    await page.wait_for(f"{message('sessions')}.startsWith('All other')")

    assert before == ["Chrome on Linux", "Firefox on Linux", "<b>device<"]
    assert not has_markup
    assert said == "The session has ended."
    assert left == ["Chrome on Linux", "<b>device<"]
    assert await page.run(NAMES) == ["Chrome on Linux"]
    assert await page.run("document.querySelector('#end-others').hidden")
    assert await page.run(FOCUS) == "sessions-title"


async def test_many_sessions_are_listed_page_by_page(site: Site, email: str) -> None:
    page = site.page
    await site.log_in_elsewhere(email, *(f"device{number}/1.0" for number in range(24)))
    await site.log_in(email)
    first = await page.run(NAMES)
    await page.click("#more-sessions")
    await page.wait_for("document.querySelectorAll('.device').length === 25")

    assert len(first) == 20
    assert str(await page.run("document.activeElement.ariaLabel")).startswith("End device4, last used")
    assert await page.run("document.querySelector('#more-sessions').hidden")


async def test_the_password_changes_and_only_this_session_stays(site: Site, email: str) -> None:
    page = site.page
    await site.log_in_elsewhere(email, FIREFOX)
    await site.log_in(email)
    await page.fill("#current_password", "not the password")
    await page.fill("#new_password", NEW_PASSWORD)
    await page.press("Enter")
    await page.wait_for("document.querySelector('#current_password').ariaInvalid")
    wrong = await page.run("document.querySelector('#current_password-error').textContent")
    await page.run("document.querySelector('#password form').reset()")
    await page.fill("#current_password", PASSWORD)
    await page.fill("#new_password", "123456789012345")
    await page.press("Enter")
    await page.wait_for("document.querySelector('#new_password').ariaInvalid")
    weak = await page.run(FOCUS), await page.run("document.querySelector('#current_password').ariaInvalid")
    await page.run("document.querySelector('#new_password').value = ''")
    await page.fill("#new_password", NEW_PASSWORD)
    await page.press("Enter")
    said = await page.wait_for(message("password"))
    await page.wait_for(f"{NAMES}.length === 1")
    values = await page.run("[...document.querySelectorAll('[type=password]')].map((one) => one.value).join('')")
    await page.click("#log-out")
    await page.wait_for(LOGIN)
    await site.log_in(email, NEW_PASSWORD)

    assert wrong == "The current password is wrong."
    assert weak == ("new_password", None)
    assert said == "Your password is changed. All other sessions have ended."
    assert values == ""


async def test_an_old_login_is_confirmed_before_the_account_closes(site: Site, email: str) -> None:
    page = site.page
    await site.log_in(email)
    await site.execute("UPDATE sessions SET auth_time = now() - interval '1 hour', acr = acr")
    await site.open("security")
    await page.wait_for(LOADED)
    await page.run("document.querySelector('#close').focus()")
    await page.press("Enter")
    await page.write("somebody@example.com")
    await page.press("Enter")
    await page.wait_for("document.querySelector('#confirmed_email').ariaInvalid")
    await page.run("document.querySelector('#confirmed_email').value = ''")
    await page.write(email.upper())
    await page.press("Enter")
    await page.wait_for("document.querySelector('#step-up').open")
    await page.press("Escape")
    await page.wait_for("document.querySelector('#close-dialog form').ariaBusy === 'false'")
    await page.run("document.querySelector('#confirmed_email').focus()")
    await page.press("Enter")
    await page.wait_for("document.querySelector('#step-up').open")
    await page.write("not the password")
    await page.press("Enter")
    await page.wait_for("document.querySelector('#step_up_password').ariaInvalid")
    await page.run("document.querySelector('#step_up_password').value = ''")
    count = "SELECT count(*) FROM users WHERE email = :email"
    before = await site.count(count, email=email)
    await page.write(PASSWORD)
    await page.press("Enter")
    await page.wait_for("!document.querySelector('#closed').hidden")

    assert (before, await site.count(count, email=email)) == (1, 0)
    assert await page.run(FOCUS) == "Your account is closed"
    await page.click("[href=login]")
    await page.wait_for(LOGIN)


async def test_the_last_administrator_is_told_why_the_account_stays(site: Site) -> None:
    email = await site.add_account(role="admin")
    page = site.page
    await site.log_in(email)
    await page.run("document.querySelector('#close').focus()")
    await page.press("Enter")
    await page.write(email)
    await page.press("Enter")
    told = await page.wait_for("document.querySelector('#close-dialog [role=alert]').textContent")
    await page.click("#close-dialog [data-cancel]")
    await page.wait_for("document.querySelector('#close-dialog [role=alert]').textContent === ''")

    assert "administrator" in str(told)
    assert await page.run(FOCUS) == "close"
    assert await page.run("document.querySelector('#close-dialog').open") is False


async def test_the_own_data_are_downloaded(site: Site, email: str, tmp_path: Path) -> None:
    page = site.page
    await site.log_in(email)
    await page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    await page.click("#export")
    await page.wait_for(message("data"))
    exported = json.loads(await asyncio.to_thread(read_soon, tmp_path / "account.json"))

    assert exported["user"]["email"] == email
    assert exported["is_complete"] is True


async def test_an_error_of_the_service_is_told(site: Site, email: str) -> None:
    await site.log_in(email)
    async with site.answering("/users/me", 503, {"detail": "The database is down."}):
        await site.open("security")
        told = await site.page.wait_for("document.querySelector('#problem').textContent")
    await site.page.run("window.fetch = async () => { throw new TypeError('Failed to fetch'); }")
    await site.page.click("#log-out")
    unreachable = await site.page.wait_for(
        "document.querySelector('#problem').textContent.startsWith('The service') && document.querySelector('#problem').textContent"
    )

    assert told == "The database is down."
    assert unreachable == "The service cannot be reached. Try again."


async def test_a_session_that_has_ended_leads_to_the_login_and_back(site: Site, email: str) -> None:
    await site.log_in_elsewhere(email, FIREFOX)
    await site.log_in(email)
    await site.execute("UPDATE sessions SET revoked_at = now() WHERE revoked_at IS NULL")
    # This operation asks the database. Others may learn of the end of a session a moment later.
    await site.page.click("#end-others")
    await site.page.wait_for(LOGIN)

    assert await site.page.run("location.search") == "?next=%2Faccount%2Fsecurity"
    await site.page.fill("#username", email)
    await site.page.fill("#password", PASSWORD)
    await site.page.press("Enter")
    await site.page.wait_for(LOADED)
