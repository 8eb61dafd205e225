"""The application with an event stream, on real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
from fastapi import FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent
from httpx2 import AsyncClient, Response

from app.auth.dependencies import SessionWatchDep
from app.core.db.database import Database
from app.core.http import routing
from app.core.http.dependencies import BroadcastsDep
from app.core.notifications.broadcasts import Broadcasts
from app.core.security.hashing import PasswordHasher
from app.core.shutdown import Shutdown
from app.main import create_app
from app.server.connections import Connections
from tests.auth.login_sessions import Pair, start
from tests.auth.test_token_status import add_account
from tests.conftest import make_settings
from tests.test_recipes import listening
from tests.volume import plain

PATH = "/streams"
TOPIC = "news"
# Long enough for a busy machine.
PATIENCE = 20.0

router = routing.router()


@router.get(PATH, response_class=EventSourceResponse)
async def stream(messages: BroadcastsDep, watch: SessionWatchDep) -> AsyncIterator[ServerSentEvent]:
    """Stream the news, and at last the reason of the end."""
    async with messages.subscribe(TOPIC) as news:
        yield ServerSentEvent(comment="subscribed")
        async for message in watch.until_end(news):
            yield ServerSentEvent(raw_data=message)
        yield ServerSentEvent(event="end", raw_data=watch.ended or news.ended)


class Stream:
    """An open stream, as its client sees it."""

    def __init__(self, response: Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def event(self) -> dict[str, str]:
        """Return the fields of the next event; a comment has an empty name. Raises StopAsyncIteration at a proper end."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(PATIENCE):
            while line := await anext(self._lines):
                name, _, value = line.partition(": ")
                fields[name.removesuffix(":")] = value
        return fields

    async def rest(self) -> list[dict[str, str]]:
        """Return the remaining events. This fails if the response is incomplete."""
        events = []
        try:
            while True:
                events.append(await self.event())
        except StopAsyncIteration:
            return events


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
    broadcasts: Broadcasts

    async def log_in(self) -> Pair:
        """Log in to a new account."""
        return await start(self.client, await add_account(self.database, self.hasher))

    @asynccontextmanager
    async def stream(self, tokens: Pair) -> AsyncIterator[Stream]:
        """Open a stream. It has subscribed when the block begins."""
        async with self.client.stream("GET", PATH, headers=tokens.headers) as response:
            assert response.status_code == 200, await response.aread()
            opened = Stream(response)
            assert await opened.event() == {"": "subscribed"}
            yield opened

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

    async def listeners(self) -> int:
        """Return the number of connections that receive messages."""
        count: int = await self.watcher.fetchval(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name LIKE '%-broadcasts'"
        )
        return count


@asynccontextmanager
async def site(
    url: str, hasher: PasswordHasher, *, direct_url: str | None = None, watcher_url: str | None = None, **auth: Any
) -> AsyncIterator[Site]:
    """Run the application. `direct_url` is the address of its connections for LISTEN."""
    addresses = {"direct_url": direct_url} if direct_url else {}
    settings = make_settings(
        url, auth=auth, database={"connect_timeout": "2s", **addresses}, rate_limit={"enabled": False}
    )
    database = Database(settings.database)
    shutdown = Shutdown()
    app = create_app(settings, database, shutdown=lambda: nullcontext(shutdown))
    app.include_router(router)
    watcher = await asyncpg.connect(plain(watcher_url or url))
    async with (
        app.router.lifespan_context(app) as state,
        listening(app, dict(state or {})) as (connections, address),
        AsyncClient(base_url=f"http://{address[0]}:{address[1]}", timeout=60) as client,
    ):
        messages: Broadcasts = (state or {})["broadcasts"]
        yield Site(app, database, connections, address, client, watcher, shutdown, hasher, messages)
    await watcher.close()
    await database.dispose()
