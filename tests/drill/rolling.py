"""`make rolling`: replaces the processes of an earlier release one by one under load, and rolls back, on one database."""

import argparse
import asyncio
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from httpx2 import AsyncClient, HTTPError

from app.auth.settings import AuthSettings
from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from app.dev.postgres.cluster import server_for_tests
from tests.conftest import ROOT, make_settings, template
from tests.factories import PASSWORD, make_user
from tests.servers import SERVE, Server, server_by

# The last commit before second factors.
_BEFORE = "b90d11b"
_TOKEN, _ME = "/api/v1/auth/token", "/api/v1/users/me"
_PROCESSES = 2
_REFRESHES = 5


@dataclass
class Fleet:
    """The servers that receive requests, as a load balancer sees them, and what their clients got."""

    url: str
    sources: dict[str, Path]
    servers: list[tuple[Server, AsyncExitStack]] = field(default_factory=list)
    results: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    async def add(self, release: str) -> None:
        stack = AsyncExitStack()
        environment = {
            "PYTHONPATH": str(self.sources[release]),
            "APP_RATE_LIMIT__ENABLED": "false",
            # The address of the load balancer. Without it, each port is another issuer of tokens.
            "APP_SERVER__PUBLIC_URL": "http://127.0.0.1:8000",
            # As an operator sets it to roll back: the schema is newer than the earlier release.
            "APP_DATABASE__ACCEPT_NEWER_SCHEMA": "true",
        }
        server = await stack.enter_async_context(server_by(SERVE, self.url, environment))
        self.servers.append((server, stack))

    async def remove_oldest(self) -> None:
        """Take a server out of rotation while its requests run, and stop it, which waits for them."""
        server, stack = self.servers.pop(0)
        async with asyncio.timeout(30):
            server.process.terminate()
            await server.process.wait()
        await stack.aclose()

    async def replace_all(self, release: str, *, pause: float) -> None:
        for _ in range(_PROCESSES):
            await self.add(release)
            await asyncio.sleep(pause)
            await self.remove_oldest()
            await asyncio.sleep(pause)

    async def send(self, client: AsyncClient, kind: str, method: str, path: str, **request: object) -> dict[str, str]:
        """Send a request to any server. Everything but 200 is a failure, and ends the client's session."""
        server, _ = random.choice(self.servers)  # noqa: S311  # No secret.
        try:
            response = await client.request(method, f"{server.base_url}{path}", **request)  # type: ignore[arg-type]
        except HTTPError as error:
            self.failures.append(f"{kind}: {error!r}")
            return {}
        if response.status_code != 200:
            self.failures.append(f"{kind}: {response.status_code} {response.text}")
            return {}
        self.results[kind] += 1
        body: dict[str, str] = response.json()
        return body


async def act(fleet: Fleet, email: str, stopping: asyncio.Event) -> None:
    """Log in, and read and refresh in turns, until the drill ends. Every request may reach another release."""
    form = {"grant_type": "password", "username": email, "password": PASSWORD}
    async with AsyncClient(timeout=30) as client:
        while not stopping.is_set():
            pair = await fleet.send(client, "login", "POST", _TOKEN, data=form)
            for _ in range(_REFRESHES):
                if not pair:
                    break
                headers = {"Authorization": f"Bearer {pair['access_token']}"}
                await fleet.send(client, "read", "GET", _ME, headers=headers)
                again = {"grant_type": "refresh_token", "refresh_token": pair["refresh_token"]}
                pair = await fleet.send(client, "refresh", "POST", _TOKEN, data=again)


@asynccontextmanager
async def load(fleet: Fleet, emails: list[str]) -> AsyncIterator[None]:
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for email in emails:
            group.create_task(act(fleet, email, stopping))
        yield
        stopping.set()


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
    emails = await add_accounts(url, clients)
    for _ in range(_PROCESSES):
        await fleet.add("before")
    async with load(fleet, emails):
        for release in ("now", "before"):
            started, earlier = time.monotonic(), fleet.results.copy()
            await asyncio.sleep(pause)
            await fleet.replace_all(release, pause=pause)
            seconds, done = time.monotonic() - started, fleet.results - earlier
            print(f"to {release}: {dict(done)} in {seconds:.0f} s, {len(fleet.failures)} failed so far", flush=True)
    for _ in range(_PROCESSES):
        await fleet.remove_oldest()
    return fleet


def checked_out(commit: str, directory: Path) -> Path:
    archive = subprocess.run(["git", "archive", commit, "src"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x"], cwd=directory, input=archive, check=True)
    return directory


async def main(commit: str, *, clients: int, pause: float) -> int:
    with tempfile.TemporaryDirectory(prefix="rolling-") as directory, server_for_tests(ROOT) as server_url:
        before = checked_out(commit, Path(directory))
        async with template(server_url) as url:
            fleet = await drill(url, before, clients=clients, pause=pause)
    for failure in fleet.failures[:20]:
        print(failure)
    print(f"{fleet.results.total()} requests succeeded, {len(fleet.failures)} failed")
    return 1 if fleet.failures else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", default=_BEFORE, help="the commit of the earlier release")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pause", type=float, default=5.0, help="seconds between two steps")
    options = parser.parse_args()
    sys.exit(asyncio.run(main(options.before, clients=options.clients, pause=options.pause)))
