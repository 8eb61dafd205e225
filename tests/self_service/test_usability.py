"""The pages on narrow screens, in both colour schemes, and for screen readers."""

from collections.abc import Awaitable, Callable

import pytest

from tests.core.browser import PROGRAM, Page
from tests.self_service.images import EMAIL, PAGES
from tests.self_service.site import Site

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")]

# WCAG 2.2, 1.4.3: the contrast of each visible text with the first background behind it that is not transparent.
CONTRASTS = """(() => {
    const channels = (color) => color.match(/[\\d.]+/g).map(Number);
    const luminance = (color) => channels(color).slice(0, 3).map((value) => value / 255)
        .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
    const background = (element) => {
        for (let one = element; one; one = one.parentElement) {
            const color = getComputedStyle(one).backgroundColor;
            if ((channels(color)[3] ?? 1) === 1) return color;
        }
        return "rgb(255, 255, 255)";
    };
    const found = [];
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        if (!(own || element.value) || !element.checkVisibility() || element.closest("script, template, noscript")) continue;
        const pair = [getComputedStyle(element).color, background(element)].map(luminance).sort((a, b) => b - a);
        found.push([(pair[0] + 0.05) / (pair[1] + 0.05), element.outerHTML.slice(0, 80)]);
    }
    return found;
})()"""
NAMED = {"button", "link", "textbox", "checkbox", "dialog", "image", "list", "region", "status", "alert"}
UNNAMED = {"list", "status", "alert"}


@pytest.fixture
async def visited(site: Site) -> Site:
    """A site with the account of the pictures."""
    if not await site.count("SELECT count(*) FROM users WHERE email = :email", email=EMAIL):
        await site.add_account(email=EMAIL)
    return site


@pytest.mark.parametrize("name", PAGES)
async def test_a_page_fits_a_narrow_screen_has_contrast_and_names(visited: Site, name: str) -> None:
    page = visited.page
    show: Callable[[Site], Awaitable[object]] = PAGES[name]
    await page.resize(360, 700)
    await show(visited)
    widths = await page.run("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    narrow = [await contrast(page, scheme) for scheme in ("light", "dark")]
    unnamed = await nameless(page)

    assert widths[0] == widths[1]
    assert all(ratio >= 4.5 for found in narrow for ratio, _ in found), narrow
    assert all(len(found) >= 3 for found in narrow)
    assert unnamed == []


async def contrast(page: Page, scheme: str) -> list[tuple[float, str]]:
    await page.resize(360, 700, scheme=scheme)
    found: list[tuple[float, str]] = await page.run(CONTRASTS)
    return found


async def nameless(page: Page) -> list[str]:
    """Return the controls without a name that screen readers can say."""
    await page.send("Accessibility.enable")
    nodes = (await page.send("Accessibility.getFullAXTree"))["nodes"]
    await page.send("Accessibility.disable")
    roles = [(node["role"]["value"], node.get("name", {}).get("value")) for node in nodes if not node["ignored"]]
    assert {"heading", "main"} & {role for role, _ in roles}
    return [role for role, name in roles if role in NAMED - UNNAMED and not name]
