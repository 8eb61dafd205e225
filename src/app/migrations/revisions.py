"""The revisions of this release. A cache file holds them, so that a start does not have to load Alembic."""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import cache_from_source
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

DIRECTORY = Path(__file__).parent
_HAS_TABLE = text("SELECT to_regclass('alembic_version') IS NOT NULL")
_APPLIED = text("SELECT version_num FROM alembic_version ORDER BY version_num")


@dataclass(frozen=True)
class Revisions:
    """The revision that this release needs, and all revisions that it contains."""

    head: str
    known: frozenset[str]


def head() -> str:
    """Return the revision that this release needs: the one without a successor."""
    return _revisions().head


def known() -> frozenset[str]:
    """Return all revisions of this release. Any other revision belongs to a newer release."""
    return _revisions().known


async def applied(connection: AsyncConnection | AsyncSession) -> Sequence[str]:
    """Return the revisions of a schema: none before the first migration, several if two heads were applied."""
    if not await connection.scalar(_HAS_TABLE):
        return ()
    return (await connection.scalars(_APPLIED)).all()


def mismatch(revisions: Sequence[str]) -> str | None:
    """Return a sentence that says how these revisions differ from the one that this release needs, or None if they are equal."""
    if list(revisions) == [head()]:
        return None
    return f"the schema is at revision {named(revisions)}, this program needs {head()}"


def named(revisions: Sequence[str]) -> str:
    return " and ".join(revisions) or "none"


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """Exclude procrastinate's tables from autogenerate, because they have no models. For Alembic's `include_name`."""
    return not (kind == "table" and name is not None and name.startswith("procrastinate_"))


@cache
def _revisions() -> Revisions:
    digest = _digest()
    if cached := _load(digest):
        return cached
    # Alembic takes 100 ms of CPU time to load. Only new or changed files need it.
    from app.migrations import scripts

    directory = scripts.read()
    revisions = Revisions(scripts.head(directory), frozenset(script.revision for script in directory.walk_revisions()))
    _store(digest, revisions)
    return revisions


def _digest() -> str:
    """Hash the migration files. An unreadable file counts as empty; Alembic reports it later."""
    digest = hashlib.sha256()
    for file in sorted((DIRECTORY / "versions").glob("*.py")):
        content = b""
        with suppress(OSError):
            content = file.read_bytes()
        digest.update(f"{file.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _load(digest: str) -> Revisions | None:
    try:
        stored = json.loads(_cache_file().read_bytes())
        return Revisions(stored["head"], frozenset(stored["known"])) if stored["digest"] == digest else None
    except (OSError, ValueError, KeyError, TypeError):
        # The file is missing or invalid. It will be written again.
        return None


def _store(digest: str, revisions: Revisions) -> None:
    file = _cache_file()
    staging = file.with_suffix(f".{os.getpid()}")
    # If the installed package is read-only, the next start loads Alembic again.
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        staging.write_text(json.dumps({"digest": digest, "head": revisions.head, "known": sorted(revisions.known)}))
        staging.replace(file)


def _cache_file() -> Path:
    """Return a path in the directory where Python stores the bytecode of this package."""
    return Path(cache_from_source(str(DIRECTORY / "revisions.py"))).with_name("revisions.json")
