"""Private parts of other libraries: each one that the source uses is listed, bounded and has a contract.

A contract uses its part as the source does. It returns an object on which the other parts of its row must exist.
"""

import asyncio
import gc
import logging
import re
import tomllib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from inspect import isclass
from typing import Annotated, Any, override

import asyncpg
import httptools
import procrastinate
import pytest
import uvicorn
from alembic.autogenerate import RevisionContext
from alembic.config import Config
from fastapi import APIRouter, Depends, FastAPI, Form, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from fastapi.security import SecurityScopes
from httpx2 import ASGITransport, AsyncClient
from joserfc import jwk, jws
from procrastinate import testing
from procrastinate.manager import JobManager
from procrastinate.worker import Worker
from prometheus_client import CollectorRegistry, generate_latest, metrics_core, utils
from sqlalchemy import bindparam, make_url, select
from sqlalchemy.engine import IteratorResult
from sqlalchemy.engine import result as engine_result
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.pool import AsyncAdaptedQueuePool, PoolProxiedConnection
from sqlalchemy.util import concurrency
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from tests.conftest import ROOT
from tests.private_parts import Row, has_part, resolve, rows, uses

type Contract = Callable[[str], Coroutine[Any, Any, object]]

CONTRACTS: dict[str, Contract] = {}
IDS = [(row.owner, part) for row in rows() for part in sorted(row.parts)]


def contract(owner: str) -> Callable[[Contract], Contract]:
    def register(function: Contract) -> Contract:
        CONTRACTS[owner] = function
        return function

    return register


async def check(row: Row, database_url: str) -> None:
    found = await CONTRACTS[row.owner](database_url)
    for part in row.parts:
        if part.startswith('"'):
            assert has_part(row.owner, part)
        else:
            getattr(found, part)


# The list


def test_each_private_part_in_the_source_is_listed() -> None:
    listed = {(row.owner, part): row.where for row in rows() for part in row.parts}
    found = uses()

    assert [use for use in sorted(found) if (use.owner, use.part) not in listed] == []
    assert [use for use in sorted(found) if use.file not in listed[use.owner, use.part]] == []


def test_each_listed_part_is_used_in_the_listed_files() -> None:
    for row in rows():
        sources = [(ROOT / "src" / "app" / file).read_text() for file in row.where]
        names = {part.strip('"').removeprefix("static/") for part in row.parts}

        assert [name for name in names if not any(name in source for source in sources)] == []
        assert all(any(name in source for name in names) for source in sources)


def test_each_library_with_private_parts_has_an_upper_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounded = {re.split(r"[\[>=<]", entry)[0] for entry in project["dependencies"] if re.search(r",<\d", entry)}

    assert {row.library for row in rows()} <= bounded


def test_each_row_has_a_contract() -> None:
    assert {row.owner for row in rows()} == CONTRACTS.keys()


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.owner)
async def test_the_library_keeps_the_contract(row: Row, database_url: str) -> None:
    await check(row, database_url)


class Missing:
    """Replaces an attribute of a class, as if a new version of the library did not have it."""

    def __get__(self, instance: object, owner: type) -> object:
        raise AttributeError

    def __set__(self, instance: object, value: object) -> None: ...


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Tasks fail and resources stay open when a part is missing.
@pytest.mark.parametrize(("owner", "part"), IDS)
async def test_a_contract_fails_without_its_part(
    owner: str, part: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [row] = [row for row in rows() if row.owner == owner]
    if part.startswith('"'):
        pytest.skip("a text in the library cannot be removed")
    found = resolve(owner)
    listeners = record_listeners(monkeypatch)
    if isclass(found):
        monkeypatch.setattr(found, part, Missing(), raising=False)
    else:
        monkeypatch.delattr(found, part)

    with pytest.raises(Exception):  # noqa: B017, PT011  # Any error shows that the contract needs the part.
        await check(row, database_url)
    monkeypatch.undo()
    for listener in listeners:
        listener.close()
    gc.collect()


def record_listeners(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.AbstractServer]:
    """Return the list of listeners opened from now on: a server that lacks a part cannot close its own."""
    loop = asyncio.get_running_loop()
    create_server = loop.create_server
    listeners: list[asyncio.AbstractServer] = []

    async def recorded(*args: Any, **options: Any) -> asyncio.Server:
        listener = await create_server(*args, **options)
        listeners.append(listener)
        return listener

    monkeypatch.setattr(loop, "create_server", recorded)
    return listeners


# uvicorn


class FakeTransport(asyncio.Transport):
    """Keeps what a protocol writes."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.calls: list[str] = []

    @override
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    @override
    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    @override
    def is_closing(self) -> bool:
        return "close" in self.calls

    @override
    def close(self) -> None:
        self.calls.append("close")

    @override
    def pause_reading(self) -> None:
        self.calls.append("pause_reading")

    @override
    def resume_reading(self) -> None:
        self.calls.append("resume_reading")


async def respond(_scope: Any, receive: Any, send: Any) -> None:
    assert (await receive())["body"] == b"hello"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


REQUEST = b"POST /a HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello"
CALLBACKS = (
    *("on_message_begin", "on_url", "on_header", "on_headers_complete", "on_body", "on_message_complete"),
    "on_response_complete",
)


@contract("uvicorn.protocols.http.httptools_impl.HttpToolsProtocol")
async def http_protocol(_url: str) -> object:
    called: list[str] = []

    class Recording(HttpToolsProtocol):
        @override
        def __getattribute__(self, name: str) -> Any:
            called.append(name)
            return super().__getattribute__(name)

    state = ServerState()
    protocol = Recording(uvicorn.Config(respond, log_config=None, ws="none", lifespan="off"), state, {})
    transport = FakeTransport()
    protocol.connection_made(transport)
    assert state.connections == {protocol}
    protocol.data_received(REQUEST)
    assert protocol.tasks is state.tasks
    await asyncio.gather(*state.tasks)
    assert set(CALLBACKS) <= set(called)
    assert (protocol.url, dict(protocol.headers)[b"host"], protocol.scope["path"]) == (b"/a", b"test", "/a")
    assert protocol.cycle.response_complete
    assert protocol.cycle.on_response is not protocol.on_response_complete
    protocol.pause_writing()
    protocol.resume_writing()
    protocol.shutdown()
    assert transport.is_closing()
    protocol.parser = httptools.HttpRequestParser(protocol)
    return protocol


def make_cycle(transport: FakeTransport, done: list[None]) -> RequestResponseCycle:
    return RequestResponseCycle(
        scope={"method": "GET"},  # type: ignore[typeddict-item]  # All that the cycle reads.
        transport=transport,
        flow=FlowControl(transport),
        logger=logging.getLogger("test"),
        access_logger=logging.getLogger("test"),
        access_log=False,
        default_headers=[(b"a", b"b")],
        message_event=asyncio.Event(),
        expect_100_continue=True,
        keep_alive=True,
        on_response=lambda: done.append(None),
    )


@contract("uvicorn.protocols.http.httptools_impl.RequestResponseCycle")
async def response_cycle(_url: str) -> object:
    transport, done = FakeTransport(), list[None]()
    cycle = make_cycle(transport, done)

    # As in `ResponseCycle.send`: the head is already formatted, and the body is written as it is.
    cycle.response_started, cycle.chunked_encoding, cycle.expected_content_length = True, False, 4
    cycle.waiting_for_100_continue, cycle.keep_alive = False, False
    await cycle.send({"type": "http.response.body", "body": b"head", "more_body": False})
    assert (transport.written, transport.calls, len(done)) == (b"head", ["close"], 1)
    assert cycle.response_complete
    assert cycle.message_event.is_set()

    # As in `Connection.refuse`: the application gets a request without a body.
    transport, done = FakeTransport(), []
    cycle = make_cycle(transport, done)
    cycle.more_body = False
    cycle.message_event.set()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        assert scope == cycle.scope
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    await cycle.run_asgi(application)
    assert transport.written.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\na: b\r\n")
    assert len(done) == 1
    assert cycle.default_headers == [(b"a", b"b")]
    return cycle


@contract("uvicorn.protocols.http.flow_control.FlowControl")
async def flow_control(_url: str) -> object:
    transport = FakeTransport()
    flow = FlowControl(transport)
    flow.pause_reading()
    assert flow.read_paused
    flow.resume_reading()
    assert not flow.read_paused
    assert transport.calls == ["pause_reading", "resume_reading"]
    return flow


@contract("uvicorn.protocols.http.httptools_impl")
async def constants(_url: str) -> object:
    assert httptools_impl.STATUS_LINE[404] == b"HTTP/1.1 404 Not Found\r\n"
    assert httptools_impl.HEADER_RE.search(b"a b")
    assert not httptools_impl.HEADER_RE.search(b"content-type")
    assert httptools_impl.HEADER_VALUE_RE.search(b"a\r\nb: c")
    assert not httptools_impl.HEADER_VALUE_RE.search(b"text/html; charset=utf-8")
    return httptools_impl


def make_server() -> uvicorn.Server:
    return uvicorn.Server(uvicorn.Config(respond, port=0, log_config=None, ws="none", lifespan="off"))


@contract("uvicorn.server.ServerState")
async def server_state(_url: str) -> object:
    server = make_server()
    state = server.server_state
    await server.on_tick(0)
    assert state.default_headers[0][0] == b"date"
    protocol = HttpToolsProtocol(server.config, state, {})
    protocol.connection_made(FakeTransport())
    protocol.data_received(REQUEST)
    assert (state.connections, len(state.tasks)) == ({protocol}, 1)
    await asyncio.gather(*state.tasks)
    assert (state.tasks, state.total_requests) == (set(), 1)
    protocol.connection_lost(None)
    assert state.connections == set()
    return state


@contract("uvicorn.Config")
async def config(_url: str) -> object:
    server = make_server()
    server.config.load()
    server.config.encoded_headers.append((b"connection", b"close"))
    await server.on_tick(0)
    assert server.server_state.default_headers[-1] == (b"connection", b"close")
    return server.config


@contract("uvicorn.Server")
async def server(_url: str) -> object:
    called: list[str] = []

    class Recording(uvicorn.Server):
        @override
        async def startup(self, sockets: Any = None) -> None:
            called.append("startup")
            await super().startup(sockets)

        @override
        async def on_tick(self, counter: int) -> bool:
            called.append("on_tick")
            self.handle_exit(15, None)
            return await super().on_tick(counter)

        @override
        def handle_exit(self, sig: int, frame: Any) -> None:
            self.should_exit = True

        @override
        async def shutdown(self, sockets: Any = None) -> None:
            called.append("shutdown")
            assert self.started
            assert [one.is_serving() for one in self.servers] == [True]
            assert self.lifespan.state == {}
            self.force_exit = True
            await super().shutdown(sockets)

    running = Recording(make_server().config)
    await running.serve()
    assert called == ["startup", "on_tick", "shutdown"]
    # The handler is an attribute of the server, and an overridden one records no signal to raise again.
    with running.capture_signals():
        pass
    uvicorn.Server.handle_exit(running, 2, None)
    return running


# httptools


@contract("httptools")
async def parser_errors(_url: str) -> object:
    class Callbacks:
        def on_url(self, _url: bytes) -> None:
            raise LookupError

    with pytest.raises(httptools.HttpParserError) as failed:
        httptools.HttpRequestParser(Callbacks()).feed_data(b"GET / HTTP/1.1\r\n\r\n")
    assert isinstance(failed.value.__context__, LookupError)

    head = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    with pytest.raises(httptools.HttpParserUpgrade) as upgrade:
        httptools.HttpRequestParser(object()).feed_data(head + b"rest")
    assert upgrade.value.args[0] == len(head)
    return httptools


# FastAPI


def dependency(scopes: SecurityScopes) -> list[str]:
    return scopes.scopes


def make_operations() -> FastAPI:
    router = APIRouter(prefix="/things")

    @router.post("/{thing_id}")
    async def change(
        thing_id: str, q: str, _found: Annotated[None, Depends(dependency)], a: Annotated[str, Form()]
    ) -> None: ...

    app = FastAPI(openapi_url=None)
    app.include_router(router)
    return app


@contract("fastapi.routing.RouteContext")
async def route_context(_url: str) -> object:
    [context] = iter_route_contexts(make_operations().routes)
    assert isinstance(context, RouteContext)
    assert isinstance(context.original_route, APIRoute)
    # Any other attribute would be one of the operation.
    assert isinstance(vars(RouteContext)["original_route"], property)
    return context


@contract("fastapi.routing.APIRoute")
async def api_route(_url: str) -> object:
    [context] = iter_route_contexts(make_operations().routes)
    route = context.original_route
    assert isinstance(route, APIRoute)
    assert route.body_field
    assert type(route.body_field.field_info).__name__ == "Form"
    assert (route.form_limits, route.is_json_stream) == ({}, False)
    assert isinstance(route.dependant, Dependant)
    return route


@contract("fastapi.dependencies.models.Dependant")
async def dependant(_url: str) -> object:
    [context] = iter_route_contexts(make_operations().routes)
    route = context.original_route
    assert isinstance(route, APIRoute)
    assert [field.alias for field in route.dependant.query_params] == ["q"]
    assert [field.alias for field in route.dependant.body_params] == ["a"]
    assert route.dependant.path == "/things/{thing_id}"
    [found] = route.dependant.dependencies
    assert found.call is dependency
    assert (found.own_oauth_scopes or [], found.parent_oauth_scopes or [], found.scope) == ([], [], None)
    return found


@contract("fastapi.routing")
async def scope_keys(_url: str) -> object:
    events: list[str] = []

    async def resource() -> AsyncIterator[None]:
        yield
        events.append("closed")

    class Route(APIRoute):
        @override
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def attempt(request: Request) -> Response:
                async with AsyncExitStack() as stack:
                    request.scope["fastapi_function_astack"] = stack
                    await handle(request)
                events.append("attempted")
                events.append(request.scope["fastapi"]["effective_route_context"].path_format)
                return Response()

            return attempt

    router = APIRouter(prefix="/things", route_class=Route)

    @router.get("/{thing_id}")
    async def read(thing_id: str, _used: Annotated[None, Depends(resource, scope="function")]) -> None:
        events.append(f"called with {thing_id}")

    app = FastAPI(openapi_url=None)
    app.include_router(router)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/things/1")).status_code == 200
    assert events == ["called with 1", "closed", "attempted", "/things/{thing_id}"]
    from fastapi import routing  # noqa: PLC0415  # Looked up when the contract runs.

    assert list(routing.iter_route_contexts(app.routes))

    async def answer(**values: object) -> Response:
        return Response(",".join(values))

    handle = routing.get_request_handler(Dependant(call=answer))
    async with AsyncExitStack() as stack:
        stacks = dict.fromkeys(("fastapi_middleware_astack", "fastapi_inner_astack", "fastapi_function_astack"), stack)
        scope = {"type": "http", "method": "GET", "headers": [], "query_string": b"", **stacks}
        assert (await handle(Request(scope))).body == b""
    return routing


@contract("fastapi_offline")
async def swagger_files(_url: str) -> object:
    return resolve("fastapi_offline")


# SQLAlchemy and asyncpg


@contract("sqlalchemy.orm.Session")
async def session_begin(url: str) -> object:
    bind = create_async_engine(url).sync_engine

    class Ended(Session):
        @override
        def _autobegin_t(self, begin: bool = False) -> SessionTransaction:
            super()._autobegin_t(begin)
            raise LookupError

    methods: tuple[Callable[[Session], object], ...] = (
        lambda session: session.execute(select(1)),
        lambda session: session.connection(),
        lambda session: session.begin(),
        lambda session: session.commit(),
    )
    for use in methods:
        with pytest.raises(LookupError):
            use(Ended(bind))
    return Session()


@contract("sqlalchemy.engine.result")
async def result_metadata(_url: str) -> object:
    result: IteratorResult[tuple[int, str]] = IteratorResult(
        engine_result.SimpleResultMetaData(["id", "name"]), iter([(1, "a")])
    )
    assert result.one().name == "a"
    return engine_result


@contract("sqlalchemy.sql.compiler.SQLCompiler")
async def compiled_parameters(url: str) -> object:
    compiled = select(bindparam("b"), bindparam("a")).compile(dialect=create_async_engine(url).dialect)
    assert list(compiled.positiontup or ()) == ["b", "a"]
    return compiled


@contract("sqlalchemy.util.concurrency")
async def greenlets(_url: str) -> object:
    assert not concurrency.in_greenlet()
    assert await concurrency.greenlet_spawn(concurrency.in_greenlet)
    return concurrency


@contract("sqlalchemy.pool.AsyncAdaptedQueuePool")
async def pool(url: str) -> object:
    called: list[None] = []

    class Recording(AsyncAdaptedQueuePool):
        @override
        def connect(self) -> PoolProxiedConnection:
            called.append(None)
            return super().connect()

    engine = create_async_engine(url, poolclass=Recording, pool_size=2, pool_timeout=3)
    try:
        async with engine.connect():
            made = engine.pool
            assert isinstance(made, Recording)
            assert (made.checkedout(), made.checkedin(), made.size(), made.timeout()) == (1, 0, 2, 3)
        assert (made.checkedout(), made.checkedin(), len(called)) == (0, 1, 1)
    finally:
        await engine.dispose()
    return made


@contract("asyncpg.Connection")
async def begin(url: str) -> object:
    executed: list[str] = []

    class Recording(asyncpg.Connection):  # type: ignore[misc]  # The driver publishes no types.
        async def execute(self, query: str, *arguments: Any, **options: Any) -> Any:
            executed.append(query)
            return await super().execute(query, *arguments, **options)

    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(plain, connection_class=Recording)
    try:
        async with connection.transaction():
            pass
        # The next statements use the changed timeout.
        connection._config = connection._config._replace(command_timeout=0.1)
        with pytest.raises(TimeoutError):
            await connection.fetch("SELECT pg_sleep(5)")
    finally:
        await connection.close()
    assert [query.split(";")[0] for query in executed] == ["BEGIN", "COMMIT"]
    return connection


# Other libraries


@contract("joserfc.jws.JWSRegistry")
async def registry(_url: str) -> object:
    called: list[str] = []

    class Recording(jws.JWSRegistry):
        @override
        def get_alg(self, name: str) -> Any:
            called.append(name)
            # The parent would warn.
            assert callable(super().get_alg)
            return jws.JWSRegistry.algorithms[name]

    used = Recording()
    token = jws.serialize_compact({"alg": "EdDSA"}, b"text", jwk.OKPKey.generate_key("Ed25519"), registry=used)
    assert (token.count("."), called) == (2, ["EdDSA"])
    return used


@contextmanager
def records_of(name: str) -> Iterator[list[logging.LogRecord]]:
    records: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        @override
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler, logger = Handler(), logging.getLogger(name)
    before, logger.level = logger.level, logging.DEBUG
    # Our own filter, from another test, would remove the record.
    filters, logger.filters = logger.filters, []
    logger.addHandler(handler)
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.level, logger.filters = before, filters


def make_app() -> procrastinate.App:
    app = procrastinate.App(connector=testing.InMemoryConnector())

    @app.task(name="failing")
    async def fail() -> None:
        raise LookupError

    return app


async def run_one(app: procrastinate.App, *, wait: bool = False) -> Worker:
    async with app.open_async():
        await app.configure_task("failing").defer_async()
        worker = Worker(app, name=None, wait=wait, listen_notify=False, install_signal_handlers=False)
        running = asyncio.create_task(worker.run())  # type: ignore[no-untyped-call]  # It declares no return type.
        if wait:
            await asyncio.sleep(0.1)
            worker.stop()  # type: ignore[no-untyped-call]  # As above.
        async with asyncio.timeout(5):
            await running
    return worker


@contract("procrastinate.manager.JobManager")
async def job_manager(_url: str) -> object:
    called: list[str] = []

    class Recording(JobManager):
        @override
        async def register_worker(self) -> int:
            called.append("register_worker")
            return await super().register_worker()

        @override
        async def fetch_job(self, *arguments: Any, **options: Any) -> Any:
            called.append("fetch_job")
            return await super().fetch_job(*arguments, **options)

        @override
        async def finish_job(self, *arguments: Any, **options: Any) -> None:
            await super().finish_job(*arguments, **options)
            called.append("finish_job")

        @override
        async def retry_job(self, *arguments: Any, **options: Any) -> None:
            await super().retry_job(*arguments, **options)
            called.append("retry_job")

    app = procrastinate.App(connector=testing.InMemoryConnector())

    @app.task(name="failing", retry=1)
    async def fail() -> None:
        raise LookupError

    app.job_manager = Recording(app.connector)
    await run_one(app)
    assert [name for name in called if name != "fetch_job"] == ["register_worker", "retry_job", "finish_job"]
    assert "fetch_job" in called
    return app.job_manager


@contract("procrastinate.App")
async def app_job_manager(_url: str) -> object:
    app = make_app()
    replaced = JobManager(app.connector)
    app.job_manager = replaced
    await run_one(app)
    assert app.job_manager is replaced
    return app


@contract("procrastinate.worker.Worker")
async def worker(_url: str) -> object:
    return await run_one(make_app(), wait=True)


@contract("procrastinate.worker")
async def job_error(_url: str) -> object:
    with records_of("procrastinate.worker") as records:
        await run_one(make_app())
    assert [record.name for record in records if getattr(record, "action", None) == "job_error"] == [
        "procrastinate.worker"
    ]
    return resolve("procrastinate.worker")


@contract("prometheus_client.metrics_core")
async def metric_families(_url: str) -> object:
    gauge = metrics_core.GaugeMetricFamily("a", "A.", labels=["b"])
    gauge.add_metric(["c"], 1)
    histogram = metrics_core.HistogramMetricFamily("d", "D.", labels=[])
    histogram.add_metric([], buckets=[("0.1", 1), ("+Inf", 2)], sum_value=3)

    class Collector:
        def collect(self) -> list[metrics_core.Metric]:
            return [gauge, histogram]

    collected = CollectorRegistry()
    collected.register(Collector())
    text = generate_latest(collected).decode()
    assert 'a{b="c"} 1.0' in text
    assert 'd_bucket{le="0.1"} 1.0' in text
    return metrics_core


@contract("prometheus_client.utils")
async def bucket_labels(_url: str) -> object:
    write: Callable[[float], str] = utils.floatToGoString
    assert [write(value) for value in (0.005, 1, float("inf"))] == ["0.005", "1.0", "+Inf"]
    return utils


@contract("alembic.autogenerate.RevisionContext")
async def revision_context(_url: str) -> object:
    arguments = dict.fromkeys(
        ("message", "sql", "head", "splice", "branch_label", "version_path", "rev_id", "depends_on")
    )
    context = RevisionContext(Config(), None, arguments | {"rev_id": "a"})  # type: ignore[arg-type]  # No script is read.
    assert context.command_args["rev_id"] == "a"
    return context
