"""Fixtures for the tests of the pages."""

from collections.abc import AsyncIterator

import pytest

from app.core.security.hashing import PasswordHasher
from tests.conftest import cloned
from tests.self_service.site import Site, opened


@pytest.fixture(scope="session")
async def running_site(
    template_url: str, hasher: PasswordHasher, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    """One application and one browser for all tests of a pytest worker."""
    async with (
        cloned(template_url) as url,
        opened(url, hasher, tmp_path_factory.mktemp("browser"), APP_RATE_LIMIT__ENABLED="false") as site,
    ):
        yield site


@pytest.fixture
async def site(running_site: Site) -> AsyncIterator[Site]:
    """The application and the browser, which keeps nothing of the test before."""
    running_site.page.complaints.clear()
    running_site.page.requests.clear()
    yield running_site
    await running_site.forget()
    # A refused request is an error in the console, but a script or a style that the policy forbids is a defect.
    assert [text for text in running_site.page.complaints if "'source': 'network'" not in text] == []


@pytest.fixture
async def email(site: Site) -> str:
    """The address of a new account."""
    return await site.add_account()
