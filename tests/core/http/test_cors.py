"""What a page of another origin may send and read."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, Response
from httpx2 import AsyncClient
from starlette.types import Receive, Scope, Send

from app.core.config import Settings
from app.core.db.database import Database
from app.core.errors import RateLimitedError
from app.core.http import routing
from app.core.http.access import public
from app.core.http.browsers.cors import CORSMiddleware, PreflightMiddleware
from app.core.http.problems import problem_responses
from app.main import create_app
from tests.aftermath import assert_problem
from tests.conftest import make_settings, running

ORIGIN = "https://app.example.com"
FROM_PAGE = {"Origin": ORIGIN}
ME = "/api/v1/users/me"


class EnoughError(RateLimitedError):
    code = "enough"
    detail = "Enough."

    def __init__(self) -> None:
        super().__init__(retry_after=30)


def failing_router() -> Any:
    router = routing.router()

    @router.get("/bug", openapi_extra=public)
    async def fail() -> None:
        raise ZeroDivisionError

    @router.get("/cancelled", openapi_extra=public)
    async def cancel() -> None:
        raise asyncio.CancelledError

    @router.get("/limited", openapi_extra=public, responses=problem_responses(EnoughError))
    async def limit() -> None:
        raise EnoughError

    @router.get("/varied", openapi_extra=public)
    async def vary(response: Response) -> None:
        response.headers["Vary"] = "Accept"
        response.headers["Access-Control-Expose-Headers"] = "X-Total-Count"
        response.headers["Access-Control-Allow-Origin"] = "*"

    return router


def application(settings: Settings, database: Database) -> FastAPI:
    app = create_app(settings, database)
    routing.include(app, failing_router())
    return app


@pytest.fixture
async def page(database_url: str, database: Database) -> AsyncIterator[AsyncClient]:
    """A client of an application that pages of one origin may call, with one header of their own."""
    server = {"cors_origins": ORIGIN, "cors_headers": "X-Tenant, idempotency-key"}
    async with running(application(make_settings(database_url, server=server), database)) as client:
        yield client


async def preflight(
    page: AsyncClient, *, path: str = ME, method: str = "PATCH", headers: str | None = None, origin: str = ORIGIN
) -> Any:
    sent = {"Origin": origin, "Access-Control-Request-Method": method}
    if headers is not None:
        sent["Access-Control-Request-Headers"] = headers
    return await page.options(path, headers=sent)


# Preflights


@pytest.mark.parametrize(
    "headers",
    [
        None,
        "",
        "authorization,content-type,if-match",
        "traceparent, tracestate, baggage, sentry-trace",
        "Traceparent,\tBAGGAGE , ,authorization",
        "x-tenant, Idempotency-Key",
        "accept, accept-language, content-language, x-request-id, if-none-match, last-event-id",
    ],
)
async def test_a_page_may_send_headers_of_tracing_and_of_the_settings(page: AsyncClient, headers: str | None) -> None:
    response = await preflight(page, headers=headers)

    assert (response.status_code, response.content) == (200, b"")
    allowed = response.headers["access-control-allow-headers"].lower().split(", ")
    assert {"traceparent", "baggage", "sentry-trace", "x-tenant", "idempotency-key", "authorization"} <= {*allowed}
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["access-control-max-age"] == "600"
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
async def test_a_page_may_use_the_methods_of_the_api(page: AsyncClient, method: str) -> None:
    response = await preflight(page, method=method)

    assert response.status_code == 200
    assert method in response.headers["access-control-allow-methods"].split(", ")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"origin": "https://evil.example"}, "the origin https://evil.example"),
        ({"method": "TRACE"}, "the method TRACE"),
        ({"method": "patch"}, "the method patch"),
        ({"headers": "authorization, x-own, x-other"}, "the headers x-own, x-other"),
        ({"headers": "x-own"}, "the header x-own"),
        ({"headers": ",".join(f"x-{n}" for n in range(100))}, "the headers x-0, x-1, x-2, x-3, x-4 and 95 more"),
        ({"headers": "x" * 500}, f"the header {'x' * 64}"),
        (
            {"origin": "null", "method": "TRACE", "headers": "x-own"},
            "the origin null, the method TRACE, the header x-own",
        ),
    ],
)
async def test_a_refused_preflight_names_what_is_refused(page: AsyncClient, change: dict[str, str], named: str) -> None:
    response = await preflight(page, **change)

    assert_problem(response, 403, "cors_refused")
    assert f"not allowed: {named}." in response.json()["detail"]
    assert "APP_SERVER__CORS_" in response.json()["detail"]
    assert ("access-control-allow-origin" in response.headers) == ("origin" not in change)


async def test_a_preflight_varies_by_what_it_asks(page: AsyncClient) -> None:
    for response in (await preflight(page), await preflight(page, method="TRACE")):
        varied = response.headers["vary"].split(", ")
        assert varied == ["Access-Control-Request-Method", "Access-Control-Request-Headers", "Origin"]


@pytest.mark.parametrize("path", [f"{ME}?token=secret", "/nowhere", "/a%2Fb"])
async def test_a_preflight_is_answered_for_any_address_so_that_the_page_can_read_the_error(
    page: AsyncClient, path: str
) -> None:
    assert (await preflight(page, path=path, method="GET")).status_code == 200


async def test_options_without_a_requested_method_is_no_preflight(page: AsyncClient) -> None:
    response = await page.options("/nowhere", headers=FROM_PAGE)

    assert_problem(response, 404, "not_found")


# Other requests


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/livez", 200),
        ("HEAD", "/livez", 200),
        ("GET", ME, 401),
        ("GET", f"{ME}?token=secret", 400),
        ("GET", "/nowhere", 404),
        ("GET", "/a%2Fb", 404),
        ("TRACE", "/livez", 405),
        ("POST", "/api/v1/auth/password/forgot", 413),
        ("GET", "/limited", 429),
        ("GET", "/bug", 500),
        ("GET", "/cancelled", 503),
    ],
)
async def test_a_page_can_read_every_response(page: AsyncClient, method: str, path: str, status: int) -> None:
    content = b"x" * 2_000_000 if status == 413 else None
    response = await page.request(method, path, headers=FROM_PAGE, content=content)

    assert response.status_code == status
    assert response.headers.get_list("access-control-allow-origin") == [ORIGIN]
    assert response.headers["vary"] == "Origin"
    exposed = {*response.headers["access-control-expose-headers"].split(", ")}
    assert {"ETag", "Link", "Location", "Retry-After", "WWW-Authenticate", "X-Request-ID"} <= exposed
    assert {"Allow", "Content-Disposition"} <= exposed
    assert response.headers["access-control-allow-credentials"] == "true"


@pytest.mark.parametrize("path", ["/livez", "/bug", f"{ME}?token=secret"])
@pytest.mark.parametrize("headers", [{}, {"Origin": "https://evil.example"}, {"Origin": "null"}])
async def test_no_response_allows_another_origin(page: AsyncClient, path: str, headers: dict[str, str]) -> None:
    response = await page.get(path, headers=headers)

    assert not [name for name in response.headers if name.startswith("access-control")]
    # A cache must not give this response to the page.
    assert response.headers["vary"] == "Origin"


async def test_two_origins_in_a_request_are_none(page: AsyncClient) -> None:
    response = await page.get("/livez", headers=[("Origin", "https://evil.example"), ("Origin", ORIGIN)])

    assert "access-control-allow-origin" not in response.headers


async def test_headers_that_an_operation_sets_are_kept(page: AsyncClient) -> None:
    response = await page.get("/varied", headers=FROM_PAGE)

    assert response.headers["vary"] == "Accept, Origin"
    assert "X-Total-Count" in response.headers["access-control-expose-headers"]
    assert response.headers.get_list("access-control-allow-origin") == [ORIGIN]


async def test_a_wildcard_allows_any_origin(database_url: str, database: Database) -> None:
    settings = make_settings(database_url, server={"cors_origins": "*"})
    async with running(application(settings, database)) as client:
        simple = await client.get("/bug", headers={"Origin": "http://localhost:5173"})
        asked = await preflight(client, origin="null")

    assert simple.headers["access-control-allow-origin"] == "http://localhost:5173"
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, "null")


async def test_only_http_requests_are_touched() -> None:
    seen = []

    async def inner(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope)

    async def unused(*_message: Any) -> Any:
        raise AssertionError

    lifespan = {"type": "lifespan", "state": {}}
    await CORSMiddleware(PreflightMiddleware(inner, headers=()), origins=[ORIGIN], has_cookies=True)(
        lifespan, unused, unused
    )

    assert seen == [lifespan]
