"""Rewrites the code of features that were written after the guide of version 0.1.0. Run upgrade_imports.py first.

`make upgrade` runs it. What it does not know stays as it is, and `make types` names it; docs/upgrading.md has the table.

Use: .venv/bin/python scripts/upgrade_code.py src/app/notes
"""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

_ROW_PAGE = r"tuple\[Sequence\[Row\[Any\]\], Position \| None\]"
# Replaced everywhere, in this order.
_PLAIN = (
    # The end of three kinds of endpoints. The next patterns tell them apart.
    (r'    response\.headers\["ETag"\] = etag\((\w+)\.version\)\n    return \1\n', r"    return_tag(\1)\n"),
    (r"(\w+: If(?:None)?Match) = None", r"\1"),
    (r"\bacceptable_versions\((\w+)\)", r"\1.versions"),
    (
        r"    if is_current\((\w+), (\w+)\.version\):\n        return not_modified\(\2\.version\)\n    return_tag\(\2\)\n",
        r"    return \1.tag(\2)\n",
    ),
    (
        r'    response\.headers\["Location"\] = .*\n    return_tag\((\w+)\)\n',
        r"    return created.tag(\1)\n",
    ),
    (r"    return_tag\((\w+)\)\n", r"    return if_match.tag(\1)\n"),
    (
        r"    position = pager\.position\((\w+), (.+)\)\n    return pager\.page\(\1, \*await (.+), position\)\)\n",
        r"    return await pager.list(\1, \2, lambda page: \3, page))\n",
    ),
    (
        rf"order: Order, position: Position \| None, limit: int\n\) -> {_ROW_PAGE}:",
        r"request: PageRequest\n) -> PageRows:",
    ),
    (r"\border, position, limit=limit\)", r"request)"),
    (rf"position: Position \| None\n\) -> {_ROW_PAGE}:", r"page: PageRequest\n) -> PageRows:"),
    (r"\border_of\(query\), position, query\.limit\)", r"page)"),
)
# The members that VersionedBase declares.
_VERSIONED = tuple(
    f"    {member}: Mapped[{kind}]\n"
    for member, kind in (
        ("id", "PrimaryKey"),
        ("created_at", "CreatedAt"),
        ("updated_at", "UpdatedAt"),
        ("version", "Version"),
    )
)
# Added to the import of the module if the code needs them. Ruff removes the imports that are not used any more.
_IMPORTS = {
    "app.core.http.etags": ("CreatedDep",),
    "app.core.db.keyset": ("PageRequest", "PageRows"),
    "app.core.db.database": ("VersionedBase",),
}
_BLOCK = re.compile(r"^(?=@router\.|class )", re.MULTILINE)


def rewrite(text: str) -> str:
    for former, present in _PLAIN:
        text = re.sub(former, present, text)
    text = "".join(_endpoint(_model(block)) for block in _BLOCK.split(text))
    for module, names in _IMPORTS.items():
        missing = [name for name in names if re.search(rf"\b{name}\b", text)]
        text = re.sub(
            rf"^(from {re.escape(module)} import (?!.*{'|'.join(names)})[^(\n]+)$",
            rf"\1{_more(missing)}",
            text,
            flags=re.MULTILINE,
        )
    return text


def _more(names: Iterable[str]) -> str:
    return "".join(f", {name}" for name in names)


def _endpoint(block: str) -> str:
    """Remove the parameters of an endpoint that its new body does not need."""
    if "created.tag(" in block:
        block = block.replace("response: Response", "created: CreatedDep").replace("request: Request, ", "")
    if ".tag(" in block:
        block = re.sub(r"(?:    )?response: Response,[ \n]", "", block).replace(" | Response:", ":")
    return block


def _model(block: str) -> str:
    if not all(member in block for member in _VERSIONED):
        return block
    for member in _VERSIONED:
        block = block.replace(member, "", 1)
    return block.replace("(Base):", "(VersionedBase):", 1)


def main(places: Iterable[str]) -> None:
    for file in _python_files(places):
        before = file.read_text()
        if (after := rewrite(before)) != before:
            file.write_text(after)
            sys.stdout.write(f"{file}\n")


def _python_files(places: Iterable[str]) -> Iterator[Path]:
    for place in map(Path, places):
        yield from sorted(place.rglob("*.py")) if place.is_dir() else [place]


if __name__ == "__main__":
    main(sys.argv[1:])
