"""Retries: when work is retried, how often, and when it must not be."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from fastapi import APIRouter
from httpx2 import AsyncClient
from sqlalchemy import Integer, column, func, select, table, text
from sqlalchemy.exc import DBAPIError

from app.core.db.database import Database, WriteSession
from app.core.db.failures import DatabaseUnavailableError, sqlstate
from app.core.db.query_log import count_statements
from app.core.db.retries import with_retries
from app.core.errors import ConflictError
from app.core.http import routing
from app.core.http.access import public
from app.core.http.dependencies import DatabaseDep, ReadsDep, ReadSessionDep, SessionDep
from app.core.observability.metrics import Counter
from app.core.schemas.fields import Payload
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from tests.conftest import log_in, make_settings, running
from tests.core.applications import serving
from tests.core.scrape import counted_so_far
from tests.factories import PASSWORD, make_user
from tests.proxy import Proxy, proxied
from tests.volume import plain

TOKEN = "/api/v1/auth/token"
LOGIN = {"grant_type": "password"}
ATTEMPTS = Counter("test_attempts", "Events of the attempts in these tests.", what=("things",))
UNDONE = ["40001", "40P01"]


@pytest.fixture
async def database(clone_url: str) -> AsyncIterator[Database]:
    """A database with a table of counters."""
    database = Database(make_settings(clone_url, database={"pool_size": 3}).database)
    async with database.begin() as session:
        await session.execute(text("CREATE TABLE counters (id int PRIMARY KEY, value int NOT NULL)"))
        await session.execute(text("INSERT INTO counters VALUES (1, 0), (2, 0)"))
    yield database
    await database.dispose()


async def add(session: WriteSession, counter: int = 1) -> None:
    await session.execute(text("UPDATE counters SET value = value + 1 WHERE id = :id"), {"id": counter})


async def fail(session: WriteSession, state: str) -> None:
    await session.execute(text(f"DO $$ BEGIN RAISE 'x' USING ERRCODE = '{state}'; END $$"))


async def break_off(session: WriteSession) -> None:
    """Terminate the connection in the middle of its work, as an administrator does."""
    await session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


async def value(database: Database, counter: int = 1) -> int:
    async with database.read_sessions() as session:
        found: int = await session.scalar(text("SELECT value FROM counters WHERE id = :id"), {"id": counter})
        return found


class Calls(list[int]):
    """Counts how often an endpoint or a unit of work was started."""

    def next(self) -> int:
        self.append(len(self) + 1)
        return len(self)


@pytest.fixture
def calls() -> Calls:
    return Calls()


class Amount(Payload):
    amount: int


def endpoints(calls: Calls, act: Callable[[WriteSession, int], Awaitable[None]]) -> APIRouter:
    """Create an endpoint that increments the counter by the amount in the body, and then calls `act`."""
    router = routing.router()

    @router.post("/add", openapi_extra=public)
    async def add_amount(session: SessionDep, payload: Amount) -> int:
        number = calls.next()
        for _ in range(payload.amount):
            await add(session)
        await act(session, number)
        return number

    return router


async def post(client: AsyncClient) -> tuple[int, Any]:
    response = await client.post("/add", json={"amount": 2})
    body = response.json()
    return response.status_code, body["code"] if isinstance(body, dict) else body


# Transactions that the server rolled back


@pytest.mark.parametrize("state", UNDONE)
@pytest.mark.parametrize("failures", [1, 2])
async def test_work_that_the_server_rolled_back_is_retried(
    database: Database, calls: Calls, state: str, failures: int
) -> None:
    async def act(session: WriteSession, number: int) -> None:
        if number <= failures:
            await fail(session, state)

    async with serving(endpoints(calls, act), database) as client:
        answer = await post(client)

    assert answer == (200, failures + 1)
    assert await value(database) == 2


@pytest.mark.parametrize("state", UNDONE)
async def test_after_three_attempts_the_client_gets_a_503(database: Database, calls: Calls, state: str) -> None:
    async with serving(endpoints(calls, lambda session, _: fail(session, state)), database) as client:
        answer = await post(client)

    assert answer == (503, "database_unavailable")
    assert calls == [1, 2, 3]
    assert await value(database) == 0


async def test_two_requests_that_deadlock_both_succeed(database: Database, calls: Calls) -> None:
    router = routing.router()
    both_hold_one = asyncio.Barrier(2)

    @router.post("/cross/{first}", openapi_extra=public)
    async def cross(session: SessionDep, first: int) -> None:
        await add(session, first)
        if calls.next() <= 2:
            await both_hold_one.wait()
        await add(session, 3 - first)

    async with serving(router, database) as client:
        answers = await asyncio.gather(client.post("/cross/1"), client.post("/cross/2"))

    assert [answer.status_code for answer in answers] == [200, 200]
    assert len(calls) == 3
    assert (await value(database, 1), await value(database, 2)) == (2, 2)


async def test_a_serialization_failure_at_the_commit_is_retried(database: Database, calls: Calls) -> None:
    async with database.begin() as session:
        await session.execute(text("CREATE SEQUENCE commits"))
        await session.execute(
            text("""
                CREATE FUNCTION refuse_first() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                    IF nextval('commits') = 1 THEN RAISE 'x' USING ERRCODE = '40001'; END IF; RETURN NULL;
                END $$
            """)
        )
        await session.execute(
            text(
                "CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON counters DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION refuse_first()"
            )
        )

    async with serving(endpoints(calls, lambda *_: asyncio.sleep(0)), database) as client:
        answer = await post(client)

    assert answer == (200, 2)
    assert await value(database) == 2


async def test_nothing_is_retried_after_a_commit(database: Database, calls: Calls) -> None:
    router = routing.router()

    @router.post("/add", openapi_extra=public)
    async def add_twice(own: DatabaseDep, session: SessionDep) -> None:
        calls.next()
        async with own.begin() as first:
            await add(first)
        await fail(session, "40001")

    async with serving(router, database) as client:
        response = await client.post("/add")

    assert response.status_code == 503
    assert calls == [1]
    assert await value(database) == 1


async def test_an_error_of_the_application_is_not_retried(database: Database, calls: Calls) -> None:
    async def act(_session: WriteSession, _number: int) -> None:
        raise ConflictError

    async with serving(endpoints(calls, act), database) as client:
        answer = await post(client)

    assert (answer, calls) == ((409, "conflict"), [1])


# Writes on a read session


@pytest.mark.parametrize("transaction_pooler", [False, True])
async def test_a_write_on_a_read_session_is_a_bug_and_keeps_all_connections(
    database: Database, clone_url: str, calls: Calls, caplog: pytest.LogCaptureFixture, *, transaction_pooler: bool
) -> None:
    router = routing.router()

    @router.get("/add", openapi_extra=public)
    async def write_while_reading(session: ReadSessionDep) -> None:
        calls.next()
        await session.execute(text("UPDATE counters SET value = value + 1"))

    options = {"pool_size": 1, "transaction_pooler": transaction_pooler}
    own = Database(make_settings(clone_url, database=options).database)
    before = await backends(own)
    async with serving(router, own) as client:
        response = await client.get("/add")
    after = await backends(own)
    await own.dispose()

    assert (response.status_code, response.json()["code"], calls) == (500, "internal_error", [1])
    assert after == before
    assert await value(database) == 0
    (logged,) = [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]
    assert logged.exc_info
    assert "write_while_reading" in caplog.text


async def test_a_write_by_a_direct_read_is_a_bug_and_keeps_all_connections(database: Database, calls: Calls) -> None:
    async with database.begin() as session:
        await session.execute(text("CREATE SEQUENCE numbers"))
    router = routing.router()
    statement = select(func.nextval("numbers", type_=Integer).label("number"))

    @router.get("/next", openapi_extra=public)
    async def write_past_the_session(reads: ReadsDep) -> None:
        calls.next()
        await reads.execute(statement, {})

    before = await backends(database)
    async with serving(router, database) as client:
        response = await client.get("/next")

    assert (response.status_code, calls) == (500, [1])
    assert await backends(database) == before


async def backends(database: Database) -> list[int]:
    """Return the server processes behind a connection for writing and one for reading."""
    found = []
    for sessions in (database.sessions, database.read_sessions):
        async with sessions() as session:
            found.append(await session.scalar(text("SELECT pg_backend_pid()")))
    return found


# Lost connections


async def test_work_is_retried_once_after_a_lost_connection(database: Database, calls: Calls) -> None:
    async def act(session: WriteSession, number: int) -> None:
        if number == 1:
            await break_off(session)

    async with serving(endpoints(calls, act), database) as client:
        answer = await post(client)

    assert answer == (200, 2)
    assert await value(database) == 2


async def test_work_is_not_retried_after_a_second_lost_connection(database: Database, calls: Calls) -> None:
    async with serving(endpoints(calls, lambda session, _: break_off(session)), database) as client:
        answer = await post(client)

    assert answer == (503, "database_unavailable")
    assert calls == [1, 2]
    assert await value(database) == 0


async def test_a_read_succeeds_after_a_lost_connection(database: Database, calls: Calls) -> None:
    router = routing.router()

    @router.get("/pid", openapi_extra=public)
    async def read(session: ReadSessionDep) -> int:
        question = "SELECT pg_terminate_backend(pg_backend_pid())" if calls.next() == 1 else "SELECT 7"
        found: int = await session.scalar(text(question))
        return found

    async with serving(router, database) as client:
        response = await client.get("/pid")

    assert (response.status_code, response.json(), calls) == (200, 7, [1, 2])


# Timeouts: the endpoint charges a card, and a timeout ends its transaction


LIMITS = {"statement_timeout": "200ms", "lock_timeout": "100ms", "idle_in_transaction_timeout": "200ms"}


async def reach_lock_timeout(session: WriteSession, clone_url: str) -> None:
    blocker = await asyncpg.connect(plain(clone_url))
    transaction = blocker.transaction()
    await transaction.start()
    await blocker.execute("UPDATE counters SET value = 0 WHERE id = 2")
    try:
        await add(session, 2)
    finally:
        await transaction.rollback()
        await blocker.close()


async def reach_idle_limit(session: WriteSession, _: str) -> None:
    await asyncio.sleep(0.5)
    await add(session)


async def reach_idle_limit_before_the_commit(_session: WriteSession, _: str) -> None:
    await asyncio.sleep(0.5)


async def reach_statement_timeout(session: WriteSession, _: str) -> None:
    await session.execute(text("SELECT pg_sleep(5)"))


async def reach_transaction_timeout(session: WriteSession, _: str) -> None:
    await session.execute(text("SET LOCAL transaction_timeout = '50ms'"))
    await session.execute(text("SELECT pg_sleep(5)"))


async def reach_transaction_timeout_between_statements(session: WriteSession, _: str) -> None:
    await session.execute(text("SET LOCAL transaction_timeout = '150ms'"))
    await asyncio.sleep(0.25)
    await add(session)


@pytest.mark.parametrize(
    "reach",
    [
        reach_lock_timeout,
        reach_idle_limit,
        reach_idle_limit_before_the_commit,
        reach_statement_timeout,
        reach_transaction_timeout,
        reach_transaction_timeout_between_statements,
    ],
)
async def test_a_timeout_is_never_retried(
    database: Database,
    clone_url: str,
    calls: Calls,
    reach: Callable[[WriteSession, str], Awaitable[None]],
) -> None:
    if "transaction_timeout" in reach.__name__ and await server_version(database) < TRANSACTION_TIMEOUT_SINCE:
        pytest.skip("PostgreSQL has this limit since version 17")
    limited = Database(make_settings(clone_url, database=LIMITS).database)

    async with serving(endpoints(calls, lambda session, _: reach(session, clone_url)), limited) as client:
        answer = await post(client)
    await limited.dispose()

    assert answer == (503, "database_unavailable")
    assert calls == [1]
    assert await value(database) == 0


TRANSACTION_TIMEOUT_SINCE = 170_000


async def server_version(database: Database) -> int:
    async with database.read_sessions() as session:
        version: int = await session.scalar(text("SELECT current_setting('server_version_num')::int"))
        return version


@pytest.mark.usefixtures("database")
async def test_a_direct_read_that_reaches_the_lock_timeout_is_not_retried(clone_url: str) -> None:
    limited = Database(make_settings(clone_url, database=LIMITS).database)
    counters = table("counters", column("value", Integer))
    blocker = await asyncpg.connect(plain(clone_url))
    transaction = blocker.transaction()
    await transaction.start()
    await blocker.execute("LOCK TABLE counters")
    statements = count_statements()

    with pytest.raises(DatabaseUnavailableError):
        await limited.reads.execute(select(counters.c.value), {})

    assert statements.count == 1
    await transaction.rollback()
    await blocker.close()
    await limited.dispose()


# Operations that run once


async def deadlock(session: WriteSession) -> None:
    await fail(session, "40P01")


def charging_once(calls: Calls, fail: Callable[[WriteSession], Awaitable[None]]) -> APIRouter:
    router = routing.router()

    @router.post("/add", openapi_extra=public | routing.options(repeatable=False))
    async def charge(session: SessionDep, payload: Amount) -> int:
        calls.next()
        await add(session)
        await fail(session)
        return payload.amount

    return router


@pytest.mark.parametrize("failure", [deadlock, break_off])
async def test_an_operation_that_is_not_repeatable_runs_once(
    database: Database, calls: Calls, failure: Callable[[WriteSession], Awaitable[None]]
) -> None:
    async with serving(charging_once(calls, failure), database) as client:
        answer = await post(client)

    assert answer == (503, "database_unavailable")
    assert calls == [1]
    assert await value(database) == 0


async def test_an_operation_that_is_not_repeatable_commits_before_its_response(
    database: Database, calls: Calls
) -> None:
    async def succeed(_session: WriteSession) -> None:
        pass

    async with serving(charging_once(calls, succeed), database) as client:
        answer = await post(client)

    assert (answer, calls) == ((200, 2), [1])
    assert await value(database) == 1


def test_an_unknown_option_of_a_route_is_rejected() -> None:
    with pytest.raises(TypeError, match="repeateable"):
        routing.options(repeateable=False)  # type: ignore[call-arg]  # The subject of this test.


@pytest.mark.parametrize("given", [None, "no", 0])
def test_an_option_of_another_type_is_rejected_when_the_route_is_declared(given: Any) -> None:
    router = routing.router()

    with pytest.raises(TypeError, match="repeatable must be True or False"):

        @router.post("/charge", openapi_extra=public | routing.options(repeatable=given))
        async def charge() -> None:
            """Charge."""


@asynccontextmanager
async def behind(proxy: Proxy) -> AsyncIterator[Database]:
    options = {"pool_size": 1, "statement_timeout": "300ms", "connect_timeout": "500ms"}
    database = Database(make_settings(proxy.url, database=options).database)
    try:
        yield database
    finally:
        await database.dispose()


async def test_a_commit_whose_response_is_lost_is_never_retried(
    database: Database, clone_url: str, calls: Calls
) -> None:
    async def act(_session: WriteSession, _number: int) -> None:
        # The next message is the COMMIT. It arrives, but the response does not.
        proxy.hold_responses()

    async with proxied(clone_url) as proxy, behind(proxy) as distant, serving(endpoints(calls, act), distant) as client:
        request = asyncio.ensure_future(post(client))
        async with asyncio.timeout(5):
            while await value(database) == 0:  # noqa: ASYNC110  # Only the database knows the state.
                await asyncio.sleep(0.01)
        proxy.cut()
        answer = await request

    assert answer == (503, "database_unavailable")
    assert calls == [1]
    assert await value(database) == 2


async def test_work_on_a_silent_server_is_not_retried(database: Database, clone_url: str, calls: Calls) -> None:
    async with proxied(clone_url) as proxy, behind(proxy) as distant:

        async def act(session: WriteSession, _number: int) -> None:
            proxy.stall()
            await add(session)

        async with serving(endpoints(calls, act), distant) as client:
            answer = await post(client)
        proxy.resume()

    assert answer == (503, "database_unavailable")
    assert calls == [1]
    assert await value(database) == 0


# Units of work of services


async def test_a_unit_is_retried_after_a_conflict(database: Database, calls: Calls) -> None:
    async def work(session: WriteSession) -> int:
        await add(session)
        if calls.next() == 1:
            await fail(session, "40P01")
        return 7

    assert await database.unit(work) == 7
    assert calls == [1, 2]
    assert await value(database) == 1


async def test_only_the_failed_unit_is_retried(database: Database, calls: Calls) -> None:
    router = routing.router()

    @router.post("/add", openapi_extra=public)
    async def add_twice(own: DatabaseDep) -> None:
        await own.unit(add)

        async def second(session: WriteSession) -> None:
            await add(session, 2)
            if calls.next() == 1:
                await fail(session, "40001")

        await own.unit(second)

    async with serving(router, database) as client:
        response = await client.post("/add")

    assert response.status_code == 200
    assert (await value(database, 1), await value(database, 2)) == (1, 1)


async def test_a_unit_that_always_conflicts_raises_the_conflict(database: Database, calls: Calls) -> None:
    async def work(session: WriteSession) -> None:
        calls.next()
        await fail(session, "40001")

    with pytest.raises(DBAPIError) as conflict:
        await database.unit(work)

    assert sqlstate(conflict.value) == "40001"
    assert calls == [1, 2, 3]


async def refuse_first(database: Database, event: str, table: str) -> None:
    """Add a trigger that makes the first such statement fail with a deadlock, once."""
    statements = """
        CREATE SEQUENCE refused;
        CREATE FUNCTION refuse_first() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('refused') = 1 THEN RAISE 'x' USING ERRCODE = '40P01'; END IF; RETURN NEW;
        END $$;
    """
    connection = await asyncpg.connect(plain(database.engine.url.render_as_string(hide_password=False)))
    await connection.execute(
        f"{statements} CREATE TRIGGER late BEFORE {event} ON {table} FOR EACH ROW EXECUTE FUNCTION refuse_first()"
    )
    await connection.close()


async def test_a_login_succeeds_after_a_conflict(database: Database, clone_url: str, hasher: PasswordHasher) -> None:
    async with database.begin() as session:
        email = (await make_user(session, hasher)).email
    await refuse_first(database, "INSERT", "sessions")

    async with running(create_app(make_settings(clone_url), database)) as client:
        assert await log_in(client, email)

    async with database.read_sessions() as session:
        assert await session.scalar(text("SELECT count(*) FROM sessions")) == 1


# Metrics


OUTCOMES = ("logins_total", "token_refreshes_total", "login_failures_total", "rate_limit_attempts_total")


@pytest.mark.parametrize(
    ("event", "table"),
    [("INSERT", "sessions"), ("UPDATE", "sessions"), ("INSERT", "rate_limits"), ("INSERT", "audit_events")],
)
@pytest.mark.parametrize("enabled", [True, False])
async def test_a_retried_request_is_counted_once(
    database: Database, clone_url: str, hasher: PasswordHasher, event: str, table: str, *, enabled: bool
) -> None:
    async with database.begin() as session:
        email = (await make_user(session, hasher)).email

    async def ask(client: AsyncClient) -> list[float]:
        before = [counted_so_far(name) for name in OUTCOMES]
        pair = (await client.post(TOKEN, data={**LOGIN, "username": email, "password": PASSWORD})).json()
        await client.post(TOKEN, data={**LOGIN, "username": email, "password": "wrong, all the same"})
        await client.post(TOKEN, data={"grant_type": "refresh_token", "refresh_token": pair["refresh_token"]})
        return [counted_so_far(name) - count for name, count in zip(OUTCOMES, before, strict=True)]

    settings = make_settings(clone_url, rate_limit={"enabled": enabled})
    async with running(create_app(settings, database)) as client:
        undisturbed = await ask(client)
        await refuse_first(database, event, table)
        disturbed = await ask(client)

    assert disturbed == undisturbed
    assert undisturbed[:3] == [2, 1, 1]


async def test_the_counts_of_the_last_failed_attempt_are_kept(database: Database, calls: Calls) -> None:
    before = counted_so_far("test_attempts_total")

    async def act(session: WriteSession, _: int) -> None:
        ATTEMPTS.count("things")
        await fail(session, "40001")

    async with serving(endpoints(calls, act), database) as client:
        await post(client)

    assert calls == [1, 2, 3]
    assert counted_so_far("test_attempts_total") == before + 1


async def test_a_task_that_outlives_its_attempt_counts_immediately() -> None:
    before = counted_so_far("test_attempts_total")
    is_over = asyncio.Event()

    async def count_later() -> None:
        await is_over.wait()
        ATTEMPTS.count("things")

    async def work() -> asyncio.Task[None]:
        ATTEMPTS.count("things")
        assert counted_so_far("test_attempts_total") == before
        return asyncio.create_task(count_later())

    task = await with_retries(work)
    assert counted_so_far("test_attempts_total") == before + 1
    is_over.set()
    await task

    assert counted_so_far("test_attempts_total") == before + 2


# Stale plans after a migration


@pytest.mark.parametrize("kind", ["sessions", "read_sessions"])
@pytest.mark.parametrize(
    "migration",
    ["ALTER TABLE counters ALTER COLUMN value TYPE bigint", "ALTER TABLE counters ADD COLUMN more text DEFAULT 'x'"],
)
async def test_no_request_fails_because_of_a_migration(
    database: Database, clone_url: str, calls: Calls, kind: str, migration: str
) -> None:
    router = routing.router()

    @router.get("/counters", openapi_extra=public)
    async def read(own: DatabaseDep) -> int:
        calls.next()
        async with getattr(own, kind)() as session:
            return len((await session.execute(text("SELECT * FROM counters"))).all())

    administrator = await asyncpg.connect(plain(clone_url))
    async with serving(router, database) as client:
        for _ in range(3):
            await client.get("/counters")
        await administrator.execute(migration)
        after = [await client.get("/counters") for _ in range(3)]
    await administrator.close()

    assert [response.status_code for response in after] == [200, 200, 200]
    # One request was retried. After that, no stale plan is left.
    assert len(calls) == 7
