"""The check at the start of a web process: `APP_DATABASE__READ_URL` leads to a standby of the database."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from sqlalchemy import URL

from app.core.config import DatabaseSettings
from app.core.db.connections import CONNECT_ERRORS
from app.core.errors import ConfigurationError
from app.core.notifications import direct
from app.core.standby.positions import IDENTITY, Server, difference

# Seconds for the one statement of the check.
_TIMEOUT = 5.0


def check(settings: DatabaseSettings) -> None:
    """Raise a `ConfigurationError` if the setting leads to other servers than standbys of the database.

    A server that cannot be reached is no error, because the service must start while the standby is down.
    """
    if (url := settings.read_sqlalchemy_url()) is None:
        return
    # Some ASGI servers load the application inside of their event loop.
    with ThreadPoolExecutor(1) as executor:
        problem = executor.submit(lambda: asyncio.run(_problem(settings, url))).result()
    if problem:
        raise ConfigurationError(f"APP_DATABASE__READ_URL: {problem}")


async def _problem(settings: DatabaseSettings, url: URL) -> str | None:
    """Return why no server of the URL can be used, or None if one can, or if one may be usable later."""
    problem = None
    with suppress(*CONNECT_ERRORS):
        primary = await _server(settings, settings.direct_sqlalchemy_url())
        for host in _each_host(url):
            problem = difference(primary, await _server(settings, host))
            if problem is None:
                return None
        return problem
    # A server did not answer.
    return None


def _each_host(url: URL) -> list[URL]:
    """Return the URL of each host. Without `target_session_attrs`, a primary accepts the connection and can be named."""
    any_server = url.update_query_dict({"target_session_attrs": "any"})
    hosts = any_server.query.get("host")
    if not isinstance(hosts, tuple):
        return [any_server]
    return [any_server.update_query_dict({"host": host}) for host in hosts]


async def _server(settings: DatabaseSettings, url: URL) -> Server:
    async with (
        direct.connected(settings, purpose="check", command_timeout=_TIMEOUT, url=url) as connection,
        # A transaction pooler keeps only a transaction on one connection.
        connection.transaction(),
    ):
        return Server(*await connection.fetchrow(IDENTITY))
