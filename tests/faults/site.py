"""The application as an operator runs it, real processes on a private PostgreSQL, and what its clients do to it."""

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
from tests.faults.postgres import PrivatePostgres
from tests.races.workers import Answer, Worker
from tests.servers import real_server

USERS = "/api/v1/users"
ME = "/api/v1/users/me"
# Longer than any answer may take.
_CLIENT_PATIENCE = 20.0
# What may pass until a process works with a database that is back.
_HEALED = 5.0
_ENVIRONMENT = {
    # Each process would name its own port.
    "APP_AUTH__ISSUER": "https://api.example.com",
    "APP_AUTH__ACCESS_TOKEN_TTL": "15m",
    # All clients have one address.
    "APP_RATE_LIMIT__ENABLED": "false",
    "APP_LOG__LEVEL": "warning",
}
# Every account has one event and one job, written in its transaction.
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
    """Server processes, the database under them, and an administrator's token."""

    postgres: PrivatePostgres
    workers: list[Worker]
    email: str
    token: str = ""
    _turn: "itertools.cycle[Worker]" = field(init=False)

    def __post_init__(self) -> None:
        self._turn = itertools.cycle(self.workers)

    async def request(self, method: str, path: str, *, body: object = None) -> Answer:
        """Send a request to the processes by turns."""
        async with asyncio.timeout(_CLIENT_PATIENCE):
            return await next(self._turn).request(method, path, token=self.token, body=body)

    async def create_account(self, name: str) -> int:
        """Write an account, its link, its event and its job; what a `Ledger` sends."""
        return (await self.request("POST", USERS, body={"email": f"{name}@example.com"})).status

    async def read_account(self, _name: str) -> int:
        """Read the administrator's own account; what a `Ledger` sends that is to change nothing."""
        return (await self.request("GET", ME)).status

    async def probe(self, path: str) -> int:
        """Ask as what supervises the processes does."""
        return (await self.request("GET", path)).status

    async def log_in(self) -> None:
        """Have a token for the next quarter of an hour, as soon as this process, too, is over what has just been."""
        async with asyncio.timeout(_HEALED):
            while (answer := await self.workers[0].log_in(self.email)).status == HTTPStatus.SERVICE_UNAVAILABLE:  # noqa: ASYNC110  # Nobody tells.
                await asyncio.sleep(0.05)
        assert answer.status == HTTPStatus.OK, answer
        self.token = answer.body["access_token"]

    async def left_in_transactions(self) -> int:
        """Count sessions that idle inside a transaction."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        count: int = (await self.postgres.fetch(query))[0][0]
        return count

    def complaints(self) -> list[str]:
        """Give the lines of the logs that tell of a defect."""
        lines = itertools.chain.from_iterable(worker.server.lines() for worker in self.workers)
        return [line for line in lines if "Traceback" in line or '"level":"error"' in line.replace(" ", "")]


@asynccontextmanager
async def site_on(
    postgres: PrivatePostgres, *, url: str = "", processes: int = 1, arguments: tuple[str, ...] = (), **environment: str
) -> AsyncIterator[Site]:
    """Run server processes on a migrated database, through `url` if another way leads to it."""
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
    """Hold what was answered against what each table has of it, and give what does not fit."""
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
    """Start a migrated server for as long as the block lasts."""
    postgres = PrivatePostgres(directory / "postgres", *settings)
    await postgres.start()
    try:
        await postgres.migrate()
        yield postgres
    finally:
        await postgres.stop()
