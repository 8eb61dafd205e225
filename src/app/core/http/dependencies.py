"""Dependencies for endpoints of every feature: the settings, the keys, the database and its sessions."""

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Annotated, Any, TypedDict

from fastapi import Depends, Request
from fastapi.requests import HTTPConnection

from app.core.config import Settings
from app.core.db.database import Database, ReadSession, StreamSession, WriteSession
from app.core.db.keyset import CursorSigner
from app.core.db.reads import Reads
from app.core.http.addresses import ClientAddresses
from app.core.http.requests.negotiation import accept_of, preferred
from app.core.notifications.broadcasts import Broadcasts
from app.core.resources import ReadinessCheck
from app.core.security.keys import KeyRing
from app.core.standby.reading import Standby


class CoreState(TypedDict):
    """Objects that the lifespan creates; every request can read them from `request.state`."""

    settings: Settings
    database: Database
    broadcasts: Broadcasts
    keys: KeyRing
    cursors: CursorSigner
    addresses: ClientAddresses
    readiness: Sequence[ReadinessCheck]
    # None if the settings name no standby.
    standby: Standby | None
    # Returns why this release cannot use the schema of a database, or None.
    schema: Callable[[Database], Coroutine[Any, Any, str | None]]


class CoreRequest(Request[CoreState]):
    """A request with a typed `state`. The type exists for mypy only: FastAPI passes a plain request."""


class CoreConnection(HTTPConnection[CoreState]):
    """A request or a WebSocket with a typed `state`."""


async def get_settings(connection: CoreConnection) -> Settings:
    """Return the settings."""
    return connection.state["settings"]


async def get_keys(connection: CoreConnection) -> KeyRing:
    """Return the keys that sign and verify tokens."""
    return connection.state["keys"]


async def get_database(connection: CoreConnection) -> Database:
    """Return the database, for endpoints that open sessions themselves."""
    return connection.state["database"]


async def get_session(request: CoreRequest) -> AsyncIterator[WriteSession]:
    """Open the session of the request, and commit it before the response is sent.

    If the endpoint raises an exception, the session is rolled back.
    """
    async with request.state["database"].sessions() as session:
        yield session
        await session.commit()


async def get_read_session(request: CoreRequest) -> AsyncIterator[ReadSession]:
    """Open a read-only session. It takes a connection from the pool when its first statement runs."""
    standby = _standby_of(request)
    async with standby.session() if standby else request.state["database"].read_sessions() as session:
        yield session


def _standby_of(connection: HTTPConnection[CoreState]) -> Standby | None:
    """Return the standby if the operation may read from it. A WebSocket may not."""
    standby = connection.state["standby"]
    return standby if standby and getattr(connection.scope.get("route"), "reads_from_standby", False) else None


async def get_stream_session(request: CoreRequest) -> AsyncIterator[StreamSession]:
    """Open a read-only session that stays open until the response is sent or the client disconnects."""
    async with request.state["database"].stream_sessions() as session:
        yield session


async def get_media_type(request: Request) -> str:
    """Return the media type that the client prefers among those that the operation declares."""
    types: Sequence[str] = request.scope["route"].media_types
    return preferred(accept_of(request.headers), types)


async def get_reads(connection: CoreConnection) -> Reads:
    """Return the runner of single SELECT statements."""
    standby = _standby_of(connection)
    return standby.reads if standby else connection.state["database"].reads


async def get_broadcasts(connection: CoreConnection) -> Broadcasts:
    """Return the messages to all processes, for event streams and WebSockets."""
    return connection.state["broadcasts"]


type SettingsDep = Annotated[Settings, Depends(get_settings)]
type KeyRingDep = Annotated[KeyRing, Depends(get_keys)]
type BroadcastsDep = Annotated[Broadcasts, Depends(get_broadcasts)]
type DatabaseDep = Annotated[Database, Depends(get_database)]
# scope="function": by default FastAPI would commit after the response is sent.
type SessionDep = Annotated[WriteSession, Depends(get_session, scope="function")]
type MediaType = Annotated[str, Depends(get_media_type)]
type ReadsDep = Annotated[Reads, Depends(get_reads)]
# scope="request": the response body is still read from the session after the endpoint has returned.
type StreamSessionDep = Annotated[StreamSession, Depends(get_stream_session, scope="request")]
type ReadSessionDep = Annotated[ReadSession, Depends(get_read_session, scope="function")]
