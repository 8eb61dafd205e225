"""`make images`: writes a picture of each page to docs/images, on a wide and on a narrow screen, light and dark."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pyotp

from app.auth.settings import AuthSettings
from app.core.security.hashing import PasswordHasher
from app.dev.postgres.cluster import server_for_tests
from app.features import FEATURES
from tests.conftest import ROOT, cloned, make_settings, template
from tests.core.browser import Page
from tests.factories import PASSWORD
from tests.self_service.pictures import picture
from tests.self_service.site import LOADED, Site, opened

IMAGES = ROOT / "docs" / "images"
WIDTHS = {"wide": 1000, "narrow": 360}
# A dialog is in the middle of the window. Of a page with a long section, only this section is interesting.
HEIGHT = """(() => {
    if (document.querySelector("dialog[open]")) return 0;
    const part = document.querySelector(":is([data-state=pending], [data-state=codes]):not([hidden])");
    return part ? part.closest("section").getBoundingClientRect().bottom + 16 : document.documentElement.scrollHeight;
})()"""
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


async def show_setup(site: Site) -> str:
    await site.forget()
    email = await site.add_account()
    await site.log_in(email)
    await site.page.click("#set-up")
    await site.page.wait_for("document.querySelector('#qr').naturalWidth > 0")
    return email


async def show_recovery_codes(site: Site) -> str:
    email = await show_setup(site)
    secret = str(await site.page.run("document.querySelector('#secret').textContent"))
    await site.page.fill("#totp_code", pyotp.TOTP(secret.replace(" ", "")).now())
    await site.page.press("Enter")
    await site.page.wait_for("document.querySelector('#codes li')")
    return email


async def show_second_leg(site: Site) -> None:
    email = await show_recovery_codes(site)
    await site.forget()
    await site.open("login")
    await site.page.fill("#username", email)
    await site.page.fill("#password", PASSWORD)
    await site.page.press("Enter")
    await site.page.wait_for("!document.querySelector('#second').hidden")


async def show_step_up(site: Site) -> None:
    await show_recovery_codes(site)
    await site.execute("UPDATE sessions SET auth_time = now() - interval '1 hour', acr = acr")
    await site.open("security")
    await site.page.wait_for(LOADED)
    await site.page.click("#new-codes")
    await site.page.click("#new-codes-dialog button")
    await site.page.wait_for("document.querySelector('#step-up').open")


async def show_closing(site: Site) -> None:
    await show_security(site)
    await site.page.click("#close")


async def show_set_password(site: Site) -> None:
    await site.open("set-password#token=lt1")


PAGES: dict[str, Callable[[Site], Awaitable[object]]] = {
    "login": show_login,
    "login-refused": show_refused_login,
    "forgot-password": show_forgot_password,
    "security": show_security,
    "closing": show_closing,
    "set-password": show_set_password,
}
if "factors" in FEATURES:
    PAGES |= {
        "second-factor": show_setup,
        "recovery-codes": show_recovery_codes,
        "second-leg": show_second_leg,
        "step-up": show_step_up,
    }


async def _write(site: Site, canvas: Page, name: str) -> None:
    for screen, width in WIDTHS.items():
        for scheme in SCHEMES:
            await site.page.resize(width, 500, scheme=scheme)
            height = await site.page.run(HEIGHT)
            await site.page.resize(width, max(int(height), 500), scheme=scheme)
            (IMAGES / f"{name}-{screen}-{scheme}.png").write_bytes(await picture(site.page, canvas))


async def _write_all(server_url: str, directory: Path) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    async with template(server_url) as empty, cloned(empty) as url:
        hasher = PasswordHasher(make_settings(url).of(AuthSettings))
        async with opened(url, hasher, directory, APP_RATE_LIMIT__ENABLED="false") as site:
            await site.add_account(email=EMAIL, full_name="Ada Lovelace")
            canvas = await site.page.new_tab()
            await site.page.send("Emulation.setScrollbarsHidden", hidden=True)
            for name, show in PAGES.items():
                await show(site)
                await _write(site, canvas, name)
                sys.stdout.write(f"{name}\n")
        hasher.close()


if __name__ == "__main__":
    with TemporaryDirectory() as directory, server_for_tests(ROOT) as server_url:
        asyncio.run(_write_all(server_url, Path(directory)))
