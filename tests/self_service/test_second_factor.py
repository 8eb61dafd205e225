"""The second factor in a browser: set up, print, log in with both legs, confirm operations, and remove."""

import pytest

from tests.core.browser import PROGRAM, Page
from tests.factories import PASSWORD
from tests.factors.phone import Phone
from tests.self_service.site import LOADED, LOGIN, Site

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")]

SAID = "document.querySelector('#second-factor > [role=status]').textContent"
CODES = "[...document.querySelectorAll('#codes li')].map((one) => one.textContent)"
# What is on the screen or on paper, besides white space.
VISIBLE = """(() => {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) {
        const text = walker.currentNode.textContent.trim();
        if (text && walker.currentNode.parentElement.checkVisibility()) found.push(text);
    }
    return found;
})()"""
LEFT = "document.querySelector('#codes-left').textContent"


def state(name: str) -> str:
    """Return an expression that is true while the section shows this state."""
    return f"document.querySelector('#second-factor [data-state={name}]:not([hidden])')"


async def activate(page: Page, selector: str) -> None:
    """Move the focus to a button, and press Enter."""
    await page.wait_for(f"document.querySelector('{selector}').checkVisibility()")
    await page.run(f"document.querySelector('{selector}').focus()")
    await page.press("Enter")


async def set_up(site: Site) -> tuple[Phone, list[str]]:
    """Set up an app on the open security page, and return it with the recovery codes."""
    page = site.page
    await activate(page, "#set-up")
    secret = await page.wait_for("document.querySelector('#secret').textContent")
    phone = Phone(str(secret).replace(" ", ""))
    await page.fill("#totp_code", phone.code())
    await page.press("Enter")
    await page.wait_for(state("codes"))
    codes: list[str] = await page.run(CODES)
    await forget_used_codes(site)
    return phone, codes


async def forget_used_codes(site: Site) -> None:
    """Let the codes of this moment be used again, as after some minutes."""
    await site.execute("UPDATE totp_secrets SET last_step = 0")


async def begin_login(site: Site, email: str) -> None:
    """Send the first leg."""
    await site.page.fill("#username", email)
    await site.page.fill("#password", PASSWORD)
    await site.page.press("Enter")
    await site.page.wait_for("document.activeElement.id === 'code'")


async def test_an_app_is_set_up_with_the_keyboard(site: Site, email: str) -> None:
    page = site.page
    await site.log_in_elsewhere(email, "curl/8.5.0")
    await site.log_in(email)
    await activate(page, "#set-up")
    await page.wait_for("document.querySelector('#qr').naturalWidth > 0")
    secret = str(await page.run("document.querySelector('#secret').textContent"))
    phone = Phone(secret.replace(" ", ""))
    # From the heading to the field.
    await page.press("Tab")
    await page.write(phone.wrong())
    await page.press("Enter")
    wrong = await page.wait_for("document.querySelector('#totp_code-error')?.textContent")
    await page.run("document.activeElement.value = ''")
    await page.write(f"{phone.code()[:3]} {phone.code()[3:]}")
    await page.press("Enter")
    await page.wait_for(f"{SAID}.startsWith('The second factor is on.')")
    codes = await page.run(CODES)
    leftover = await page.run("document.querySelector('#secret').textContent + document.querySelector('#qr').src")
    stored = await page.run("document.cookie + JSON.stringify([localStorage, sessionStorage]) + location.href")
    await page.wait_for("document.querySelectorAll('.device').length === 1")
    await activate(page, "#saved")
    await page.wait_for(state("on"))

    assert {len(group) for group in secret.split()} == {4}
    assert wrong
    assert len(set(codes)) == 10
    assert leftover == ""
    assert stored == f"[{{}},{{}}]{site.url}security"
    assert await page.run(CODES) == []
    assert await page.run(LEFT) == "Recovery codes left: 10."
    assert not any(phone.secret in url for url in page.requests if not url.startswith("data:"))


async def test_only_the_recovery_codes_are_printed_and_copied(site: Site, email: str) -> None:
    page = site.page
    await site.log_in(email)
    await page.resize(1000, 700, media="print")
    before = await page.run(VISIBLE)
    await page.resize(1000, 700)
    _, codes = await set_up(site)
    await page.send("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    await page.send("Page.bringToFront")
    await activate(page, "#copy")
    await page.wait_for(f"{SAID} === 'The codes are in the clipboard.'")
    copied = await page.run("navigator.clipboard.readText()")
    await page.resize(1000, 700, media="print", scheme="dark")
    printed = await page.run(VISIBLE)
    paper = await page.run("getComputedStyle(document.body).backgroundColor")
    await page.resize(1000, 700)

    assert copied == "\n".join(codes)
    assert printed[:4] == ["Your recovery codes", "Recovery codes of", email, printed[3]]
    assert printed[3].startswith("at ")
    assert printed[4:] == codes
    assert "Password" in before
    assert paper == "rgb(255, 255, 255)"


async def test_a_login_has_two_legs(site: Site, email: str) -> None:
    page = site.page
    await site.log_in(email)
    phone, codes = await set_up(site)
    await page.click("#log-out")
    await page.wait_for(LOGIN)

    await begin_login(site, email)
    await page.write(phone.wrong())
    await page.press("Enter")
    wrong = await page.wait_for("document.querySelector('#code-error')?.textContent")
    await page.run("document.querySelector('#code').value = ''")
    await page.write(phone.code())
    await page.press("Enter")
    await page.wait_for(LOADED)
    await page.click("#log-out")
    await page.wait_for(LOGIN)
    await begin_login(site, email)
    await activate(page, "#second [data-other] button")
    await page.wait_for("document.activeElement.id === 'recovery_code'")
    await page.write(codes[0].lower().replace("-", " "))
    await page.press("Enter")
    await page.wait_for(LOADED)

    assert str(wrong).startswith("These credentials are not valid.")
    assert await page.run(LEFT) == "Recovery codes left: 9."


async def test_a_login_begins_again_after_five_wrong_codes(site: Site, email: str) -> None:
    page = site.page
    await site.log_in(email)
    phone, _ = await set_up(site)
    await page.click("#log-out")
    await page.wait_for(LOGIN)
    await begin_login(site, email)
    for _ in range(5):
        await page.run("document.querySelector('#code').value = ''; document.querySelector('#code-error')?.remove()")
        await page.write(phone.wrong())
        await page.press("Enter")
        await page.wait_for("document.querySelector('#code-error')")

    assert await page.run("document.querySelector('#second').hidden")
    told = await page.run("document.querySelector('#first [role=alert]').textContent")
    assert told == "There were too many wrong codes. Log in again."
    assert await page.run("document.activeElement.id") == "username"


async def test_an_old_login_is_confirmed_with_a_code(site: Site, email: str) -> None:
    page = site.page
    await site.log_in(email)
    phone, codes = await set_up(site)
    await site.execute("UPDATE sessions SET auth_time = now() - interval '1 hour', acr = acr")
    await site.open("security")
    await page.wait_for(LOADED)
    await activate(page, "#new-codes")
    await page.press("Enter")
    await page.wait_for("document.querySelector('#step-up').open && document.activeElement.id === 'step_up_code'")
    await page.write(phone.wrong())
    await page.press("Enter")
    await page.wait_for("document.querySelector('#step_up_code').ariaInvalid")
    await page.run("document.querySelector('#step_up_code').value = ''")
    await page.write(phone.code())
    await page.press("Enter")
    await page.wait_for(state("codes"))
    new = await page.run(CODES)
    await activate(page, "#saved")
    await site.execute("UPDATE sessions SET auth_time = now() - interval '1 hour', acr = acr")
    await site.open("security")
    await page.wait_for(LOADED)
    await activate(page, "#remove")
    await page.press("Enter")
    await page.wait_for("document.querySelector('#step-up').open && document.activeElement.id === 'step_up_code'")
    await activate(page, "#step-up [data-other] button")
    await page.wait_for("document.activeElement.id === 'step_up_recovery_code'")
    await page.write(new[0])
    await page.press("Enter")
    await page.wait_for(LOGIN)
    await site.log_in(email)
    await page.wait_for(state("off"))

    assert not {*codes} & {*new}
    assert len(new) == 10


async def test_without_the_feature_the_section_is_hidden(site: Site, email: str) -> None:
    await site.log_in(email)
    async with site.answering("/users/me/mfa", 404, {"code": "not_found", "detail": "There is nothing."}):
        await site.open("security")
        await site.page.wait_for(LOADED)

        assert await site.page.run("document.querySelector('#second-factor').hidden")
