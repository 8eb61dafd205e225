"""Documented behaviour of FastAPI and Starlette, which our routes and middleware must not change."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, override

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response, WebSocket
from httpx2 import ASGITransport, AsyncClient
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Host, Match, Router
from starlette.routing import Route as PlainRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.errors import ConflictError, NotFoundError
from app.core.http import routing
from app.core.http.access import public
from tests.aftermath import assert_problem
from tests.core.applications import application, serving

things = routing.router(prefix="/things")
others = routing.router(prefix="/others")
plain = APIRouter(prefix="/plain")


def describe(request: Request) -> dict[str, str]:
    return {"route": request.scope["route"].name, **request.path_params}


@things.get("/first", openapi_extra=public)
async def read_first(request: Request) -> dict[str, str]:
    return describe(request)


@things.get("/{thing_id}", openapi_extra=public)
async def read_one(request: Request) -> dict[str, str]:
    return describe(request)


@things.get("/hidden", openapi_extra=public)
async def read_hidden() -> dict[str, str]:
    raise AssertionError


@things.put("/hidden", openapi_extra=public)
async def replace_hidden(request: Request) -> dict[str, str]:
    return describe(request)


@others.get("/{number:int}", openapi_extra=public)
async def read_number(request: Request) -> dict[str, object]:
    return {"number": request.path_params["number"]}


@others.get("/{path:path}", openapi_extra=public)
async def read_path(request: Request) -> dict[str, str]:
    return describe(request)


@plain.get("/one", openapi_extra=public)
async def read_plain(request: Request) -> dict[str, str]:
    return describe(request)


def everything() -> APIRouter:
    router = APIRouter()
    for one in (things, others, plain):
        router.include_router(one, prefix="/v1")
    return router


@pytest.mark.parametrize(
    ("method", "path", "result"),
    [
        ("GET", "/v1/things/first", {"route": "read_first"}),
        ("GET", "/v1/things/second", {"route": "read_one", "thing_id": "second"}),
        ("GET", "/v1/things/hidden", {"route": "read_one", "thing_id": "hidden"}),
        ("PUT", "/v1/things/hidden", {"route": "replace_hidden"}),
        ("GET", "/v1/others/12", {"number": 12}),
        ("GET", "/v1/others/a/b", {"route": "read_path", "path": "a/b"}),
        ("GET", "/v1/plain/one", {"route": "read_plain"}),
    ],
)
async def test_the_first_matching_operation_is_called(method: str, path: str, result: dict[str, str]) -> None:
    async with serving(everything()) as client:
        response = await client.request(method, path)

    assert response.json() == result


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/things/first/", 404, "not_found"),
        ("GET", "/v1/things", 404, "not_found"),
        ("GET", "/V1/things/first", 404, "not_found"),
        ("POST", "/v1/things/first", 405, "method_not_allowed"),
        ("DELETE", "/v1/others/12", 405, "method_not_allowed"),
    ],
)
async def test_an_unknown_path_or_method_is_refused(method: str, path: str, status: int, code: str) -> None:
    async with serving(everything()) as client:
        response = await client.request(method, path)

    assert_problem(response, status, code)


async def test_an_operation_can_build_urls_of_its_application() -> None:
    router = routing.router()

    @router.get("/elsewhere", openapi_extra=public)
    async def read_elsewhere(request: Request) -> str:
        return str(request.url_for("read_elsewhere"))

    async with serving(application(router)) as client:
        response = await client.get("/elsewhere")

    assert response.json() == "http://test/elsewhere"


# Exception handlers, middleware and mounts


class OwnError(Exception):
    """An exception of an application."""


class NarrowError(OwnError):
    """A subclass of it."""


def failing(error: Exception) -> APIRouter:
    router = routing.router()

    @router.get("/fails", openapi_extra=public)
    async def fail() -> None:
        raise error

    return router


def handler_returning(text: str, status: int = 418) -> Any:
    async def handle(_request: Request, _error: Exception) -> Response:
        return PlainTextResponse(text, status_code=status)

    return handle


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (404, HTTPException(404)),
        (404, None),
        (HTTPException, HTTPException(409)),
        (OwnError, NarrowError()),
        (NarrowError, NarrowError()),
        (NotFoundError, NotFoundError()),
        (500, OwnError()),
        (Exception, OwnError()),
    ],
)
async def test_a_handler_registered_by_number_or_by_class_is_called(key: Any, error: Exception | None) -> None:
    app = application(failing(error or OwnError()))
    app.add_exception_handler(key, handler_returning("handled"))

    async with serving(app) as client:
        response = await client.get("/fails" if error else "/nowhere")

    assert (response.status_code, response.text) == (418, "handled")
    assert "x-request-id" in response.headers


async def test_a_handler_by_number_comes_before_a_handler_by_class() -> None:
    app = application(failing(HTTPException(409)))
    app.add_exception_handler(HTTPException, handler_returning("by class"))
    app.add_exception_handler(409, handler_returning("by number"))

    async with serving(app) as client:
        assert (await client.get("/fails")).text == "by number"


async def test_a_handler_of_all_exceptions_may_be_a_plain_function_or_fail() -> None:
    def plain(_request: Request, error: Exception) -> Response:
        return PlainTextResponse(str(error.args[0]), status_code=500)

    async def broken(_request: Request, _error: Exception) -> Response:
        raise ZeroDivisionError

    for handler, text in ((plain, "reason"), (broken, "internal_error")):
        app = application(failing(OwnError("reason")))
        app.add_exception_handler(Exception, handler)
        async with serving(app) as client:
            response = await client.get("/fails")
        assert response.status_code == 500
        assert text in response.text


async def test_a_handler_of_all_exceptions_cannot_send_a_second_response() -> None:
    router, seen = routing.router(), list[str]()

    @router.get("/late", openapi_extra=public)
    async def fail_late(background: BackgroundTasks) -> str:
        async def fail() -> None:
            raise OwnError

        background.add_task(fail)
        return "sent"

    async def handle(_request: Request, error: Exception) -> Response:
        seen.append(type(error).__name__)
        return PlainTextResponse("never")

    app = application(router)
    app.add_exception_handler(Exception, handle)
    async with serving(app) as client:
        response = await client.get("/late")

    assert (response.status_code, response.json(), seen) == (200, "sent", ["OwnError"])


async def test_an_exception_from_a_handler_gets_the_handler_of_its_own_class() -> None:
    async def translate(_request: Request, _error: Exception) -> Response:
        raise ConflictError

    app = application(failing(OwnError()))
    app.add_exception_handler(OwnError, translate)

    async with serving(app) as client:
        assert_problem(await client.get("/fails"), 409, "conflict")


async def test_every_kind_of_middleware_sees_the_request_and_its_route() -> None:
    class Marking:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def marked(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"x-pure", scope["route"].name.encode())]
                await send(message)

            await self.app(scope, receive, marked)

    class Based(BaseHTTPMiddleware):
        @override
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            request.state.note = "told"
            response: Response = await call_next(request)
            response.headers["x-based"] = "1"
            return response

    router = routing.router()

    @router.get("/state", openapi_extra=public)
    async def read_state(request: Request) -> str:
        return str(request.state.note)

    app = application(router, layers=[Marking, Based])

    @app.middleware("http")
    async def outermost(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["x-decorated"] = request.method
        return response

    async with serving(app) as client:
        response = await client.get("/state")

    assert response.json() == "told"
    assert [response.headers[name] for name in ("x-pure", "x-based", "x-decorated")] == ["read_state", "1", "GET"]


@pytest.mark.parametrize("kind", ["mount", "route", "host", "class"])
async def test_a_route_declared_before_an_operation_takes_precedence(kind: str) -> None:
    async def other(_request: Request) -> Response:
        return PlainTextResponse("other")

    class Anything(BaseRoute):
        @override
        def matches(self, _scope: Scope) -> tuple[Match, Scope]:
            return Match.FULL, {}

        @override
        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            await PlainTextResponse("other")(scope, receive, send)

    app = application(routing.router())
    if kind == "mount":
        app.mount("/taken", Router([PlainRoute("/first", other)]))
    elif kind == "route":
        app.add_route("/taken/{name}", other)
    else:
        inner = Router([PlainRoute("/taken/first", other)])
        app.router.routes.append(Host("test", app=inner) if kind == "host" else Anything())

    @app.get("/taken/first", openapi_extra=public)
    async def read() -> None: ...

    async with serving(app) as client:
        assert (await client.get("/taken/first")).text == "other"


async def test_a_mounted_application_is_routed_below_its_prefix(tmp_path: Any) -> None:
    (tmp_path / "page.txt").write_text("static")
    inner = FastAPI()

    @inner.get("/items/{name}")
    async def read_item(request: Request, name: str) -> dict[str, str]:
        return {"name": name, "url": request.url.path, "root": request.scope["root_path"], **request.path_params}

    @inner.get("/fails")
    async def fail() -> None:
        raise HTTPException(402)

    inner.add_exception_handler(402, handler_returning("inner", 402))
    app = application(routing.router())
    app.mount("/sub/{tenant}", inner)
    app.mount("/static", StaticFiles(directory=tmp_path))

    async with serving(app) as client:
        item, failed = await client.get("/sub/a/items/b"), await client.get("/sub/a/fails")
        page, missing = await client.get("/static/page.txt"), await client.get("/static/none.txt")
        refused = await client.post("/static/page.txt")

    assert item.json() == {"name": "b", "tenant": "a", "url": "/sub/a/items/b", "root": "/sub/a"}
    assert (failed.status_code, failed.text) == (402, "inner")
    assert page.text == "static"
    assert_problem(missing, 404, "not_found")
    assert_problem(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == "GET, HEAD"


async def test_a_root_path_is_optional_in_the_request() -> None:
    app = FastAPI()

    @app.get("/here")
    async def read_here(request: Request) -> str:
        return str(request.url_for("read_here"))

    below = ASGITransport(app, root_path="/prefix")
    async with AsyncClient(transport=below, base_url="http://test") as client:
        bodies = [(await client.get(path)).json() for path in ("/here", "/prefix/here")]

    assert bodies == ["http://test/prefix/here"] * 2


async def test_a_websocket_at_the_same_path_does_not_get_the_request() -> None:
    router = APIRouter()

    @router.websocket("/live")
    async def listen(socket: WebSocket) -> None:
        raise AssertionError(socket)

    @router.get("/live", openapi_extra=public)
    async def read_live() -> str:
        return "a response"

    async with serving(application(router)) as client:
        response = await client.get("/live")

    assert (response.status_code, response.json()) == (200, "a response")


async def test_dependencies_overrides_and_background_tasks_work_as_in_fastapi() -> None:
    steps: list[str] = []

    async def outer() -> AsyncIterator[str]:
        try:
            yield "real"
        except OwnError:
            steps.append("seen")
            raise HTTPException(410) from None
        finally:
            steps.append("closed")

    router = routing.router(prefix="/value")

    @router.get("", openapi_extra=public)
    async def read_value(value: Annotated[str, Depends(outer)], background: BackgroundTasks) -> str:
        background.add_task(steps.append, "background")
        if value == "real":
            raise OwnError
        return value

    app = application(routing.router())
    routing.include(app, router, prefix="/v1")
    async with serving(app) as client:
        failed = await client.get("/v1/value")
        app.dependency_overrides[outer] = lambda: "fake"
        faked = await client.get("/v1/value")

    assert (failed.status_code, faked.json()) == (410, "fake")
    assert steps == ["seen", "closed", "background"]


async def test_a_router_is_included_below_a_prefix_with_and_without_a_websocket() -> None:
    mixed = routing.router(prefix="/mixed")

    @mixed.get("/{name}", openapi_extra=public)
    async def read_name(name: str) -> str:
        return name

    @mixed.websocket("/live")
    async def listen(socket: WebSocket) -> None:
        raise AssertionError(socket)

    app = application(routing.router())
    routing.include(app, things, prefix="/v1")
    routing.include(app, mixed, prefix="/v2")
    async with serving(app) as client:
        paths = ("/v1/things/first", "/v2/mixed/one")
        bodies = [(await client.get(path)).json() for path in paths]

    assert bodies == [{"route": "read_first"}, "one"]
    assert app.openapi()["paths"].keys() >= {"/v1/things/{thing_id}", "/v2/mixed/{name}"}
