"""A primary with standbys, each a private server on this machine, and what they cost: CPU, transactions, connections."""

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from app.auth.settings import AuthSettings
from app.core.security.keys import generate_key_set, load_key_ring
from app.settings import settings_model
from benchmarks import seed
from benchmarks.lab import PUBLIC_URL, Site
from tests.faults.postgres import PrivatePostgres, caught_up, standby_of

_TICKS = os.sysconf("SC_CLK_TCK")
# For four instances with 200 connections each, without a pooler.
_MAX_CONNECTIONS = "max_connections=1000"


@dataclass(frozen=True)
class Replication:
    """A filled primary, its standbys, and the settings of an application."""

    site: Site
    primary: PrivatePostgres
    standbys: list[PrivatePostgres]


@asynccontextmanager
async def replication(*, rows: int, standbys: int) -> AsyncIterator[Replication]:
    """Run a primary with accounts, and this many standbys, while the block runs."""
    with tempfile.TemporaryDirectory(prefix="replication-") as directory:
        async with AsyncExitStack() as stack:
            primary = PrivatePostgres(Path(directory) / "primary", _MAX_CONNECTIONS)
            await primary.start()
            stack.push_async_callback(primary.stop)
            site = await _site(primary.url, rows)
            found = []
            for number in range(standbys):
                standby = await standby_of(primary, Path(directory) / f"standby-{number}", _MAX_CONNECTIONS)
                stack.push_async_callback(standby.stop)
                found.append(standby)
            for standby in found:
                await caught_up(primary, standby)
            yield Replication(site, primary, found)


async def _site(url: str, rows: int) -> Site:
    key_set = generate_key_set()
    values = {"database": {"url": url}, "server": {"public_url": PUBLIC_URL}, "auth": {"signing_keys": key_set}}
    settings = settings_model().model_validate(values)
    await seed.make_database(settings, rows)
    return Site(settings, load_key_ring(settings.of(AuthSettings)), key_set, rows)


def cpu_seconds(server: PrivatePostgres) -> float:
    """Return the CPU time of all processes of a server, those that have ended included."""
    postmaster, *children = server.processes()
    return sum(_times(pid, 11, 13) for pid in children) + _times(postmaster, 11, 15)


def _times(pid: int, first: int, last: int) -> float:
    # proc(5): utime and stime, then those of ended children.
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[first:last])) / _TICKS
