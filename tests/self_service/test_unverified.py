"""A login before the address is verified. Only accounts that registered themselves can be unverified."""

import pytest

from tests.core.browser import PROGRAM
from tests.factories import PASSWORD
from tests.self_service.site import Site

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")


async def test_an_unverified_account_gets_the_mail_again(site: Site) -> None:
    email = await site.add_account(email_verified_at=None)
    page = site.page
    await site.open("login")
    await page.fill("#username", email)
    await page.fill("#password", PASSWORD)
    await page.press("Enter")
    problem = await page.wait_for("document.querySelector('#first [role=alert]').textContent")
    await page.click("#resend button")
    sent = await page.wait_for("document.querySelector('#status').textContent")

    assert str(problem).startswith("Verify your email address first.")
    assert sent == "If this can be done, a mail is on its way."
