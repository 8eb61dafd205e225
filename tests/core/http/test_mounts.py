"""Mounts and plain routes: they declare who may call them, and a mount can have headers of its own."""

from pathlib import Path

import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from httpx2 import ASGITransport, AsyncClient
from starlette.routing import Host, Mount, Router
from starlette.routing import Route as PlainRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from app.core.config import Settings
from app.core.db.database import Database
from app.core.http import routing
from app.core.http.access import declare_public, refuse_undeclared
from app.core.http.mounts import mount_public
from app.main import create_app
from tests.access import public
from tests.aftermath import assert_problem
from tests.conftest import running
from tests.core.applications import application, serving
from tests.test_access import declared

POLICY = "default-src 'none'; style-src 'self'"
HEADERS = {"Content-Security-Policy": POLICY, "Cache-Control": "public, max-age=60"}


async def show(_request: Request) -> Response:
    return PlainTextResponse("shown")


@declare_public
async def show_to_all(_request: Request) -> Response:
    return PlainTextResponse("shown")


@pytest.fixture
def files(tmp_path: Path) -> StaticFiles:
    (tmp_path / "page.css").write_text("body {}")
    (tmp_path / "page.html").write_text("<!doctype html>")
    return StaticFiles(directory=tmp_path)


def undeclared(kind: str) -> FastAPI:
    """Return an application with one undeclared route of this kind."""
    app, inner = FastAPI(openapi_url=None), Router([PlainRoute("/x", show)])
    included = APIRouter()
    if kind == "mount":
        app.mount("/sub", inner)
    elif kind == "route":
        app.add_route("/page", show, methods=["POST"])
    elif kind == "host":
        app.router.routes.append(Host("inner.example", app=inner))
    elif kind == "mount in a router":
        included.mount("/sub", inner)
        app.include_router(included, prefix="/above")
    elif kind == "route in a router":
        included.add_route("/page", show)
        app.include_router(included, prefix="/above")
    return app


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("mount", "Mount /sub"),
        ("route", "POST /page"),
        ("host", "Host inner.example"),
        ("mount in a router", "Mount /above/sub"),
        ("route in a router", "GET HEAD /above/page"),
    ],
)
def test_a_mount_or_a_plain_route_that_is_not_declared_stops_the_application(kind: str, named: str) -> None:
    with pytest.raises(RuntimeError, match=rf"must declare who may call them: {named}\..*declare_public"):
        refuse_undeclared(undeclared(kind))


async def test_a_mount_that_is_added_later_stops_the_start(settings: Settings, database: Database) -> None:
    app = create_app(settings, database)
    app.mount("/late", Router([PlainRoute("/x", show)]))

    with pytest.raises(RuntimeError, match="Mount /late"):
        async with running(app):
            pass


def test_declared_mounts_and_routes_start(files: StaticFiles) -> None:
    app, router = FastAPI(openapi_url=None), APIRouter()
    mount_public(app, "/static", files)
    mount_public(router, "/pages", files, headers=HEADERS)
    app.include_router(router, prefix="/above")
    app.mount("/marked", declare_public(Router([PlainRoute("/x", show)])))
    app.add_route("/page", show_to_all)
    app.router.routes.append(declare_public(Mount("/route", files)))
    app.router.routes.append(declare_public(Host("inner.example", app=files)))

    refuse_undeclared(app)


def test_each_mount_needs_a_row_in_the_access_table(settings: Settings, files: StaticFiles) -> None:
    app = create_app(settings)
    mount_public(app, "/static", files)

    access = public(path={"path": "page.css"})
    assert declared(app)["GET /static/{path}"] == (access.scopes, access.is_optional)


@pytest.mark.parametrize("prefix", ["", "/above"])
async def test_a_mount_sends_its_own_headers_with_each_response(files: StaticFiles, prefix: str) -> None:
    router = routing.router()
    mount_public(router, "/static", files, headers=HEADERS)
    app = application(router=routing.router())
    app.include_router(router, prefix=prefix)

    async with serving(app) as client:
        style, page = [await client.get(f"{prefix}/static/{name}") for name in ("page.css", "page.html")]
        missing = await client.get(f"{prefix}/static/none.css")
        refused = await client.post(f"{prefix}/static/page.css")

    assert (style.text, page.headers["content-type"]) == ("body {}", "text/html; charset=utf-8")
    for response in (style, page):
        assert response.headers.get_list("content-security-policy") == [POLICY]
        assert response.headers["cache-control"] == "public, max-age=60"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-request-id"]
    # Errors come from the application around the mount, and caches must not store them.
    assert_problem(missing, 404, "not_found")
    assert missing.headers["cache-control"] == "no-store"
    assert_problem(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == "GET, HEAD"


async def test_a_mount_without_headers_gets_the_strict_defaults(files: StaticFiles) -> None:
    app = application(routing.router())
    mount_public(app, "/static", files)

    async with serving(app) as client:
        response = await client.get("/static/page.html")

    assert response.headers["content-security-policy"].startswith("default-src 'none';")
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(("given", "status"), [("bytes=9-1", 400), ("bytes=99-", 416)])
async def test_an_error_inside_a_mount_is_not_cached(files: StaticFiles, given: str, status: int) -> None:
    app = application(routing.router())
    mount_public(app, "/static", files, headers=HEADERS)

    async with serving(app) as client:
        response = await client.get("/static/page.html", headers={"Range": given})

    # A cache would send the error to clients that have not sent this header.
    assert (response.status_code, response.headers["cache-control"]) == (status, "no-store")
    assert response.headers["content-security-policy"] == POLICY


async def test_a_header_that_the_mounted_application_sets_is_kept() -> None:
    inner: ASGIApp = PlainTextResponse("own", headers={"Content-Security-Policy": "default-src 'self'"})
    app = application(routing.router())
    mount_public(app, "/sub", inner, headers=HEADERS)

    async with serving(app) as client:
        response = await client.get("/sub/")

    assert response.headers.get_list("content-security-policy") == ["default-src 'self'"]
    assert response.headers["cache-control"] == "public, max-age=60"


async def test_a_declared_mount_is_routed_as_by_the_framework(files: StaticFiles) -> None:
    inner = FastAPI()

    @inner.get("/items/{name}", name="item")
    async def read_item(request: Request, name: str) -> list[str]:
        return [name, request.scope["root_path"], str(request.url_for("sub:item", name="c"))]

    app = FastAPI()
    mount_public(app, "/sub", inner, name="sub", headers=HEADERS)
    mount_public(app, "/static", files, name="static", headers=HEADERS)

    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        response = await client.get("/sub/items/b")

    assert response.json() == ["b", "/sub", "http://test/sub/items/c"]
    assert app.url_path_for("sub:item", name="c") == "/sub/items/c"
    assert app.url_path_for("static", path="page.css") == "/static/page.css"


def test_an_object_without_attributes_cannot_be_declared() -> None:
    with pytest.raises(TypeError, match="declare the route instead"):
        declare_public(object())
