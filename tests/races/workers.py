"""Several server processes with one database, and lightweight clients, so that the servers limit the rate of requests."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit
from uuid import UUID, uuid4

import asyncpg
from sqlalchemy import make_url

from app.auth.settings import AuthSettings
from app.core.config import DatabaseSettings
from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from tests.auth.forge import read_part
from tests.factories import PASSWORD, make_user
from tests.servers import Server, real_server

TOKEN = "/api/v1/auth/token"
REVOKE = "/api/v1/auth/revoke"
ME = "/api/v1/users/me"
# Long timeouts, because the machine may be busy. No rate limits, because all clients have one address.
_PATIENT = {
    # By default, the issuer of each process would contain its own port.
    "APP_AUTH__ISSUER": "https://api.example.com",
    "APP_RATE_LIMIT__ENABLED": "false",
    "APP_DATABASE__POOL_SIZE": "5",
    "APP_DATABASE__POOL_WAIT": "20s",
    "APP_DATABASE__LOCK_TIMEOUT": "20s",
    "APP_DATABASE__STATEMENT_TIMEOUT": "30s",
    "APP_AUTH__HASH_QUEUE": "10000",
    "APP_LOG__LEVEL": "warning",
}


@dataclass(frozen=True)
class Answer:
    """Status and body of a response."""

    status: int
    body: dict[str, Any]


@dataclass
class Worker:
    """One server process, and open connections to it."""

    server: Server
    _idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def request(
        self, method: str, path: str, *, token: str | None = None, form: dict[str, str] | None = None, body: Any = None
    ) -> Answer:
        """Send a request on a free connection, and read the response."""
        content, kind = (b"", "")
        if form is not None:
            content, kind = urlencode(form).encode(), "application/x-www-form-urlencoded"
        elif body is not None:
            content, kind = json.dumps(body).encode(), "application/json"
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(content)}"]
        lines += [f"Content-Type: {kind}"] * bool(kind) + [f"Authorization: Bearer {token}"] * (token is not None)
        reader, writer = await self._take()
        try:
            writer.write("\r\n".join([*lines, "\r\n"]).encode() + content)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length:")[2].split("\r\n")[0] or 0)
            raw = await reader.readexactly(length)
        except BaseException:
            writer.close()
            raise
        self._idle.append((reader, writer))
        return Answer(int(head.split(" ")[1]), json.loads(raw) if raw else {})

    async def _take(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            # The server closes idle connections.
            if not reader.at_eof():
                return reader, writer
            writer.close()
        address = urlsplit(self.server.base_url)
        return await asyncio.open_connection(address.hostname, address.port)

    def close(self) -> None:
        """Close the idle connections."""
        for _, writer in self._idle:
            writer.close()

    async def refresh(self, token: str) -> Answer:
        """Use a refresh token."""
        return await self.request("POST", TOKEN, form={"grant_type": "refresh_token", "refresh_token": token})

    async def log_in(self, email: str, password: str = PASSWORD) -> Answer:
        """Log in."""
        form = {"grant_type": "password", "username": email, "password": password}
        return await self.request("POST", TOKEN, form=form)

    async def accepts(self, access_token: str) -> bool:
        """Return whether this process accepts an access token."""
        answer = await self.request("GET", ME, token=access_token)
        assert answer.status in {200, 401}, answer
        return answer.status == 200


@dataclass
class Fleet:
    """All server processes with one database, and the database."""

    workers: list[Worker]
    database: Database
    watcher: asyncpg.Connection
    hasher: PasswordHasher
    _watching: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def any(self) -> Worker:
        """A random process, as behind a load balancer."""
        return random.choice(self.workers)  # noqa: S311  # Of workers.

    async def accounts(self, count: int, **values: Any) -> list[str]:
        """Add accounts, and return their addresses."""
        emails = [f"{uuid4().hex}@example.com" for _ in range(count)]
        hashed_password = await self.hasher.hash(PASSWORD)
        async with self.database.begin() as session:
            for email in emails:
                await make_user(session, email=email, hashed_password=hashed_password, **values)
        return emails

    async def log_in(self, email: str) -> dict[str, Any]:
        """Log in at a random process, which must succeed."""
        answer = await self.any.log_in(email)
        assert answer.status == 200, answer
        return answer.body

    async def session_row(self, access_token: str) -> asyncpg.Record | None:
        """Read the session of a token directly from the database."""
        async with self._watching:
            return await self.watcher.fetchrow("SELECT * FROM sessions WHERE id = $1", session_of(access_token))

    async def change(self, statement: str, access_token: str) -> None:
        """Change the session of a token directly in the database."""
        async with self._watching:
            await self.watcher.execute(f"UPDATE sessions SET {statement} WHERE id = $1", session_of(access_token))  # noqa: S608  # Our own words.


def session_of(access_token: str) -> UUID:
    return UUID(read_part(access_token, 1)["sid"])


def user_of(access_token: str) -> str:
    return str(read_part(access_token, 1)["sub"])


@asynccontextmanager
async def fleet(url: str, *environments: dict[str, str]) -> AsyncIterator[Fleet]:
    """Start one server process for each of these environments, all concurrently."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    async with AsyncExitStack() as stack:
        servers = [real_server(url, **(_PATIENT | environment)) for environment in environments]
        started = await asyncio.gather(*(stack.enter_async_context(server) for server in servers))
        workers = [Worker(server) for server in started]
        database = Database(DatabaseSettings.model_validate({"url": url, "pool_size": 2, "pool_wait": "60s"}))
        stack.push_async_callback(database.dispose)
        watcher = await asyncpg.connect(plain)
        stack.push_async_callback(watcher.close)
        hasher = PasswordHasher(AuthSettings(bcrypt_cost=4))
        stack.callback(hasher.close)
        for worker in workers:
            stack.callback(worker.close)
        yield Fleet(workers, database, watcher, hasher)
