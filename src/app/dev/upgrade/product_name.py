"""The places that spell the name of the product, for `make rename` and `make upgrade`."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

PRODUCT = "src/app/core/product.py"
# Files and patterns. The group that matches is replaced by the slug or by the name.
_SLUGS = (
    (PRODUCT, r'^SLUG = "(.*)"$'),
    ("pyproject.toml", r'^\[project\]\nname = "(.*)"$'),
    ("requirements/*.txt", r"^    #(?: via|  ) ([\w.-]+) \(pyproject\.toml(?::\w+)?\)$"),
    ("deploy/monitoring/alerts.yaml", r'job="({slug})"|under the job `({slug})`|^  - name: ({slug})$'),
    ("deploy/monitoring/dashboard.json", r'^  "uid": "({slug})"|^    "({slug})",?$'),
    ("docs/operations/*.md", r"under the job `({slug})`|job_name: ({slug})$|`({slug})` unless set"),
)
_NAMES = (
    (PRODUCT, r'^NAME = "(.*)"$'),
    ("deploy/monitoring/dashboard.json", r'^  "title": "({name})"'),
    ("README.md", r"^# ({name})$"),
)
FILES = sorted({files for files, _ in (*_SLUGS, *_NAMES)})


@dataclass(frozen=True)
class Identity:
    name: str
    slug: str


def identity(text: str) -> Identity | None:
    """Return the name in the text of `product.py`, or None if it has none."""
    name, slug = (re.search(rf'^{member} = "(.*)"$', text, re.MULTILINE) for member in ("NAME", "SLUG"))
    return Identity(name[1], slug[1]) if name and slug else None


def contains_name(path: str) -> bool:
    return any(fnmatchcase(path, files) for files in FILES)


def renamed(path: str, text: str, before: Identity, after: Identity) -> str:
    """Return the text of a file with the new name."""
    for places, new in ((_SLUGS, after.slug), (_NAMES, after.name)):
        for files, pattern in places:
            if fnmatchcase(path, files):
                found = pattern.replace("{slug}", re.escape(before.slug)).replace("{name}", re.escape(before.name))
                text = re.sub(found, partial(_replace_group, new=new), text, flags=re.MULTILINE)
    return text


def _replace_group(match: re.Match[str], *, new: str) -> str:
    start, end = match.span(match.lastindex or 0)
    return match[0][: start - match.start()] + new + match[0][end - match.start() :]
