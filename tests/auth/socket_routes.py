"""WebSockets of the tests."""

import asyncio
from typing import Annotated

from fastapi import Query, Security, WebSocket

from app.auth.dependencies import Principal, SocketPrincipal, ticket
from app.core.http import routing
from app.core.http.dependencies import BroadcastsDep, DatabaseDep
from app.core.schemas.fields import PathIdentifier
from app.users import service as users_service
from app.users.errors import UserNotFoundError

ECHO = "/sockets/echo"
NEWS = "/sockets/news"
ADMIN = "/sockets/admin"
TOPIC = "socket-news"

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
