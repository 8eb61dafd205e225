"""What any endpoint may ask for."""

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Annotated, Any, TypedDict

from fastapi import Depends, Request

from app.core.config import Settings
from app.core.db.database import Database, ReadSession, StreamSession, WriteSession
from app.core.db.keyset import CursorSigner
from app.core.db.reads import Reads
from app.core.http.addresses import ClientAddresses
from app.core.resources import ReadinessCheck
from app.core.security.keys import KeyRing


class CoreState(TypedDict):
    """What the lifespan makes and every request may use."""

    settings: Settings
    database: Database
    keys: KeyRing
    cursors: CursorSigner
    addresses: ClientAddresses
    readiness: Sequence[ReadinessCheck]
    # Says why this program cannot work on the schema of a database, or None.
    schema: Callable[[Database], Coroutine[Any, Any, str | None]]


class CoreRequest(Request[CoreState]):
    """A request whose `state` is typed; FastAPI passes a plain one."""


async def get_database(request: CoreRequest) -> Database:
    """Give the database, to those that open sessions themselves."""
    return request.state["database"]


async def get_session(request: CoreRequest) -> AsyncIterator[WriteSession]:
    """Open the request's unit of work and commit it before the response leaves.

    An exception skips the commit, and closing the session rolls back.
    """
    async with request.state["database"].sessions() as session:
        yield session
        await session.commit()


async def get_read_session(request: CoreRequest) -> AsyncIterator[ReadSession]:
    """Open a session for reading; a connection is taken when the first statement runs."""
    async with request.state["database"].read_sessions() as session:
        yield session


async def get_stream_session(request: CoreRequest) -> AsyncIterator[StreamSession]:
    """Open a session for reading that ends when the response has been sent, or its client has gone."""
    async with request.state["database"].stream_sessions() as session:
        yield session


async def get_reads(request: CoreRequest) -> Reads:
    """Give what runs single statements."""
    return request.state["database"].reads


type DatabaseDep = Annotated[Database, Depends(get_database)]
# scope="function": the default would commit after the client had its answer.
type SessionDep = Annotated[WriteSession, Depends(get_session, scope="function")]
type ReadsDep = Annotated[Reads, Depends(get_reads)]
# scope="request": the response is still read from it when the endpoint has returned.
type StreamSessionDep = Annotated[StreamSession, Depends(get_stream_session, scope="request")]
type ReadSessionDep = Annotated[ReadSession, Depends(get_read_session, scope="function")]
