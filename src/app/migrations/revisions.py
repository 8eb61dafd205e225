"""What the migration files say, without a database and without Alembic, which takes longer to load than they do."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_VERSIONS = Path(__file__).parent / "versions"
_LINK = re.compile(r'^revision = "(?P<name>.+)"\ndown_revision = (?:None|"(?P<parent>.+)")$', re.MULTILINE)


@cache
def head() -> str:
    """Name the revision this program was written for: the one that no other follows."""
    links = dict(_links())
    (newest,) = links.keys() - links.values()
    return newest


@cache
def known() -> frozenset[str]:
    """Name every revision this program has heard of; any other is a newer program's."""
    return frozenset(name for name, _ in _links())


def _links() -> Iterator[tuple[str, str | None]]:
    for file in _VERSIONS.glob("*.py"):
        for link in _LINK.finditer(file.read_text()):
            yield link["name"], link["parent"]


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """Say whether the models describe this: the tables of the job queue are procrastinate's. Alembic's `include_name`."""
    return not (kind == "table" and name is not None and name.startswith("procrastinate_"))
