"""Sessions that are used after their end, and work after the response."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends
from fastapi.responses import StreamingResponse
from sqlalchemy import Select, select, text
from sqlalchemy.exc import ResourceClosedError
from sqlalchemy.orm import defer
from sqlalchemy.orm.exc import DetachedInstanceError

from app.core.db.database import Database, ReadSession, SessionEndedError
from app.core.http import routing
from app.core.http.access import public
from app.core.http.dependencies import ReadSessionDep, SessionDep, StreamSessionDep
from app.users.models import User
from tests.conftest import make_settings
from tests.core.applications import serving
from tests.factories import make_user

OPTIONS = {"pool_size": 2, "pool_wait": "200ms"}
KINDS = ["sessions", "read_sessions", "stream_sessions"]
ROWS = text("SELECT generate_series(1, 5000)")
PID = text("SELECT pg_backend_pid()")


@pytest.fixture
async def database(clone_url: str) -> AsyncIterator[Database]:
    """A database with small pools. The fixture checks that the test has returned every connection."""
    database = Database(make_settings(clone_url, database=OPTIONS).database)
    yield database
    assert [checked_out(database, name) for name in ("engine", "read_engine")] == [0, 0]
    await database.dispose()


def checked_out(database: Database, name: str) -> int:
    count: int = getattr(database, name).pool.checkedout()
    return count


def late_users() -> APIRouter:
    """Create endpoints whose session is used after they have returned."""
    router = routing.router()

    async def select_late(session: ReadSession) -> None:
        await session.execute(PID)

    async def lines(session: ReadSession) -> AsyncIterator[str]:
        yield "first\n"
        yield str(await session.scalar(PID))

    @router.get("/background/sessions", openapi_extra=public)
    async def write_in_background(session: SessionDep, tasks: BackgroundTasks) -> None:
        tasks.add_task(select_late, session)

    @router.get("/background/read_sessions", openapi_extra=public)
    async def read_in_background(session: ReadSessionDep, tasks: BackgroundTasks) -> None:
        tasks.add_task(select_late, session)

    @router.get("/stream/sessions", openapi_extra=public)
    async def stream_from_writing(session: SessionDep) -> StreamingResponse:
        return StreamingResponse(lines(session))

    @router.get("/stream/read_sessions", openapi_extra=public)
    async def stream_from_reading(session: ReadSessionDep) -> StreamingResponse:
        return StreamingResponse(lines(session))

    return router


@pytest.mark.parametrize("kind", ["sessions", "read_sessions"])
@pytest.mark.parametrize("way", ["background", "stream"])
async def test_using_a_session_after_the_request_raises_an_error_and_takes_no_connection(
    database: Database, caplog: pytest.LogCaptureFixture, way: str, kind: str
) -> None:
    async with serving(late_users(), database) as client:
        for _ in range(12):
            # The client's transport rejects an incomplete response.
            with suppress(AssertionError):
                await client.get(f"/{way}/{kind}")

    errors = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [type(error) for error in errors] == [SessionEndedError] * 12
    assert all(word in str(errors[0]) for word in ("StreamSessionDep", "job", "Database.unit", "docs/recipes.md"))
    async with getattr(database, kind)() as first, getattr(database, kind)() as second:
        assert await first.scalar(PID) != await second.scalar(PID)


async def add_and_flush(session: Any) -> None:
    session.add(User(email="x@x.co", email_key="x@x.co"))
    await session.flush()


USES: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "execute": lambda session: session.execute(PID),
    "scalars": lambda session: session.scalars(PID),
    "get": lambda session: session.get(User, "00000000-0000-0000-0000-000000000000"),
    "add": add_and_flush,
    "commit": lambda session: session.commit(),
    "begin": lambda session: session.begin(),
    "begin nested": lambda session: session.begin_nested(),
    "connection": lambda session: session.connection(),
    "run sync": lambda session: session.run_sync(lambda sync: sync.execute(PID)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("has_been_used", [True, False])
@pytest.mark.parametrize("use", USES)
async def test_every_use_of_an_ended_session_raises_an_error(
    database: Database, kind: str, use: str, *, has_been_used: bool
) -> None:
    async with getattr(database, kind)() as session:
        if has_been_used:
            await session.execute(PID)

    for _ in range(2):
        with pytest.raises(SessionEndedError):
            await USES[use](session)


@pytest.mark.parametrize("kind", ["sessions", "stream_sessions"])
async def test_a_stream_that_is_read_after_its_session_raises_an_error_and_affects_no_other_session(
    database: Database, kind: str
) -> None:
    async with getattr(database, kind)() as session:
        rows = await session.stream(ROWS)
        await anext(rows)
        last = await session.scalar(PID)

    async with getattr(database, kind)() as first, getattr(database, kind)() as second:
        # One of the two sessions uses the connection of the stream.
        assert last in {await first.scalar(PID), await second.scalar(PID)}
        with pytest.raises(ResourceClosedError):
            [row async for row in rows]

        assert [await first.scalar(text("SELECT 1")), await second.scalar(text("SELECT 1"))] == [1, 1]


async def test_a_session_without_a_transaction_cannot_stream(database: Database) -> None:
    async with database.read_sessions() as session:
        with pytest.raises(TypeError, match="use StreamSessionDep"):
            await session.stream(ROWS)


@pytest.mark.parametrize("transaction_pooler", [True, False])
async def test_a_stream_session_sees_one_state_and_is_read_only(clone_url: str, *, transaction_pooler: bool) -> None:
    database = Database(make_settings(clone_url, database={"transaction_pooler": transaction_pooler}).database)
    counting = text("SELECT count(*) FROM users")

    async with database.stream_sessions() as session:
        before = await session.scalar(counting)
        async with database.begin() as writing:
            await make_user(writing, hashed_password="x")
        after = await session.scalar(counting)
        read_only = await session.scalar(text("SHOW transaction_read_only"))
        rows = [row async for row in await session.stream(ROWS)]
    async with database.read_sessions() as reading:
        assert await reading.scalar(counting) == 1
    await database.dispose()

    assert (before, after, read_only, len(rows)) == (0, 0, "on", 5000)


async def test_after_a_stream_the_connection_runs_single_statements_again(clone_url: str) -> None:
    database = Database(make_settings(clone_url, database={"pool_size": 1}).database)
    async with database.stream_sessions() as session:
        await session.scalar(PID)

    async with database.read_sessions() as session:
        await session.scalar(PID)
        async with database.sessions() as watching:
            states = await watching.scalars(
                text(
                    "SELECT state FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
            assert states.all() == ["idle"]
    await database.dispose()


@pytest.mark.parametrize("ask", ["reads", "read_sessions", "sessions", "stream_sessions"])
async def test_a_disposed_database_opens_no_connection(clone_url: str, ask: str) -> None:
    database = Database(make_settings(clone_url).database)
    statement = select(User.__table__.c.id)
    await database.reads.execute(statement, {})
    await database.dispose()
    # A second call has no effect.
    await database.dispose()

    with pytest.raises(RuntimeError, match="has been disposed of"):
        await once(database, ask, statement)


async def once(database: Database, ask: str, statement: Select[Any]) -> None:
    if ask == "reads":
        await database.reads.execute(statement, {})
        return
    async with getattr(database, ask)() as session:
        await session.execute(statement)


async def test_a_row_that_outlives_its_session_cannot_load_more_columns(database: Database) -> None:
    async with database.begin() as session:
        await make_user(session, hashed_password="x")
    async with database.read_sessions() as session:
        user = (await session.scalars(select(User).options(defer(User.full_name)))).one()

    with pytest.raises(DetachedInstanceError):
        _ = user.full_name


async def test_changes_after_a_commit_in_the_session_are_committed_at_the_end(database: Database) -> None:
    async with database.begin() as session:
        await make_user(session, hashed_password="x")
        await session.commit()
        await make_user(session, hashed_password="x")

    async with database.read_sessions() as session:
        assert await session.scalar(text("SELECT count(*) FROM users")) == 2


# The order of the ends


class Log(list[str]):
    """The events, in their order."""


def ordered(log: Log) -> APIRouter:
    router = routing.router()

    async def for_the_function() -> AsyncIterator[None]:
        yield
        log.append("function ends")

    async def for_the_response() -> AsyncIterator[None]:
        log.append("response begins")
        yield
        log.append("response ends")

    type Function = Annotated[None, Depends(for_the_function, scope="function")]
    type ForResponse = Annotated[None, Depends(for_the_response)]

    async def note(what: str) -> None:
        log.append(what)

    @router.get("/background", openapi_extra=public)
    async def with_background(_function: Function, _response: ForResponse, tasks: BackgroundTasks) -> None:
        tasks.add_task(note, "background")

    @router.get("/stream", openapi_extra=public)
    async def with_stream(_function: Function, _response: ForResponse) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            log.append("stream")
            yield "x"

        return StreamingResponse(lines())

    @router.get("/undone", openapi_extra=public)
    async def undone(_response: ForResponse, session: SessionDep) -> None:
        log.append("called")
        await session.execute(text("DO $$ BEGIN RAISE 'x' USING ERRCODE = '40001'; END $$"))

    @router.get("/undone/stream", openapi_extra=public)
    async def undone_stream(session: StreamSessionDep) -> None:
        log.append("called")
        await session.execute(text("DO $$ BEGIN RAISE 'x' USING ERRCODE = '40001'; END $$"))

    return router


@pytest.mark.parametrize("path", ["background", "stream"])
async def test_the_scopes_of_dependencies_end_in_the_documented_order(database: Database, path: str) -> None:
    log = Log()
    async with serving(ordered(log), database) as client:
        await client.get(f"/{path}")

    assert log == ["response begins", "function ends", path, "response ends"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/undone", ["response begins", "called"]), ("/undone/stream", ["called"])],
)
async def test_a_request_with_a_response_scoped_dependency_is_not_retried(
    database: Database, path: str, expected: list[str]
) -> None:
    log = Log()
    async with serving(ordered(log), database) as client:
        response = await client.get(path)

    assert response.status_code == 503
    assert log == expected
