"""Carries out a removal, and tells the developer what happened and what is left to do."""

from collections.abc import Iterator

from app.dev import run
from app.dev.removal import local
from app.dev.removal.plan import Removal

_FIRST_RELEASE = """
Its tables and models stay for one more release: while a deployment migrates, processes of the old release still use the
tables. Release this, and then run the same command again. It deletes the models, and writes the migration that drops the tables."""
_SECOND_RELEASE = """
Release this after the release that deleted the code. Its migration drops the tables with their rows; a downgrade creates empty ones."""


def carry_out(removal: Removal) -> Iterator[str]:
    """Take the local database back, and write the files. Yield sentences for the developer."""
    taken_back = _write(removal)
    yield f"Removed the feature {removal.feature.name}: {len(removal.deleted)} files deleted."
    for path in removal.changed:
        yield f"  changed  {path}"
    for path in removal.created:
        yield f"  new      {path}"
    if taken_back:
        yield f"The database of make run no longer has {', '.join(taken_back)}."
    if removal.created:
        yield _SECOND_RELEASE
    elif removal.is_first_release:
        yield _FIRST_RELEASE
    if mentions := removal.mentions():
        yield "\nThese still speak of it:"
        yield from (f"  {mention}" for mention in mentions)


def _write(removal: Removal) -> list[str]:
    if not removal.undone:
        removal.write()
        return []
    with run.local_database() as url:
        if url:
            return local.take_back(url, removal.undone, removal.write)
    removal.write()
    return []
