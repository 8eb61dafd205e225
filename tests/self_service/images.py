"""`make images`: writes a picture of each page to docs/images, on a wide and on a narrow screen, light and dark."""

import asyncio
import base64
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from app.auth.settings import AuthSettings
from app.core.security.hashing import PasswordHasher
from app.dev.postgres.cluster import server_for_tests
from tests.conftest import ROOT, cloned, make_settings, template
from tests.self_service.site import Site, opened

IMAGES = ROOT / "docs" / "images"
WIDTHS = {"wide": 1000, "narrow": 360}
SCHEMES = ("light", "dark")
EMAIL = "ada.lovelace@analytical-engines.example.com"
DEVICES = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 Version/18.1 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0",
    "analytical-engine-reporting-client-with-a-long-name/2.31 (nightly export; contact ops@example.com)",
)


async def show_login(site: Site) -> None:
    await site.forget()
    await site.open("login")


async def show_refused_login(site: Site) -> None:
    await show_login(site)
    await site.page.fill("#username", EMAIL)
    await site.page.fill("#password", "not the password")
    await site.page.click("#first button")
    await site.page.wait_for("document.querySelector('.error')")


async def show_forgot_password(site: Site) -> None:
    await site.open("forgot-password")


async def show_security(site: Site) -> None:
    await site.forget()
    await site.log_in_elsewhere(EMAIL, *DEVICES)
    await site.log_in(EMAIL)


async def show_closing(site: Site) -> None:
    await show_security(site)
    await site.page.click("#close")


async def show_set_password(site: Site) -> None:
    await site.open("set-password#token=lt1")


PAGES: Mapping[str, Callable[[Site], Awaitable[None]]] = {
    "login": show_login,
    "login-refused": show_refused_login,
    "forgot-password": show_forgot_password,
    "security": show_security,
    "closing": show_closing,
    "set-password": show_set_password,
}


async def _write(site: Site, name: str) -> None:
    for screen, width in WIDTHS.items():
        for scheme in SCHEMES:
            await site.page.resize(width, 700, scheme=scheme)
            height = await site.page.run("document.documentElement.scrollHeight")
            await site.page.resize(width, max(int(height), 500), scheme=scheme)
            taken = await site.page.send("Page.captureScreenshot", format="png", optimizeForSpeed=False)
            (IMAGES / f"{name}-{screen}-{scheme}.png").write_bytes(base64.b64decode(taken["data"]))


async def _write_all(server_url: str, directory: Path) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    async with template(server_url) as empty, cloned(empty) as url:
        hasher = PasswordHasher(make_settings(url).of(AuthSettings))
        async with opened(url, hasher, directory, APP_RATE_LIMIT__ENABLED="false") as site:
            await site.add_account(email=EMAIL, full_name="Ada Lovelace")
            for name, show in PAGES.items():
                await show(site)
                await _write(site, name)
                sys.stdout.write(f"{name}\n")
        hasher.close()


if __name__ == "__main__":
    with TemporaryDirectory() as directory, server_for_tests(ROOT) as server_url:
        asyncio.run(_write_all(server_url, Path(directory)))
