"""The pages of mailed links lead on to the login."""

import pytest
from httpx2 import AsyncClient

from tests.auth.post import AUTH, NEW_PASSWORD
from tests.core.browser import PROGRAM
from tests.self_service.site import LOADED, LOGIN, Site

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")]


async def test_a_set_password_leads_to_the_login(site: Site, email: str) -> None:
    page = site.page
    async with AsyncClient(base_url=site.server.base_url) as client:
        await client.post(f"{AUTH}/password/forgot", json={"email": email})
    # The links begin with the default public URL.
    _, _, link = (await site.link_to(email)).partition("/account/")
    await site.open(link)
    await page.fill("#password", NEW_PASSWORD)
    await page.press("Enter")
    await page.wait_for("document.activeElement.href?.endsWith('/account/login')")
    await page.press("Enter")
    await page.wait_for(LOGIN)
    await site.log_in(email, NEW_PASSWORD)

    assert await page.run(LOADED)
