"""The application with a WebSocket, on real sockets."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
from fastapi import FastAPI
from httpx2 import AsyncClient
from websockets.asyncio.client import ClientConnection, connect

from app.core.db.database import Database
from app.core.http import routing
from app.core.http.sockets.exchange import TICKET
from app.core.security.hashing import PasswordHasher
from app.core.shutdown import Shutdown
from app.main import create_app
from app.server.connections import Connections
from tests.auth.login_sessions import Pair, start, ticket_of
from tests.auth.socket_routes import ECHO, TOPIC, router
from tests.auth.test_token_status import add_account
from tests.conftest import make_settings
from tests.test_recipes import listening
from tests.volume import plain

# Long enough for a busy machine.
PATIENCE = 20.0


@dataclass
class Site:
    """The running application. `watcher` is a separate connection to the database."""

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

    async def ticket(self, tokens: Pair) -> str:
        return await ticket_of(self.client, tokens.headers)

    @asynccontextmanager
    async def open(
        self, tokens: Pair | str, path: str = ECHO, *, more: Sequence[str] = (), **options: Any
    ) -> AsyncIterator[ClientConnection]:
        """Open a WebSocket with a ticket: a given one, or a new one of this login session."""
        given = tokens if isinstance(tokens, str) else await self.ticket(tokens)
        url = f"ws://{self.address[0]}:{self.address[1]}{path}"
        offered = [TICKET, given, *more]
        async with connect(url, subprotocols=offered, proxy=None, **options) as socket:  # type: ignore[arg-type]  # A NewType.
            yield socket

    async def publish(self, message: str) -> None:
        """Publish as another process would."""
        await self.watcher.execute("SELECT pg_notify('broadcasts', $1)", f"{TOPIC}\n{message}")

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


@asynccontextmanager
async def site(
    url: str, hasher: PasswordHasher, *, server: dict[str, Any] | None = None, **auth: Any
) -> AsyncIterator[Site]:
    """Run the application."""
    settings = make_settings(
        url,
        auth={"access_check": "memory", **auth},
        database={"connect_timeout": "2s"},
        rate_limit={"enabled": False},
        server=server or {},
    )
    database = Database(settings.database)
    shutdown = Shutdown()
    app = create_app(settings, database, shutdown=lambda: nullcontext(shutdown))
    routing.include(app, router)
    watcher = await asyncpg.connect(plain(url))
    async with (
        app.router.lifespan_context(app) as state,
        listening(app, dict(state or {}), settings.server) as (connections, address),
        AsyncClient(base_url=f"http://{address[0]}:{address[1]}", timeout=60) as client,
    ):
        yield Site(app, database, connections, address, client, watcher, shutdown, hasher)
    await watcher.close()
    await database.dispose()
