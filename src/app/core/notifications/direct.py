"""A direct connection to PostgreSQL outside of the pools and of any pooler, for LISTEN."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import asyncpg
from sqlalchemy import URL

from app.core.config import DatabaseSettings
from app.core.db import tls
from app.core.db.connections import CONNECT_ERRORS, each_host


@asynccontextmanager
async def connected(
    settings: DatabaseSettings, *, purpose: str, command_timeout: float, url: URL | None = None
) -> AsyncIterator[asyncpg.Connection]:
    """Open a connection whose name in `pg_stat_activity` ends with `purpose`. `command_timeout` limits each statement, in seconds.

    `url` replaces that of the settings.
    """
    url = url or settings.direct_sqlalchemy_url()
    # SQLAlchemy parses the URL as it does for the engines: asyncpg itself would take `ssl` for a setting of the server.
    _, options = url.get_dialect()().create_connect_args(url)
    connection = await _connect(settings, options, purpose, command_timeout)
    try:
        yield connection
    finally:
        # A graceful close would wait for a server that may be gone.
        connection.terminate()


async def _connect(
    settings: DatabaseSettings, options: Mapping[str, Any], purpose: str, command_timeout: float
) -> asyncpg.Connection:
    """Connect to the first host that accepts. If none does, raise the error of the last host."""
    connect = partial(
        tls.connect,
        timeout=settings.connect_timeout.total_seconds(),
        # Limits LISTEN too. If the server stops responding, the listener must reconnect.
        command_timeout=command_timeout,
        statement_cache_size=0,
        server_settings={"application_name": f"{settings.application_name}-{purpose}"},
    )
    *others, last = each_host(options)
    for host in others:
        with suppress(*CONNECT_ERRORS):
            return await connect(**host)
    return await connect(**last)
