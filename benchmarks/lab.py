"""The databases and servers of one run. Each is created when a case first needs it."""

import asyncio
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import UUID, uuid4

import asyncpg
from sqlalchemy import make_url

from app.auth.settings import AuthSettings
from app.core.config import Settings
from app.core.security.keys import KeyRing, generate_key_set, load_key_ring
from app.settings import settings_model
from benchmarks import limit, seed
from benchmarks.seed import Caller
from benchmarks.servers import Command, Cores, Server

PUBLIC_URL = "https://benchmark.example.com"


@dataclass(frozen=True)
class Site:
    """A database with accounts, and the settings of an application that uses it."""

    settings: Settings
    keys: KeyRing
    key_set: str
    rows: int

    @property
    def url(self) -> str:
        """The URL of the database."""
        return self.settings.database.url.get_secret_value()

    def callers(self, numbers: range) -> list[Caller]:
        """Create a login session for each of these accounts."""
        return seed.log_in(self.settings, self.keys, numbers)

    def environment(self) -> dict[str, str]:
        """Return the settings as environment variables: those of production, as far as possible on one machine."""
        return {
            "DATABASE_URL": self.url,
            "APP_DATABASE__REQUIRE_TLS": "false",
            "APP_SERVER__PUBLIC_URL": PUBLIC_URL,
            "APP_AUTH__SIGNING_KEYS": self.key_set,
            "APP_MAIL__ALLOW_UNDELIVERED": "true",
            # Sampling would skip log lines, and so the cost of writing them.
            "APP_LOG__SAMPLE_EVERY": "1",
        }


class Lab:
    """The databases and servers of the cases. They are removed at the end of the block."""

    def __init__(self, server_url: str, cores: Cores, *, users: int, rows: int, against: Path | None) -> None:
        self.cores = cores
        self.against = against
        self.users = users
        self._rows = rows
        self._server_url = server_url
        self._secret = secrets.token_hex(32)
        self._stack = ExitStack()
        self._sites: dict[int, Site] = {}
        self._servers: dict[str, Server] = {}
        self._numbers = count()

    def __enter__(self) -> Self:
        self._directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def site(self) -> Site:
        """The database of most cases."""
        return self._site(self.users)

    @property
    def large_site(self) -> Site:
        """A database that is large enough to show a bad query plan."""
        return self._site(self._rows)

    def _site(self, rows: int) -> Site:
        if rows not in self._sites:
            self._sites[rows] = self._stack.enter_context(_filled(self._server_url, rows))
        return self._sites[rows]

    def server(self, kind: str) -> Server:
        """Return the running server of a kind."""
        if kind not in self._servers:
            self._servers[kind] = self._stack.enter_context(self.start(kind))
        return self._servers[kind]

    def start(self, kind: str) -> Server:
        """Start another server: `limit`, `application`, `before`, `two workers`, or `large` for the large database."""
        log = self._directory / f"{kind.replace(' ', '-')}-{next(self._numbers)}.log"
        return Server(self._command(kind), self.cores.all if kind == "two workers" else self.cores.server, log)

    def _command(self, kind: str) -> Command:
        if kind == "limit":
            environment = {"DATABASE_URL": seed.plain(self.site.url), "LIMIT_SECRET": self._secret}
            options = ("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning")
            return Command(("-m", "uvicorn", "benchmarks.limit:app", *options, "--port", "{port}"), environment)
        site = self.large_site if kind == "large" else self.site
        environment = site.environment()
        if kind == "before":
            # Python finds this path before the installed package: other code with the same dependencies.
            environment["PYTHONPATH"] = f"{self.against}/src"
        count = ("--workers", "2") if kind == "two workers" else ()
        return Command(("-m", "app", "serve", *count), environment)

    def limit_tokens(self, numbers: range) -> list[str]:
        """Return an access token of the limit for each of these accounts."""
        return [limit.token_for(UUID(int=number), self._secret) for number in numbers]


@contextmanager
def _filled(server_url: str, rows: int) -> Iterator[Site]:
    name = f"benchmark_{uuid4().hex[:12]}"
    asyncio.run(_administer(server_url, f'CREATE DATABASE "{name}"'))
    url = make_url(server_url).set(database=name).render_as_string(hide_password=False)
    key_set = generate_key_set()
    settings = settings_model().model_validate(
        {
            "database": {"url": url},
            "server": {"public_url": PUBLIC_URL},
            "auth": {"signing_keys": key_set},
        }
    )
    try:
        asyncio.run(seed.make_database(settings, rows))
        yield Site(settings, load_key_ring(settings.of(AuthSettings)), key_set, rows)
    finally:
        asyncio.run(_administer(server_url, f'DROP DATABASE "{name}" WITH (FORCE)'))


async def _administer(server_url: str, statement: str) -> None:
    connection = await asyncpg.connect(seed.plain(server_url))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
