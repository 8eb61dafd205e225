"""Several hosts, servers that become read-only, and the replacement of connections."""

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

import asyncpg
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError

from app.core.db.database import Database, ReadSession
from app.core.db.failures import DatabaseUnavailableError, is_transient
from tests.conftest import make_settings
from tests.volume import plain


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[Database]:
    database = Database(make_settings(url, database=options).database)
    try:
        yield database
    finally:
        await database.dispose()


async def pid(session: ReadSession) -> int:
    found: int = await session.scalar(text("SELECT pg_backend_pid()"))
    return found


async def pids(database: Database) -> tuple[int, int]:
    """Return the server processes behind a connection for writing and one for reading."""
    async with database.sessions() as writing, database.read_sessions() as reading:
        return await pid(writing), await pid(reading)


def at(url: str, *ports: int, target: str | None = None) -> str:
    """Return a URL with the port of this server and other ports, all on this machine."""
    query: dict[str, Any] = {"host": [f"127.0.0.1:{port}" for port in ports]}
    if target:
        query["target_session_attrs"] = target
    return make_url(url).set(host=None, port=None, query=query).render_as_string(hide_password=False)


def port_of(url: str) -> int:
    port = make_url(url).port
    assert port
    return port


@pytest.fixture
def silent_port() -> Iterator[int]:
    """The port of a host that never responds: the kernel accepts the connection, but no process reads from it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


# Several hosts


@pytest.mark.parametrize("target", [None, "any", "primary", "read-write"])
async def test_the_next_host_is_tried_if_one_refuses_the_connection(clone_url: str, target: str | None) -> None:
    async with connected(at(clone_url, 1, port_of(clone_url), target=target)) as database:
        assert all(await pids(database))


async def test_the_host_after_a_silent_one_has_the_full_timeout(clone_url: str, silent_port: int) -> None:
    url = at(clone_url, silent_port, port_of(clone_url))
    async with connected(url, connect_timeout="300ms", pool_wait="5s") as database:
        started = perf_counter()

        assert all(await pids(database))

    assert perf_counter() - started < 3


async def test_if_no_host_is_reachable_the_database_is_unavailable(clone_url: str) -> None:
    async with connected(at(clone_url, 1, 2)) as database, database.sessions() as session:
        with pytest.raises(DatabaseUnavailableError):
            await session.execute(text("SELECT 1"))


async def test_a_server_with_another_role_is_rejected(clone_url: str) -> None:
    async with connected(at(clone_url, port_of(clone_url), target="standby")) as database:
        for sessions in (database.sessions, database.read_sessions):
            async with sessions() as session:
                with pytest.raises(DatabaseUnavailableError):
                    await session.execute(text("SELECT 1"))


# A primary that becomes read-only


async def refuse_a_write(database: Database) -> DBAPIError:
    async with database.sessions() as session:
        await session.execute(text("SET TRANSACTION READ ONLY"))
        with pytest.raises(DBAPIError) as refused:
            await session.execute(text("CREATE TABLE t ()"))
        return refused.value


async def declare(url: str, setting: str) -> None:
    """Change whether new sessions are read-only by default."""
    administrator = await asyncpg.connect(plain(url), server_settings={"default_transaction_read_only": "off"})
    await administrator.execute(f'ALTER DATABASE "{make_url(url).database}" {setting}')
    await administrator.close()


READ_ONLY = "SET default_transaction_read_only = on"
WRITABLE = "RESET default_transaction_read_only"


async def test_connections_are_replaced_when_the_server_rejects_writes_and_when_one_accepts_them_again(
    clone_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(clone_url, pool_size=1) as database:
        well = await pids(database)
        await declare(clone_url, READ_ONLY)
        refused = await refuse_a_write(database)
        read_only = await pids(database)
        await refuse_a_write(database)
        still_read_only = await pids(database)
        await declare(clone_url, WRITABLE)
        await refuse_a_write(database)
        healed = await pids(database)

        assert healed == await pids(database)

    assert is_transient(refused)
    assert well[1] != read_only[1]
    # While the server rejects writes, only connections for writing are replaced. Reads continue.
    assert read_only[1] == still_read_only[1]
    assert read_only[0] != still_read_only[0]
    assert still_read_only[1] != healed[1]
    assert [record.getMessage() for record in caplog.records] == [
        "server rejects writes, all connections are replaced",
        "server accepts writes again, all older connections are replaced",
    ]


async def test_the_end_of_one_connection_keeps_the_others(clone_url: str) -> None:
    async with connected(clone_url, pool_size=2) as database:
        async with database.sessions() as first, database.sessions() as second:
            others = {await pid(first), await pid(second)}
        async with database.sessions() as session:
            with pytest.raises(DBAPIError):
                await session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

        async with database.sessions() as first, database.sessions() as second:
            assert len(others & {await pid(first), await pid(second)}) == 1
