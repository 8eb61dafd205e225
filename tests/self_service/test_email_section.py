"""The section for a change of address, which belongs to the feature `email_change`."""

import pytest

from tests.core.browser import PROGRAM
from tests.factories import PASSWORD
from tests.self_service.site import FOCUS, LOADED, Site

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")]

HIDDEN = "document.querySelector('#email').hidden"


async def test_a_change_of_address_is_requested(site: Site, email: str) -> None:
    page = site.page
    await site.log_in(email)
    await page.fill("#new_email", "new@example.com")
    await page.fill("#email_password", "not the password")
    await page.press("Enter")
    wrong = await page.wait_for("document.querySelector('#email_password-error')?.textContent")
    await page.run("document.querySelector('#email_password').value = ''")
    await page.fill("#email_password", PASSWORD)
    await page.press("Enter")
    said = await page.wait_for("document.querySelector('#email [role=status]').textContent")
    links = "SELECT count(*) FROM account_links WHERE email = 'new@example.com' AND purpose = 'confirm_email'"

    assert wrong == "The current password is wrong."
    assert said == "If this can be done, a mail is on its way."
    assert await page.run(FOCUS) == "email-title"
    assert await site.count(links) == 1


async def test_without_the_feature_the_section_is_hidden(site: Site, email: str) -> None:
    await site.log_in(email)
    shown = await site.page.run(HIDDEN)
    async with site.answering("/users/me/email", 404, {"code": "not_found", "detail": "There is nothing."}):
        await site.open("security")
        await site.page.wait_for(LOADED)

        assert shown is False
        assert await site.page.run(HIDDEN) is True
