"""The processes of two releases on one database, and the clients that use them."""

import asyncio
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from httpx2 import AsyncClient, HTTPError, Response

from tests.factories import PASSWORD
from tests.servers import SERVE, Server, server_by

PROCESSES = 2
TOKEN = "/api/v1/auth/token"
_ME = "/api/v1/users/me"
_REFRESHES = 5

# A client of one account, which acts until the event is set.
type Client = Callable[["Fleet", str, asyncio.Event], Coroutine[None, None, None]]


@dataclass(frozen=True)
class Process:
    """A running server of one release, and what stops it."""

    release: str
    server: Server
    stack: AsyncExitStack


@dataclass
class Fleet:
    """The servers that receive requests, as a load balancer sees them, and what their clients got."""

    url: str
    sources: dict[str, Path]
    processes: list[Process] = field(default_factory=list)
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
        self.processes.append(Process(release, server, stack))

    async def remove_oldest(self) -> None:
        """Take a server out of rotation while its requests run, and stop it, which waits for them."""
        oldest = self.processes.pop(0)
        async with asyncio.timeout(30):
            oldest.server.process.terminate()
            await oldest.server.process.wait()
        await oldest.stack.aclose()

    async def replace_all(self, release: str, *, pause: float) -> None:
        for _ in range(PROCESSES):
            await self.add(release)
            await asyncio.sleep(pause)
            await self.remove_oldest()
            await asyncio.sleep(pause)

    async def run(self, release: str, *arguments: str) -> int:
        """Run the `app` command of a release, and return its exit code."""
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("APP_")},
            "PYTHONPATH": str(self.sources[release]),
            "DATABASE_URL": self.url,
            "APP_ENVIRONMENT": "test",
        }
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "app", *arguments, env=environment)
        return await process.wait()

    async def migrate(self, release: str) -> None:
        """Run the migrations of a release, as a deployment does before its first process."""
        if await self.run(release, "migrate"):
            self.failures.append(f"the migrations of {release} failed")

    def running(self, release: str) -> list[Process]:
        return [process for process in self.processes if process.release == release]

    async def request(
        self, client: AsyncClient, kind: str, method: str, path: str, *, release: str = "", **request: Any
    ) -> Response | None:
        """Send a request to any server, or to any of this release. None if it failed, or if this release runs no more."""
        processes = self.running(release) if release else self.processes
        if not processes:
            return None
        process = random.choice(processes)  # noqa: S311  # No secret.
        try:
            return await client.request(method, f"{process.server.base_url}{path}", **request)
        except HTTPError as error:
            self.failures.append(f"{kind}: {error!r}")
            return None

    async def send(
        self, client: AsyncClient, kind: str, method: str, path: str, *, expected: int = 200, **request: Any
    ) -> dict[str, Any]:
        """Send a request to any server. Every other status is a failure, and ends the client's session."""
        response = await self.request(client, kind, method, path, **request)
        if response is None:
            return {}
        if response.status_code != expected:
            self.failures.append(f"{kind}: {response.status_code} {response.text}")
            return {}
        self.results[kind] += 1
        body: dict[str, Any] = response.json()
        return body


def form(email: str) -> dict[str, str]:
    return {"grant_type": "password", "username": email, "password": PASSWORD}


def bearer(pair: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {pair['access_token']}"}


async def read_and_refresh(fleet: Fleet, client: AsyncClient, pair: dict[str, Any]) -> dict[str, Any]:
    """Use a session several times, and return its last pair of tokens."""
    for _ in range(_REFRESHES):
        if not pair:
            break
        await fleet.send(client, "read", "GET", _ME, headers=bearer(pair))
        again = {"grant_type": "refresh_token", "refresh_token": pair["refresh_token"]}
        pair = await fleet.send(client, "refresh", "POST", TOKEN, data=again)
    return pair
