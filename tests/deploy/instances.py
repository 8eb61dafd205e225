"""Two instances of the application behind a proxy, and clients that count failures."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from uuid import uuid4

from app.auth.settings import AuthSettings
from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from app.dev.ports import free_port
from tests.conftest import log_in, make_settings
from tests.deploy.proxies import Proxy
from tests.factories import make_user
from tests.faults.load import Ledger, writing
from tests.faults.site import ME, USERS
from tests.servers import SERVE, Server, server_by

# As in production.
DRAIN_DELAY = "5s"
_ENVIRONMENT = {
    # The default contains the port, which differs between the instances.
    "APP_AUTH__ISSUER": "https://api.example.com",
    "APP_AUTH__ACCESS_TOKEN_TTL": "15m",
    "APP_SERVER__DRAIN_DELAY": DRAIN_DELAY,
    "APP_SERVER__TRUSTED_PROXIES": "127.0.0.1/32",
    # All clients have the same address.
    "APP_RATE_LIMIT__ENABLED": "false",
    "APP_LOG__LEVEL": "warning",
}
_STOP_TIMEOUT = 40.0
_CLIENTS = 4


@dataclass
class Instance:
    """One instance. It keeps its port after a restart."""

    url: str
    command: tuple[str, ...]
    environment: dict[str, str]
    port: int = field(default_factory=free_port)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _server: Server | None = None

    async def start(self) -> None:
        """Start it, and wait until it is ready."""
        running = server_by(self.command, self.url, {**self.environment, "PORT": str(self.port)})
        self._server = await self._stack.enter_async_context(running)

    async def restart(self) -> None:
        """Restart it as an operator does: let it drain, and wait until its successor is ready."""
        assert self._server
        assert await self._server.stop(within=_STOP_TIMEOUT) == 0
        await self._stack.aclose()
        await self.start()

    async def kill(self) -> None:
        """Restart it without a drain."""
        assert self._server
        os.killpg(self._server.process.pid, signal.SIGKILL)
        await self._server.process.wait()
        await self._stack.aclose()
        await self.start()

    async def close(self) -> None:
        await self._stack.aclose()


@asynccontextmanager
async def two_instances(
    url: str, *, command: tuple[str, ...] = SERVE, **environment: str
) -> AsyncIterator[list[Instance]]:
    """Run two instances on one database: one with a single process, one with two worker processes."""
    commands = (command, (*command, "--workers", "2"))
    instances = [Instance(url, one, _ENVIRONMENT | environment) for one in commands]
    try:
        await asyncio.gather(*(instance.start() for instance in instances))
        yield instances
    finally:
        await asyncio.gather(*(instance.close() for instance in instances))


@dataclass
class Load:
    """Clients of a proxy. They read and write as fast as they get responses, on connections that they keep."""

    proxy: Proxy
    headers: dict[str, str]
    reads: Ledger = field(default_factory=Ledger)
    writes: Ledger = field(default_factory=Ledger)
    failures: list[str] = field(default_factory=list)
    _idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return self.reads.responses.total() + self.writes.responses.total()

    async def read(self, _name: str) -> int:
        """Read the own account."""
        return await self._send("GET", ME)

    async def write(self, name: str) -> int:
        """Create an account. A second request with the same name would be a conflict."""
        return await self._send("POST", USERS, {"email": f"{name}@example.com"})

    async def _send(self, method: str, path: str, body: object = None) -> int:
        try:
            status, content = await self._exchange(method, path, b"" if body is None else json.dumps(body).encode())
        except (OSError, asyncio.IncompleteReadError) as error:
            self.failures.append(f"{method}: {error!r}")
            raise
        if status >= 300:
            self.failures.append(f"{method}: {status} {content[:200]!r}")
        return status

    async def _exchange(self, method: str, path: str, content: bytes) -> tuple[int, bytes]:
        headers = {
            "Host": self.proxy.host,
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            **self.headers,
        }
        reader, writer = await self._take()
        is_kept = False
        try:
            lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "\r\n"]
            writer.write("\r\n".join(lines).encode() + content)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            body = await reader.readexactly(int(head.partition("content-length:")[2].partition("\r\n")[0]))
            is_kept = "connection: close" not in head
        finally:
            if is_kept:
                self._idle.append((reader, writer))
            else:
                writer.close()
        return int(head.split(" ")[1]), body

    async def _take(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(
            "127.0.0.1", self.proxy.https, ssl=self.proxy.tls, server_hostname=self.proxy.host
        )

    def close(self) -> None:
        for _, writer in self._idle:
            writer.transport.abort()


@asynccontextmanager
async def load_on(proxy: Proxy, url: str) -> AsyncIterator[Load]:
    """Let an administrator's clients read and write until the block ends, and wait for their last responses."""
    email = await add_account(url, role="admin")
    async with proxy.client() as client:
        load = Load(proxy, await log_in(client, email))
    try:
        async with (
            writing(load.reads, load.read, clients=_CLIENTS),
            writing(load.writes, load.write, clients=_CLIENTS),
        ):
            yield load
    finally:
        load.close()


async def add_account(url: str, **values: str) -> str:
    """Add an account with a password, and return its address."""
    settings = make_settings(url)
    database, hasher = Database(settings.database), PasswordHasher(settings.of(AuthSettings))
    try:
        async with database.begin() as session:
            return (await make_user(session, hasher, email=f"{uuid4().hex}@example.com", **values)).email
    finally:
        hasher.close()
        await database.dispose()
