import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

import asyncpg
import pytest
from fastapi import status
from sqlalchemy import func, make_url, select, text
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.core.db.database import Database, ReadSession, WriteSession
from app.core.db.failures import DatabaseUnavailableError, is_transient, sqlstate
from app.core.errors import ConflictError, GoneMeanwhileError
from app.core.http import routing
from app.core.http.access import public
from app.core.http.dependencies import ReadSessionDep, SessionDep
from app.core.http.problems import problem_responses
from app.users.models import User
from tests.conftest import make_settings
from tests.core.applications import application, serving
from tests.core.wire import tapped
from tests.factories import make_user


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[Database]:
    database = Database(make_settings(url, database=options).database)
    try:
        yield database
    finally:
        await database.dispose()


@asynccontextmanager
async def administrating(url: str) -> AsyncIterator["asyncpg.Connection[Any]"]:
    """A separate connection to the server."""
    connection = await asyncpg.connect(make_url(url).set(drivername="postgresql").render_as_string(hide_password=False))
    try:
        yield connection
    finally:
        await connection.close()


async def terminate(database: Database, session: ReadSession) -> None:
    """Terminate the connection of the session from another one, and wait until the driver has noticed."""
    pid = await session.scalar(select(func.pg_backend_pid()))
    raw = await (await session.connection()).get_raw_connection()
    noticed = asyncio.Event()
    assert raw.driver_connection is not None
    raw.driver_connection.add_termination_listener(lambda _connection: noticed.set())
    await session.close()
    async with administrating(database.engine.url.render_as_string(hide_password=False)) as administrator:
        assert await administrator.fetchval("SELECT pg_terminate_backend($1)", pid)
    await asyncio.wait_for(noticed.wait(), 5)


# Settings of connections


@pytest.mark.parametrize("kind", ["engine", "read_engine"])
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("application_name", "one-of-the-tests"),
        ("statement_timeout", "1500ms"),
        ("lock_timeout", "250ms"),
        ("idle_in_transaction_session_timeout", "7s"),
        ("TimeZone", "UTC"),
        ("jit", "off"),
    ],
)
async def test_every_connection_has_the_configured_settings(
    database_url: str, kind: str, setting: str, value: str
) -> None:
    options = {
        "application_name": "one-of-the-tests",
        "statement_timeout": "1.5s",
        "lock_timeout": "250ms",
        "idle_in_transaction_timeout": "7s",
    }
    async with connected(database_url, **options) as database, getattr(database, kind).connect() as connection:
        assert await connection.scalar(text(f"SHOW {setting}")) == value


@pytest.mark.parametrize(("kind", "read_only"), [("sessions", "off"), ("read_sessions", "on")])
async def test_only_connections_for_reading_are_read_only(worker_database: Database, kind: str, read_only: str) -> None:
    async with getattr(worker_database, kind)() as session:
        assert await session.scalar(text("SHOW transaction_read_only")) == read_only


# Reading


async def test_a_read_session_rejects_a_flush_before_it_sends_a_statement(worker_database: Database) -> None:
    async with worker_database.read_sessions() as session:
        session.add(User(email="x@x.co", email_key="x@x.co"))

        with pytest.raises(RuntimeError, match="a read session cannot write"):
            await session.flush()


async def test_a_read_session_rejects_the_commit_of_a_changed_row(clone_url: str) -> None:
    async with connected(clone_url) as database:
        async with database.begin() as session:
            user = await make_user(session, full_name="before")

        async with database.read_sessions() as session:
            found = await session.get_one(User, user.id)
            found.full_name = "after"
            with pytest.raises(RuntimeError, match="a read session cannot write"):
                await session.commit()

        async with database.read_sessions() as session:
            assert await session.scalar(select(User.full_name)) == "before"


@pytest.mark.parametrize(
    "statement", ["DELETE FROM users", "UPDATE users SET full_name = 'x'", "CREATE TABLE t ()", "SELECT nextval('s')"]
)
async def test_postgresql_rejects_writes_of_a_read_session(clone_url: str, statement: str) -> None:
    async with connected(clone_url) as database:
        async with database.begin() as session:
            await session.execute(text("CREATE SEQUENCE s"))

        async with database.read_sessions() as session:
            with pytest.raises(DBAPIError) as refused:
                await session.execute(text(statement))

    assert sqlstate(refused.value) == "25006"


async def test_a_read_costs_one_round_trip_and_no_transaction(database_url: str) -> None:
    async with tapped(database_url) as wire, connected(wire.url, pool_size=1) as database:
        for _ in range(2):
            wire.forget()
            async with database.read_sessions() as session:
                await session.execute(select(User.email).where(User.email_key == "nobody@x.co"))

    # Bind, Execute, Sync; the statement was prepared the first time.
    assert wire.messages.removesuffix("X") == "BES"
    assert wire.round_trips == 1


async def test_a_write_costs_one_round_trip_per_statement_and_for_begin_and_commit(database_url: str) -> None:
    async with tapped(database_url) as wire, connected(wire.url, pool_size=1) as database:
        for _ in range(2):
            wire.forget()
            async with database.begin() as session:
                await session.execute(select(User.email).where(User.email_key == "nobody@x.co"))

    assert wire.messages.removesuffix("X") == "QBESQ"
    assert wire.round_trips == 3


async def test_a_read_over_http_costs_one_round_trip(database_url: str) -> None:
    router = routing.router()

    @router.get("/count", openapi_extra=public)
    async def count(session: ReadSessionDep) -> int | None:
        return await session.scalar(select(func.count()).select_from(User))

    async with (
        tapped(database_url) as wire,
        connected(wire.url, pool_size=1) as database,
        serving(router, database) as client,
    ):
        await client.get("/count")
        wire.forget()
        response = await client.get("/count")

    assert response.status_code == 200
    assert wire.round_trips == 1


async def test_a_request_without_statements_takes_no_connection() -> None:
    router = routing.router()

    @router.get("/nothing", openapi_extra=public)
    async def nothing(_reading: ReadSessionDep, _writing: SessionDep) -> str:
        return "nothing"

    async with connected("postgresql://nobody@127.0.0.1:1/none") as database, serving(router, database) as client:
        assert (await client.get("/nothing")).status_code == 200


async def _the_type_checker_keeps_read_sessions_from_writers(reading: ReadSession, writing: WriteSession) -> None:
    """Checked by `make types`, which fails for an unneeded ignore and for an error without an ignore."""

    async def read(_session: ReadSession) -> None: ...

    async def write(_session: WriteSession) -> None: ...

    await read(reading)
    await read(writing)
    await write(writing)
    await write(reading)  # type: ignore[arg-type]  # The error that this function expects.


async def test_a_read_session_without_changes_can_flush_and_commit(worker_database: Database) -> None:
    async with worker_database.read_sessions() as session:
        await session.flush()
        await session.scalar(select(func.count()).select_from(User))
        await session.commit()

        assert await session.scalar(select(1)) == 1


# Failures


@pytest.mark.parametrize("kind", ["sessions", "read_sessions"])
async def test_a_killed_connection_is_replaced_without_an_error(clone_url: str, kind: str) -> None:
    async with connected(clone_url, pool_size=1) as database:
        async with getattr(database, kind)() as session:
            before = await session.scalar(select(func.pg_backend_pid()))
            await terminate(database, session)

        async with getattr(database, kind)() as session:
            assert await session.scalar(select(func.pg_backend_pid())) != before


async def test_no_request_fails_after_an_idle_connection_is_killed(clone_url: str) -> None:
    router = routing.router()

    @router.get("/count", openapi_extra=public)
    async def count(session: ReadSessionDep) -> int | None:
        return await session.scalar(select(func.count()).select_from(User))

    async with connected(clone_url, pool_size=1) as database, serving(router, database) as client:
        assert (await client.get("/count")).status_code == 200
        async with database.read_sessions() as session:
            await terminate(database, session)

        assert (await client.get("/count")).status_code == 200


async def test_a_connection_killed_during_a_statement_is_a_transient_failure(clone_url: str) -> None:
    async with connected(clone_url, pool_size=1) as database:
        async with database.sessions() as session:
            with pytest.raises(DBAPIError) as killed:
                await session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

        assert is_transient(killed.value)
        async with database.sessions() as session:
            assert await session.scalar(select(1)) == 1


async def test_a_connection_lost_before_a_statement_is_a_transient_failure(clone_url: str) -> None:
    async with connected(clone_url, pool_size=1) as database:
        async with database.sessions() as session:
            raw = await (await session.connection()).get_raw_connection()
            assert raw.driver_connection is not None
            raw.driver_connection.terminate()
            with pytest.raises(InterfaceError) as lost:
                await session.execute(select(1))

        assert sqlstate(lost.value) is None
        assert is_transient(lost.value)


async def test_waiting_for_an_exhausted_pool_ends_after_the_timeout(database_url: str) -> None:
    async with connected(database_url, pool_size=1, pool_wait="100ms") as database, database.sessions() as holder:
        await holder.execute(select(1))
        started = perf_counter()

        async with database.sessions() as session:
            with pytest.raises(PoolTimeoutError) as exhausted:
                await session.execute(select(1))

        assert 0.09 < perf_counter() - started < 1
        assert is_transient(exhausted.value)


async def test_an_exhausted_pool_gives_a_503_with_retry_after(database_url: str) -> None:
    router = routing.router()

    @router.get("/one", openapi_extra=public)
    async def one(session: SessionDep) -> int | None:
        return await session.scalar(select(1))

    async with connected(database_url, pool_size=1, pool_wait="50ms") as database, serving(router, database) as client:
        async with database.sessions() as holder:
            await holder.execute(select(1))
            busy = await client.get("/one")
        free = await client.get("/one")

    assert (busy.status_code, busy.json()["code"]) == (503, "database_unavailable")
    assert busy.headers["retry-after"] == "1"
    assert free.status_code == 200


@pytest.fixture
def silent_port() -> Any:
    """A port whose backlog is full, so that it behaves like a host that drops packets."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        yield listener.getsockname()[1]


async def test_connecting_to_a_silent_host_ends_after_the_timeout(silent_port: int) -> None:
    async with connected(f"postgresql://a:b@127.0.0.1:{silent_port}/d", connect_timeout="300ms") as database:
        started = perf_counter()

        async with database.sessions() as session:
            with pytest.raises(DatabaseUnavailableError):
                await session.execute(select(1))

        assert 0.25 < perf_counter() - started < 1.5


def test_the_default_timeout_for_connecting_is_two_seconds() -> None:
    settings = make_settings("postgresql://a:b@h/d").database

    assert settings.connect_timeout.total_seconds() == settings.pool_wait.total_seconds() == 2


@pytest.mark.parametrize("kind", ["sessions", "read_sessions"])
async def test_a_closed_port_means_that_the_database_is_unavailable(kind: str) -> None:
    async with connected("postgresql://a:b@127.0.0.1:1/d") as database, getattr(database, kind)() as session:
        with pytest.raises(DatabaseUnavailableError) as refused:
            await session.execute(select(1))

    assert isinstance(refused.value.__cause__, OSError)
    assert is_transient(refused.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"password": "wrong"}, asyncpg.InvalidPasswordError),
        ({"database": "no_such_database"}, asyncpg.InvalidCatalogNameError),
    ],
)
async def test_a_rejected_login_means_that_the_database_is_unavailable(
    database_url: str, change: dict[str, Any], reason: type[Exception]
) -> None:
    url = make_url(database_url).set(**change).render_as_string(hide_password=False)
    async with connected(url) as database, database.sessions() as session:
        with pytest.raises(DatabaseUnavailableError) as refused:
            await session.execute(select(1))

    assert refused.value.__cause__ is not None
    assert isinstance(refused.value.__cause__.__cause__, reason)
    assert "wrong" not in str(refused.value)


async def test_the_server_cancels_a_slow_statement(database_url: str) -> None:
    async with connected(database_url, statement_timeout="50ms") as database, database.sessions() as session:
        with pytest.raises(DBAPIError) as cancelled:
            await session.execute(text("SELECT pg_sleep(10)"))

    assert sqlstate(cancelled.value) == "57014"
    assert is_transient(cancelled.value)


async def test_waiting_for_a_lock_ends_after_the_timeout(clone_url: str) -> None:
    async with connected(clone_url, lock_timeout="50ms") as database:
        async with database.begin() as session:
            user = await make_user(session)
        locked = select(User.id).where(User.id == user.id).with_for_update()

        async with database.sessions() as holder, database.sessions() as waiter:
            await holder.execute(locked)
            with pytest.raises(DBAPIError) as given_up:
                await waiter.execute(locked)

    assert sqlstate(given_up.value) == "55P03"
    assert is_transient(given_up.value)


async def test_the_server_ends_a_session_that_idles_in_a_transaction(clone_url: str) -> None:
    async with connected(clone_url, idle_in_transaction_timeout="50ms", pool_size=1) as database:
        async with database.sessions() as session:
            await session.execute(select(1))
            raw = await (await session.connection()).get_raw_connection()
            ended = asyncio.Event()
            assert raw.driver_connection is not None
            raw.driver_connection.add_termination_listener(lambda _connection: ended.set())
            await asyncio.wait_for(ended.wait(), 5)
            with pytest.raises(DBAPIError) as too_late:
                await session.execute(select(1))

        assert is_transient(too_late.value)
        async with database.sessions() as session:
            assert await session.scalar(select(1)) == 1


async def test_a_statement_on_a_silent_server_times_out_and_the_pool_recovers(database_url: str) -> None:
    async with (
        tapped(database_url) as wire,
        connected(wire.url, pool_size=1, statement_timeout="100ms", connect_timeout="200ms") as database,
    ):
        async with database.read_sessions() as session:
            await session.execute(select(1))
        wire.flowing.clear()
        started = perf_counter()

        async with database.read_sessions() as session:
            with pytest.raises(DatabaseUnavailableError) as silent:
                await session.execute(select(1))

        assert perf_counter() - started < 3
        assert is_transient(silent.value)
        wire.flowing.set()
        async with database.read_sessions() as session:
            assert await session.scalar(select(1)) == 1


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("08000", True),
        ("08006", True),
        ("25006", True),
        ("25P03", True),
        ("25P04", True),
        ("40001", True),
        ("40P01", True),
        ("53100", True),
        ("53200", True),
        ("53300", True),
        ("55P03", True),
        ("57014", True),
        ("57P03", True),
        ("58030", True),
        ("22001", False),
        ("22021", False),
        ("23502", False),
        ("23503", False),
        ("23505", False),
        ("23514", False),
        ("25001", False),
        ("25P02", False),
        ("40002", False),
        ("42501", False),
        ("42601", False),
        ("42P01", False),
        ("54001", False),
        ("55000", False),
        ("P0001", False),
        ("XX000", False),
        ("XX001", False),
    ],
)
async def test_which_errors_of_postgresql_are_transient(session: WriteSession, state: str, expected: bool) -> None:
    with pytest.raises(DBAPIError) as raised:
        await session.execute(text(f"DO $$ BEGIN RAISE 'x' USING ERRCODE = '{state}'; END $$"))

    assert sqlstate(raised.value) == state
    assert is_transient(raised.value) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PoolTimeoutError(), True),
        # The engine converts such errors of its own connections to DatabaseUnavailableError.
        (TimeoutError(), False),
        (ConnectionResetError(), False),
        (DatabaseUnavailableError(), True),
        (ValueError(), False),
        (OSError(), False),
        (ConflictError(), False),
    ],
)
def test_which_other_errors_are_transient(error: Exception, expected: bool) -> None:
    assert is_transient(error) == expected


async def test_misuse_of_the_driver_is_not_transient(session: WriteSession) -> None:
    connection = await session.connection()

    with pytest.raises(InterfaceError) as misuse:
        await connection.exec_driver_sql("SELECT $1::int", ())

    assert sqlstate(misuse.value) is None
    assert not is_transient(misuse.value)


# Committing


router = routing.router()


@router.post("/users", openapi_extra=public, status_code=status.HTTP_201_CREATED)
async def create(session: SessionDep) -> dict[str, str]:
    user = await make_user(session, email="ada@x.co")
    return {"id": str(user.id)}


async def create_orphan(session: SessionDep) -> dict[str, str]:
    await session.execute(text("INSERT INTO children VALUES (1)"))
    return {"status": "created"}


router.post("/strays", openapi_extra=public, status_code=status.HTTP_201_CREATED)(create_orphan)
router.post(
    "/orphans",
    openapi_extra=public,
    status_code=status.HTTP_201_CREATED,
    responses=problem_responses(GoneMeanwhileError),
)(create_orphan)


@router.post("/doomed", openapi_extra=public, status_code=status.HTTP_201_CREATED)
async def create_on_a_dying_connection(session: SessionDep) -> dict[str, str]:
    user = await make_user(session)
    raw = await (await session.connection()).get_raw_connection()
    assert raw.driver_connection is not None
    raw.driver_connection.terminate()
    return {"id": str(user.id)}


@router.post("/refused", openapi_extra=public, status_code=status.HTTP_201_CREATED)
async def create_and_refuse(session: SessionDep) -> None:
    await make_user(session)
    raise ConflictError


@router.post("/broken", openapi_extra=public, status_code=status.HTTP_201_CREATED)
async def create_and_break(session: SessionDep) -> None:
    await make_user(session)
    raise ZeroDivisionError


@pytest.fixture
async def committing(clone_url: str) -> AsyncIterator[Database]:
    """A database that checks the foreign key of `children` at the commit."""
    async with connected(clone_url) as database:
        async with database.begin() as session:
            await session.execute(text("CREATE TABLE parents (id int PRIMARY KEY)"))
            await session.execute(
                text("CREATE TABLE children (parent int REFERENCES parents DEFERRABLE INITIALLY DEFERRED)")
            )
        yield database


async def count(database: Database, table: str) -> int | None:
    async with database.read_sessions() as session:
        result: int | None = await session.scalar(text(f"SELECT count(*) FROM {table}"))  # noqa: S608  # Tables of the test.
        return result


async def test_a_change_is_committed_before_the_response_is_sent(committing: Database) -> None:
    app = application(router)
    seen: list[int | None] = []

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        async def send_noted(message: Any) -> None:
            if message["type"] == "http.response.start":
                seen.append(await count(committing, "users"))
            await send(message)

        await app(scope, receive, send_noted)

    async with serving(noting, committing) as client:
        response = await client.post("/users")

    assert response.status_code == 201
    assert seen == [1]


@pytest.mark.parametrize(
    ("path", "code"), [("/orphans", (409, "gone_meanwhile")), ("/strays", (500, "internal_error"))]
)
async def test_a_failed_commit_is_not_answered_with_201(
    committing: Database, caplog: pytest.LogCaptureFixture, path: str, code: tuple[int, str]
) -> None:
    async with serving(router, committing) as client:
        response = await client.post(path)

    assert (response.status_code, response.json()["code"]) == code
    assert await count(committing, "children") == 0
    assert "children_parent_fkey" in caplog.text


async def test_a_connection_lost_before_the_commit_gives_a_503(committing: Database) -> None:
    async with serving(router, committing) as client:
        response = await client.post("/doomed")

    assert (response.status_code, response.json()["code"]) == (503, "database_unavailable")
    assert await count(committing, "users") == 0


@pytest.mark.parametrize(("path", "expected"), [("/refused", 409), ("/broken", 500)])
async def test_an_exception_prevents_the_commit(committing: Database, path: str, expected: int) -> None:
    async with serving(router, committing) as client:
        response = await client.post(path)

    assert response.status_code == expected
    assert await count(committing, "users") == 0


async def test_a_unit_of_work_commits_at_its_end(committing: Database) -> None:
    async with committing.begin() as session:
        await make_user(session)
        assert await count(committing, "users") == 0

    assert await count(committing, "users") == 1


async def test_a_failed_unit_of_work_leaves_no_change(committing: Database) -> None:
    async def fail() -> None:
        async with committing.begin() as session:
            await make_user(session)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()

    assert await count(committing, "users") == 0


async def test_dispose_closes_every_connection(clone_url: str) -> None:
    async with (
        connected(clone_url, application_name="leaver") as database,
        database.sessions() as writer,
        database.read_sessions() as reader,
    ):
        await writer.execute(select(1))
        await reader.execute(select(1))

    async with administrating(clone_url) as administrator:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'leaver' AND state IS NOT NULL"
        async with asyncio.timeout(5):
            while await administrator.fetchval(query):  # noqa: ASYNC110  # The server ends them; it sends no event.
                await asyncio.sleep(0.01)
