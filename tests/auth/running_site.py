"""The application on real sockets, for tests of streams and WebSockets."""

from dataclasses import dataclass
from typing import ClassVar
from uuid import UUID

import asyncpg
from fastapi import FastAPI
from httpx2 import AsyncClient

from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from app.core.shutdown import Shutdown
from app.server.connections import Connections
from tests.auth.login_sessions import Pair, start
from tests.auth.test_token_status import add_account


@dataclass
class RunningSite:
    """The running application. `watcher` is a separate connection to the database."""

    topic: ClassVar[str]

    app: FastAPI
    database: Database
    connections: Connections
    address: tuple[str, int]
    client: AsyncClient
    watcher: asyncpg.Connection
    shutdown: Shutdown
    hasher: PasswordHasher

    async def log_in(self, role: str = "user") -> Pair:
        """Log in to a new account."""
        return await start(self.client, await add_account(self.database, self.hasher, role))

    async def publish(self, message: str) -> None:
        """Publish as another process would."""
        await self.watcher.execute("SELECT pg_notify('broadcasts', $1)", f"{self.topic}\n{message}")

    async def run(self, statement: str, tokens: Pair) -> None:
        """Run a statement of `ENDS` as another process would."""
        values = {":session_id": tokens.session_id, ":user_id": UUID(tokens.claims["sub"])}
        [value] = [value for name, value in values.items() if name in statement]
        for name in values:
            statement = statement.replace(name, "$1")
        await self.watcher.execute(statement, value)

    async def is_at_rest(self) -> bool:
        """Return whether no request runs and no connection is checked out of a pool."""
        taken = [getattr(self.database, name).pool.checkedout() for name in ("engine", "read_engine")]
        return not self.connections.tasks and taken == [0, 0]
