from collections.abc import Collection, Iterable
from typing import Annotated, Any, override

import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, Security, WebSocket
from fastapi.routing import iter_route_contexts
from fastapi.security import SecurityScopes
from httpx2 import ASGITransport, AsyncClient
from starlette.routing import WebSocketRoute

from app.core.errors import AppError, ForbiddenError, NotFoundError, UnauthenticatedError
from app.core.http import routing
from app.core.http.access import (
    Guard,
    call_guards_first,
    declare_public,
    public,
    refuse_undeclared,
    refuse_unusable_sockets,
)
from app.core.http.dependencies import SessionDep
from app.health import router as health
from app.main import create_app
from tests.conftest import make_settings
from tests.core.applications import token


class OpenGuard(Guard):
    async def __call__(self, needed: SecurityScopes) -> None:
        """Accept every caller."""

    @override
    def errors(self, scopes: Collection[str]) -> Iterable[type[AppError]]:
        return (UnauthenticatedError, ForbiddenError) if scopes else (UnauthenticatedError,)


class OptionalGuard(OpenGuard):
    is_optional = True


open_guard = OpenGuard()
optional_guard = OptionalGuard()


class ClosedGuard(OpenGuard):
    @override
    async def __call__(self, needed: SecurityScopes) -> None:
        """Refuse every caller."""
        raise UnauthenticatedError


closed_guard = ClosedGuard()


async def indirectly_guarded(_guarded: Annotated[None, Security(open_guard)]) -> None:
    """Depend on the guard."""


async def find_thing() -> None:
    """Reveal to any caller that the thing does not exist."""
    raise NotFoundError


type Thing = Annotated[None, Depends(find_thing)]
type Caller = Annotated[None, Security(closed_guard)]


async def find_part(_thing: Thing, _caller: Caller) -> None:
    """Depend on the guard after the thing."""


async def find_own_thing(_caller: Annotated[None, Security(open_guard)]) -> None:
    """Reveal to any caller of the weaker guard that the thing does not exist."""
    raise NotFoundError


def application(router: APIRouter) -> FastAPI:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(router, prefix="/api")
    return app


def test_an_operation_that_declares_nothing_stops_the_application() -> None:
    router = routing.router(prefix="/things")

    @router.put("/{thing_id}")
    async def replace(thing_id: str) -> None: ...

    with pytest.raises(RuntimeError, match=r"must declare who may call them: PUT /api/things/\{thing_id\}"):
        refuse_undeclared(application(router))


def test_the_error_names_every_undeclared_operation() -> None:
    router = routing.router()

    @router.get("/a")
    async def a() -> None: ...

    @router.api_route("/b", methods=["POST", "DELETE"])
    async def b() -> None: ...

    with pytest.raises(RuntimeError, match="GET /api/a, DELETE POST /api/b"):
        refuse_undeclared(application(router))


def test_an_operation_that_is_public_and_guarded_stops_the_application() -> None:
    router = routing.router()

    @router.get("/both", openapi_extra=public, dependencies=[Security(open_guard)])
    async def both() -> None: ...

    with pytest.raises(RuntimeError, match="GET /api/both"):
        refuse_undeclared(application(router))


@pytest.mark.parametrize(
    "options",
    [
        {"openapi_extra": public, "dependencies": [Security(optional_guard)]},
        {"dependencies": [Security(open_guard), Security(optional_guard)]},
        {"dependencies": [Depends(indirectly_guarded), Security(optional_guard)]},
    ],
)
def test_an_operation_with_an_optional_caller_is_neither_public_nor_guarded(options: dict[str, Any]) -> None:
    router = routing.router()

    @router.get("/both", **options)
    async def both() -> None: ...

    with pytest.raises(RuntimeError, match=r"GET /api/both.*only one of"):
        refuse_undeclared(application(router))


def test_an_optional_caller_with_scopes_stops_the_application() -> None:
    router = routing.router()

    @router.get("/scoped", dependencies=[Security(optional_guard, scopes=["things:read"])])
    async def scoped() -> None: ...

    with pytest.raises(RuntimeError, match=r"GET /api/scoped.*compare `principal\.scopes`"):
        refuse_undeclared(application(router))


def test_an_application_with_public_and_guarded_operations_starts() -> None:
    router = routing.router()

    @router.get("/public", openapi_extra=public)
    async def anybody() -> None: ...

    @router.get("/guarded")
    async def guarded(_caller: Annotated[None, Security(open_guard)]) -> None: ...

    @router.get("/deeper", dependencies=[Depends(indirectly_guarded)])
    async def deeper() -> None: ...

    @router.get("/optional")
    async def optional(_caller: Annotated[None, Security(optional_guard)]) -> None: ...

    refuse_undeclared(application(router))


def test_other_openapi_extras_do_not_declare_an_operation_public() -> None:
    router = routing.router()

    @router.get("/x", openapi_extra={"x-public": False, "x-other": True})
    async def x() -> None: ...

    with pytest.raises(RuntimeError, match="GET /api/x"):
        refuse_undeclared(application(router))


def test_a_guard_on_the_whole_router_guards_each_operation() -> None:
    router = APIRouter(route_class=routing.Route, dependencies=[Security(open_guard)])

    @router.get("/a")
    async def a() -> None: ...

    refuse_undeclared(application(router))


@pytest.mark.parametrize(("scopes", "statuses"), [([], {401}), (["things:write"], {401, 403})])
def test_an_operation_declares_the_errors_of_its_guard(scopes: list[str], statuses: set[int]) -> None:
    router = routing.router()

    @router.get("/x", dependencies=[Security(open_guard, scopes=scopes)])
    async def x() -> None: ...

    (route,) = router.routes
    assert isinstance(route, routing.Route)
    assert {status for status in route.responses if status in {401, 403}} == statuses


class SocketGuard(Guard):
    """Accepts every WebSocket."""

    @override
    def errors(self, scopes: Any) -> Any:
        return ()

    async def __call__(self, socket: WebSocket) -> str:
        return str(socket.url)


class OptionalSocketGuard(SocketGuard):
    is_optional = True


SocketCaller = Annotated[str, Security(SocketGuard())]


async def without_caller(socket: WebSocket) -> None: ...


async def with_optional_caller(_caller: Annotated[str, Security(OptionalSocketGuard())]) -> None: ...


async def with_caller_of_http(_caller: Annotated[str, Security(token)]) -> None: ...


async def with_session(_caller: SocketCaller, _session: SessionDep) -> None: ...


async def with_request(_caller: SocketCaller, _request: Request) -> None: ...


@pytest.mark.parametrize(
    ("endpoint", "fault"),
    [
        (without_caller, "/api/v1/live has no caller"),
        (declare_public(without_caller), "/api/v1/live has no caller"),
        (with_optional_caller, "/api/v1/live has no caller"),
        (with_caller_of_http, "/api/v1/live takes Token, which needs an HTTP request"),
        (with_session, "/api/v1/live takes get_session, which needs an HTTP request: open sessions with DatabaseDep"),
        (with_request, "/api/v1/live takes with_request, which needs an HTTP request"),
    ],
)
@pytest.mark.parametrize("is_nested", [False, True])
def test_a_websocket_without_a_caller_or_with_a_request_is_refused(
    endpoint: Any, fault: str, *, is_nested: bool
) -> None:
    outer, inner = routing.router(prefix="/v1"), routing.router(prefix="" if is_nested else "/v1")
    inner.websocket("/live")(endpoint)
    outer.include_router(inner)

    with pytest.raises(RuntimeError, match=rf"these WebSockets cannot work: .*{fault}"):
        refuse_unusable_sockets(application(outer if is_nested else inner))


def test_a_plain_websocket_route_of_starlette_is_refused() -> None:
    app = application(routing.router())
    app.router.routes.append(WebSocketRoute("/live", without_caller))

    with pytest.raises(RuntimeError, match="/live has no caller"):
        refuse_unusable_sockets(app)


async def test_the_guard_of_a_websocket_runs_first() -> None:
    router = routing.router()

    async def first() -> None: ...

    @router.websocket("/live")
    async def listen(_first: Annotated[None, Depends(first)], _caller: SocketCaller) -> None: ...

    app = application(router)
    refuse_unusable_sockets(app)
    call_guards_first(app)

    (route,) = [one for one in iter_route_contexts(app.routes) if one.path == "/api/live"]
    assert isinstance(route.dependant.dependencies[0].call, SocketGuard)


def test_the_application_refuses_websockets_of_its_features(monkeypatch: pytest.MonkeyPatch) -> None:
    router = routing.router()
    router.websocket("/live")(lambda _socket: None)
    monkeypatch.setattr(health, "ROUTERS", (router,), raising=False)

    with pytest.raises(RuntimeError, match="/api/v1/live"):
        create_app(make_settings("postgresql://nobody@127.0.0.1/nothing"))


@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize("path", ["/direct", "/weaker", "/indirect", "/router"])
async def test_guards_run_before_other_dependencies(path: str, *, is_nested: bool) -> None:
    router = routing.router()
    of_router = APIRouter(route_class=routing.Route, dependencies=[Depends(find_thing)])

    @router.get("/direct")
    async def direct(_thing: Thing, _caller: Caller) -> None: ...

    @router.get("/weaker", dependencies=[Depends(find_own_thing)])
    async def weaker(_caller: Caller) -> None: ...

    @router.get("/indirect", dependencies=[Depends(find_thing), Depends(find_part)])
    async def indirect() -> None: ...

    @of_router.get("/router")
    async def of_the_router(_caller: Caller) -> None: ...

    app = create_app(make_settings("postgresql://x/x"))
    for one in (router, of_router):
        if is_nested:
            app.include_router(one)
        else:
            routing.include(app, one)
    call_guards_first(app)

    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        response = await client.get(path)

    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
