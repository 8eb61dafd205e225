"""The revisions that this release knows, as Alembic reads them, without loading Alembic at every start."""

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
    """The revision that this release needs, and every revision that it knows."""

    head: str
    known: frozenset[str]


def head() -> str:
    """Name the revision that this release needs: the one that no other follows."""
    return _revisions().head


def known() -> frozenset[str]:
    """Name every revision of this release; any other belongs to a newer one."""
    return _revisions().known


async def applied(connection: AsyncConnection | AsyncSession) -> Sequence[str]:
    """Name the revisions that a schema is at: none before the first migration, more than one where two heads were applied."""
    if not await connection.scalar(_HAS_TABLE):
        return ()
    return (await connection.scalars(_APPLIED)).all()


def missing(revisions: Sequence[str]) -> str | None:
    """Say what a schema at these revisions lacks for this release."""
    if list(revisions) == [head()]:
        return None
    return f"the schema is at revision {named(revisions)}, this program needs {head()}"


def named(revisions: Sequence[str]) -> str:
    """Name the revisions that a schema is at: none before the first migration, several between a branch and its merge."""
    return " and ".join(revisions) or "none"


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """Say whether the models describe this: the tables of the job queue are procrastinate's. Alembic's `include_name`."""
    return not (kind == "table" and name is not None and name.startswith("procrastinate_"))


@cache
def _revisions() -> Revisions:
    digest = _digest()
    if cached := _cached(digest):
        return cached
    # Alembic takes 100 ms of CPU to load. Only new or changed files need it.
    from app.migrations import scripts

    directory = scripts.read()
    revisions = Revisions(scripts.head(directory), frozenset(script.revision for script in directory.walk_revisions()))
    _keep(digest, revisions)
    return revisions


def _digest() -> str:
    """Identify the contents of the migration files. A file that cannot be read counts as empty; Alembic reports both."""
    digest = hashlib.sha256()
    for file in sorted((DIRECTORY / "versions").glob("*.py")):
        content = b""
        with suppress(OSError):
            content = file.read_bytes()
        digest.update(f"{file.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _cached(digest: str) -> Revisions | None:
    try:
        stored = json.loads(_cache_file().read_bytes())
        return Revisions(stored["head"], frozenset(stored["known"])) if stored["digest"] == digest else None
    except (OSError, ValueError, KeyError, TypeError):
        # It is missing, or it is not ours. It is written again.
        return None


def _keep(digest: str, revisions: Revisions) -> None:
    file = _cache_file()
    staging = file.with_suffix(f".{os.getpid()}")
    # The installed package may be read-only. The next start then loads Alembic again.
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        staging.write_text(json.dumps({"digest": digest, "head": revisions.head, "known": sorted(revisions.known)}))
        staging.replace(file)


def _cache_file() -> Path:
    """Stand beside the bytecode, wherever Python keeps that."""
    return Path(cache_from_source(str(DIRECTORY / "revisions.py"))).with_name("revisions.json")
