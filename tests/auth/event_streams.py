"""The application with an event stream, on real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import asyncpg
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
from tests.auth.login_sessions import Pair
from tests.auth.running_site import RunningSite
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
class Site(RunningSite):
    """The running application."""

    topic = TOPIC
    broadcasts: Broadcasts

    @asynccontextmanager
    async def stream(self, tokens: Pair) -> AsyncIterator[Stream]:
        """Open a stream. It has subscribed when the block begins."""
        async with self.client.stream("GET", PATH, headers=tokens.headers) as response:
            assert response.status_code == 200, await response.aread()
            opened = Stream(response)
            assert await opened.event() == {"": "subscribed"}
            yield opened

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
