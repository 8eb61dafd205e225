"""`make rolling`: replaces the processes of an earlier release one by one under load, and rolls back, on one database.

The database begins with the schema of the earlier release, and is migrated under load. A feature can bring clients of its own, in the file
`rolling.py` of its tests.
"""

import argparse
import asyncio
import importlib
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path

from httpx2 import AsyncClient

from app.auth.settings import AuthSettings
from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from app.dev.postgres.cluster import server_for_tests
from tests.conftest import ROOT, empty, make_settings
from tests.drill.fleet import PROCESSES, TOKEN, Client, Fleet, form, read_and_refresh
from tests.factories import make_user

# The last commit before second factors.
_BEFORE = "b90d11b"


async def act(fleet: Fleet, email: str, stopping: asyncio.Event) -> None:
    """Log in, and read and refresh in turns, until the drill ends. Every request may reach another release."""
    async with AsyncClient(timeout=30) as client:
        while not stopping.is_set():
            pair = await fleet.send(client, "login", "POST", TOKEN, data=form(email))
            await read_and_refresh(fleet, client, pair)


@asynccontextmanager
async def load(fleet: Fleet, emails: list[str]) -> AsyncIterator[None]:
    """Run a client for each account: three in four as above, and the others as the features bring them."""
    stopping = asyncio.Event()
    own = cycle(brought() or [act])
    async with asyncio.TaskGroup() as group:
        for number, email in enumerate(emails):
            client = act if number % 4 else next(own)
            group.create_task(client(fleet, email, stopping))
        yield
        stopping.set()


def brought() -> list[Client]:
    """Return the clients that the features bring."""
    names = sorted(path.parent.name for path in ROOT.glob("tests/*/rolling.py") if path.parent.name != "drill")
    return [importlib.import_module(f"tests.{name}.rolling").act for name in names]


async def add_accounts(url: str, number: int) -> list[str]:
    settings = make_settings(url)
    database, hasher = Database(settings.database), PasswordHasher(settings.of(AuthSettings))
    async with database.begin() as session:
        emails = [(await make_user(session, hasher)).email for _ in range(number)]
    await database.dispose()
    hasher.close()
    return emails


async def drill(url: str, before: Path, *, clients: int, pause: float) -> Fleet:
    fleet = Fleet(url, {"before": before / "src", "now": ROOT / "src"})
    await fleet.migrate("before")
    emails = await add_accounts(url, clients)
    for _ in range(PROCESSES):
        await fleet.add("before")
    async with load(fleet, emails):
        await asyncio.sleep(pause)
        report(fleet, "before the migration", Counter())
        for release in ("now", "before"):
            done = fleet.results.copy()
            if release == "now":
                await fleet.migrate("now")
            await fleet.replace_all(release, pause=pause)
            report(fleet, f"to {release}", done)
    while fleet.processes:
        await fleet.remove_oldest()
    return fleet


def report(fleet: Fleet, step: str, done: Counter[str]) -> None:
    print(f"{step}: {dict(fleet.results - done)}, {len(fleet.failures)} failed so far", flush=True)


def checked_out(commit: str, directory: Path) -> Path:
    archive = subprocess.run(["git", "archive", commit, "src"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x"], cwd=directory, input=archive, check=True)
    return directory


async def main(commit: str, *, clients: int, pause: float) -> int:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rolling-") as directory, server_for_tests(ROOT) as server_url:
        before = checked_out(commit, Path(directory))
        async with empty(server_url) as url:
            fleet = await drill(url, before, clients=clients, pause=pause)
    for failure in fleet.failures[:20]:
        print(failure)
    seconds = time.monotonic() - started
    print(f"{fleet.results.total()} requests as expected, {len(fleet.failures)} failed, {seconds:.0f} s")
    return 1 if fleet.failures else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", default=_BEFORE, help="the commit of the earlier release")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pause", type=float, default=5.0, help="seconds between two steps")
    options = parser.parse_args()
    sys.exit(asyncio.run(main(options.before, clients=options.clients, pause=options.pause)))
