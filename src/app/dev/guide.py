"""Writes the listings of the guide to a new feature: the output of `make feature`."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from app.dev.generator import edit
from app.dev.generator.parse import parse
from app.dev.generator.render import render
from app.dev.generator.repository import Repository, Revision
from app.migrations import revisions

ROOT = Path(__file__).resolve().parents[3]
PATH = Path("docs/adding-a-feature.md")
_GUIDED = parse("notes", "text:text", targets=Repository(ROOT).target)
_LISTING = re.compile(r'^(```(?:python|diff) title="([^"]+)"\n)(.*?)^```$', re.MULTILINE | re.DOTALL)


def text() -> str:
    """Return the guide to a new feature. Its listings are the output of `make feature`, and its migration follows the newest one."""
    page = (ROOT / PATH).read_text()
    (own,) = re.findall(r'^revision = "(\d{8}_\w+)"$', page, flags=re.MULTILINE)
    if own in revisions.known() or (ROOT / "src" / "app" / _GUIDED.name).exists():
        # The repository already contains the feature of the guide.
        return page
    newest = revisions.head()
    # The date of the newest migration keeps the dates in order, and the page does not change from day to day.
    date = newest[:8] if newest[:8].isdigit() else own[:8]
    revision = Revision(f"{date}_{_GUIDED.name}", newest)
    files = render(ROOT, _GUIDED, revision)
    return _LISTING.sub(partial(_filled, files), page.replace(own, revision.name))


def _filled(files: Mapping[str, str], listing: re.Match[str]) -> str:
    """Return a listing of the guide with the text of the file in its title."""
    start, path, code = listing.groups()
    if path == edit.FILE:
        code = f'     "{edit.listed((ROOT / path).read_text())[-1]}",\n+    "{_GUIDED.name}",\n'
    return f"{start}{files.get(path, code)}```"
