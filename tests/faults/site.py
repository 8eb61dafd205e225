"""Server processes on a private PostgreSQL, and the requests of their clients."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from uuid import uuid4

from app.auth.settings import AuthSettings
from app.core.config import DatabaseSettings
from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from tests.factories import make_user
from tests.faults.load import Comparison, Ledger
from tests.faults.postgres import PrivatePostgres, standby_of
from tests.races.workers import Answer, Worker
from tests.servers import real_server

USERS = "/api/v1/users"
ME = "/api/v1/users/me"
# Longer than any response may take.
_CLIENT_TIMEOUT = 20.0
# Maximum time until a process recovers after the database is available again.
_RECOVERY_TIMEOUT = 5.0
_ENVIRONMENT = {
    # The default contains the port, which differs between processes.
    "APP_AUTH__ISSUER": "https://api.example.com",
    "APP_AUTH__ACCESS_TOKEN_TTL": "15m",
    # All clients have the same address.
    "APP_RATE_LIMIT__ENABLED": "false",
    "APP_LOG__LEVEL": "warning",
    # No fault of the database may hold the event loop. docs/input.md promises less, but other processes need the CPU too.
    "APP_LOG__SLOW_CALLBACK": "200ms",
}
# Parts of the log lines of errors. Each request runs through this middleware.
_ERRORS = ("Traceback", '"level":"error"', "http/middleware.py")
# The transaction of each account also writes one event and one job.
_ROWS = {
    "accounts": "SELECT split_part(users.email, '@', 1) FROM users WHERE role = 'user'",
    "events": """
        SELECT split_part(users.email, '@', 1) FROM audit_events JOIN users ON users.id = subject_id
        WHERE event = 'users.created' AND role = 'user'
    """,
    "jobs": """
        SELECT split_part(users.email, '@', 1) FROM procrastinate_jobs
        JOIN account_links AS links ON links.id = (args -> 'arguments' ->> 'link_id')::uuid JOIN users ON users.id = links.user_id
        WHERE role = 'user'
    """,
}


@dataclass
class Site:
    """Server processes, their database, and the token of an administrator."""

    postgres: PrivatePostgres
    workers: list[Worker]
    email: str
    token: str = ""
    _turn: "itertools.cycle[Worker]" = field(init=False)

    def __post_init__(self) -> None:
        self._turn = itertools.cycle(self.workers)

    async def request(self, method: str, path: str, *, body: object = None) -> Answer:
        """Send a request to the next process, round-robin."""
        async with asyncio.timeout(_CLIENT_TIMEOUT):
            return await next(self._turn).request(method, path, token=self.token, body=body)

    async def create_account(self, name: str) -> int:
        """Create an account with its link, event and job. For the writes of a `Ledger`."""
        return (await self.request("POST", USERS, body={"email": f"{name}@example.com"})).status

    async def read_account(self, _name: str) -> int:
        """Read the account of the administrator. For a `Ledger` whose requests change nothing."""
        return (await self.request("GET", ME)).status

    async def probe(self, path: str) -> int:
        """Send a request as the supervisor of the processes does, and return the status."""
        return (await self.request("GET", path)).status

    async def log_in(self) -> None:
        """Get a token for the next 15 minutes. Wait until the process has recovered from the last fault."""
        async with asyncio.timeout(_RECOVERY_TIMEOUT):
            while (response := await self.workers[0].log_in(self.email)).status == HTTPStatus.SERVICE_UNAVAILABLE:  # noqa: ASYNC110  # There is no event to wait for.
                await asyncio.sleep(0.05)
        assert response.status == HTTPStatus.OK, response
        self.token = response.body["access_token"]

    async def left_in_transactions(self) -> int:
        """Count sessions that are idle in a transaction."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        count: int = (await self.postgres.fetch(query))[0][0]
        return count

    def errors(self) -> list[str]:
        """Return the log lines about errors, and about requests that held the event loop."""
        lines = itertools.chain.from_iterable(worker.server.lines() for worker in self.workers)
        return [line for line in lines if any(sign in line.replace(" ", "") for sign in _ERRORS)]


@asynccontextmanager
async def site_on(
    postgres: PrivatePostgres, *, url: str = "", processes: int = 1, arguments: tuple[str, ...] = (), **environment: str
) -> AsyncIterator[Site]:
    """Run server processes on a migrated database, which they reach through `url` if given."""
    email = await _make_admin(postgres.url)
    async with AsyncExitStack() as stack:
        servers = [
            stack.enter_async_context(real_server(url or postgres.url, *arguments, **(_ENVIRONMENT | environment)))
            for _ in range(processes)
        ]
        workers = [Worker(server) for server in await asyncio.gather(*servers)]
        for worker in workers:
            stack.callback(worker.close)
        site = Site(postgres, workers, email)
        await site.log_in()
        yield site


async def discrepancies(postgres: PrivatePostgres, ledger: Ledger) -> dict[str, Comparison]:
    """Compare the responses with the rows of each table. Return the differences by table."""
    found = {}
    for table, query in _ROWS.items():
        comparison = ledger.compare([row[0] for row in await postgres.fetch(query)])
        if comparison.differs:
            found[table] = comparison
    return found


async def _make_admin(url: str) -> str:
    email = f"admin-{uuid4().hex}@example.com"
    database = Database(DatabaseSettings.model_validate({"url": url, "pool_size": 1}))
    hasher = PasswordHasher(AuthSettings(bcrypt_cost=4))
    try:
        async with database.begin() as session:
            await make_user(session, hasher, email=email, role="admin")
    finally:
        hasher.close()
        await database.dispose()
    return email


@asynccontextmanager
async def private_postgres(directory: Path, *settings: str) -> AsyncIterator[PrivatePostgres]:
    """Run a migrated server while the context lasts."""
    postgres = PrivatePostgres(directory / "postgres", *settings)
    await postgres.start()
    try:
        await postgres.migrate()
        yield postgres
    finally:
        await postgres.stop()


@asynccontextmanager
async def replicated(directory: Path) -> AsyncIterator[tuple[PrivatePostgres, PrivatePostgres]]:
    """Run a migrated server and a standby of it while the context lasts."""
    async with private_postgres(directory) as primary:
        standby = await standby_of(primary, directory / "standby")
        try:
            yield primary, standby
        finally:
            await standby.stop()
