"""The pages below a path of their host, behind a proxy that strips it."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.core.security.hashing import PasswordHasher
from tests.core.browser import PROGRAM
from tests.core.http.test_path_prefix import listening_proxy
from tests.self_service.site import LOGIN, opened

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")]


async def test_the_pages_work_below_a_path_prefix(clone_url: str, tmp_path: Path, hasher: PasswordHasher) -> None:
    async with (
        listening_proxy() as (url, connect),
        opened(clone_url, hasher, tmp_path, APP_SERVER__PUBLIC_URL=url) as direct,
    ):
        connect(direct.server.base_url)
        site = replace(direct, server=replace(direct.server, base_url=url))
        page = site.page
        await site.log_in(await site.add_account())
        shown = await page.run("location.href")
        await page.click("#log-out")
        await page.wait_for(LOGIN)
        address = await page.run("location.href")

    prefix = url.rpartition("/")[2]
    assert shown == f"{url}/account/security"
    assert address == f"{url}/account/login?next=%2F{prefix}%2Faccount%2Fsecurity"
    outside = [one for one in page.requests if not one.startswith((f"{url}/", "data:"))]
    assert outside == []
