"""The application with a WebSocket, on real sockets."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import asyncpg
from httpx2 import AsyncClient
from websockets.asyncio.client import ClientConnection, connect

from app.core.db.database import Database
from app.core.http import routing
from app.core.http.sockets.exchange import TICKET
from app.core.security.hashing import PasswordHasher
from app.core.shutdown import Shutdown
from app.main import create_app
from tests.auth.login_sessions import Pair, ticket_of
from tests.auth.running_site import RunningSite
from tests.auth.socket_routes import ECHO, TOPIC, router
from tests.conftest import make_settings
from tests.test_recipes import listening
from tests.volume import plain

# Long enough for a busy machine.
PATIENCE = 20.0


class Site(RunningSite):
    """The running application."""

    topic = TOPIC

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
