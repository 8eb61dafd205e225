"""A running application, and a separate connection to its database."""

import asyncio
from dataclasses import dataclass
from typing import Any

import asyncpg
from httpx2 import AsyncClient

from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from tests.auth.post import Post
from tests.conftest import LoggedIn, log_in
from tests.factories import make_user

_WAITING = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@dataclass
class Site:
    """The application and its client. `watcher` is a connection outside the application."""

    client: AsyncClient
    database: Database
    hasher: PasswordHasher
    watcher: asyncpg.Connection
    post: Post

    async def account(self, **values: Any) -> LoggedIn:
        """Create an account, and log it in."""
        async with self.database.begin() as session:
            user = await make_user(session, self.hasher, **values)
        return LoggedIn(str(user.id), user.email, await log_in(self.client, user.email))

    async def fetch(self, statement: str, *values: Any) -> list[Any]:
        """Read rows on the separate connection."""
        rows: list[Any] = await self.watcher.fetch(statement, *values)
        return rows

    async def until_waiting(self, task: asyncio.Task[Any], *, count: int = 1) -> None:
        """Wait until `count` connections wait for a lock, or the task has ended."""
        async with asyncio.timeout(60):
            while not (task.done() or len(await self.fetch(_WAITING)) >= count):
                await asyncio.sleep(0.01)
                # Otherwise, a transaction keeps reading the statistics of its first query.
                await self.fetch("SELECT pg_stat_clear_snapshot()")

    async def transactions_left_open(self) -> int:
        """Count connections that are idle in a transaction."""
        (row,) = await self.fetch(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
        )
        count: int = row["count"]
        return count
