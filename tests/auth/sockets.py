"""The application with a WebSocket, on real sockets."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

import asyncpg
from fastapi import FastAPI, Query, Security, WebSocket
from httpx2 import AsyncClient
from websockets.asyncio.client import ClientConnection, connect

from app.auth.dependencies import Principal, SocketPrincipal, ticket
from app.core.db.database import Database
from app.core.http import routing
from app.core.http.dependencies import BroadcastsDep, DatabaseDep
from app.core.http.sockets.exchange import TICKET
from app.core.schemas.fields import PathIdentifier
from app.core.security.hashing import PasswordHasher
from app.core.shutdown import Shutdown
from app.main import create_app
from app.server.connections import Connections
from app.users import service as users_service
from app.users.errors import UserNotFoundError
from tests.auth.login_sessions import Pair, start
from tests.auth.test_socket_tickets import ticket_of
from tests.auth.test_token_status import add_account
from tests.conftest import make_settings
from tests.test_recipes import listening
from tests.volume import plain

ECHO = "/sockets/echo"
NEWS = "/sockets/news"
ADMIN = "/sockets/admin"
TOPIC = "socket-news"
# Long enough for a busy machine.
PATIENCE = 20.0

router = routing.router()


@router.websocket(ECHO)
async def echo(socket: WebSocket, principal: SocketPrincipal, database: DatabaseDep) -> None:
    """Send each message back. Some are commands."""
    await socket.accept()
    async for text in socket.iter_text():
        match text:
            case "who":
                async with database.read_sessions() as session:
                    account = await users_service.get_account(session, principal.user_id)
                await socket.send_text(account.email)
            case "missing":
                raise UserNotFoundError
            case "bug":
                raise LookupError(text)
            case "sleep":
                await asyncio.sleep(600)
            case "bytes":
                await socket.send_bytes(b"\0\xff")
            case "flood":
                while True:
                    await socket.send_text("x" * 65_536)
            case "bye":
                return
            case _:
                await socket.send_text(text)


@router.websocket(NEWS)
async def news(socket: WebSocket, _principal: SocketPrincipal, messages: BroadcastsDep) -> None:
    """Send the news. The client sends nothing."""
    await socket.accept()
    async with messages.subscribe(TOPIC) as subscription:
        await socket.send_text("subscribed")
        async for message in subscription:
            await socket.send_text(message)


@router.websocket(f"{ADMIN}/{{room_id}}")
async def administer(
    socket: WebSocket,
    room_id: PathIdentifier,
    principal: Annotated[Principal, Security(ticket, scopes=["users:write"])],
    size: Annotated[int, Query(le=10)] = 1,
) -> None:
    """Send the values of the handshake."""
    await socket.accept(subprotocol=next(iter(socket.scope["subprotocols"]), None))
    await socket.send_text(f"{room_id} {size} {principal.visitor().ip_prefix}")
    await socket.receive_text()


@router.websocket("/sockets/refusing")
async def refuse(socket: WebSocket, _principal: SocketPrincipal) -> None:
    """Close before the accept."""
    await socket.close()


@router.websocket("/sockets/silent")
async def stay_silent(_socket: WebSocket, _principal: SocketPrincipal) -> None:
    """Return without an answer."""


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
