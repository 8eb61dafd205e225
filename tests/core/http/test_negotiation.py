"""Responses in other media types than JSON, and their negotiation."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import Response
from fastapi.responses import HTMLResponse, StreamingResponse
from httpx2 import AsyncClient

from app.core.errors import NotFoundError
from app.core.http import routing
from app.core.http.access import public
from app.core.http.dependencies import MediaType
from tests.aftermath import assert_problem
from tests.core.applications import application, serving

CSV = {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}
EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


class CSVResponse(Response):
    media_type = "text/csv"


router = routing.router()


@router.get("/csv", openapi_extra=public, response_class=CSVResponse)
async def read_csv(fails: bool = False) -> CSVResponse:  # A query parameter.
    if fails:
        raise NotFoundError
    return CSVResponse("a,b\r\n")


@router.get("/page", openapi_extra=public, response_class=HTMLResponse)
async def read_page() -> str:
    return "<p>Hello</p>"


@router.get("/both", openapi_extra=public, responses=CSV)  # type: ignore[arg-type]  # A dict of int is one of int | str.
async def read_both(media_type: MediaType) -> Any:
    return CSVResponse("a,b\r\n") if media_type == "text/csv" else {"a": 1}


@router.get("/events", openapi_extra=public, responses=EVENTS, response_class=StreamingResponse)
async def read_events() -> StreamingResponse:
    return StreamingResponse(iter(["data: 1\n\n"]), media_type="text/event-stream")


@router.get("/lines", openapi_extra=public)
def read_lines() -> Iterator[dict[str, int]]:
    yield {"a": 1}
    yield {"a": 2}


@router.get("/anything", openapi_extra=public, response_class=StreamingResponse)
async def read_anything() -> StreamingResponse:
    return StreamingResponse(iter(["x"]), media_type="application/x-anything")


@pytest.fixture
async def client() -> Any:
    async with serving(router) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "accept", "media_type"),
    [
        ("csv", "text/csv", "text/csv; charset=utf-8"),
        ("csv", "text/*;q=0.5, application/json", "text/csv; charset=utf-8"),
        ("csv", "*/*", "text/csv; charset=utf-8"),
        ("csv", "nonsense", "text/csv; charset=utf-8"),
        ("page", "text/html,application/xhtml+xml,*/*;q=0.8", "text/html; charset=utf-8"),
        ("both", "text/csv", "text/csv; charset=utf-8"),
        ("both", "application/json", "application/json"),
        ("both", "*/*", "application/json"),
        ("both", "", "application/json"),
        ("both", "application/json;q=0.5, text/csv", "text/csv; charset=utf-8"),
        ("both", "application/json;q=0.5, text/csv;q=0.4", "application/json"),
        ("both", "application/json;q=0, */*", "text/csv; charset=utf-8"),
        ("both", "text/csv;q=nonsense", "text/csv; charset=utf-8"),
        ("both", "application/problem+json", "application/json"),
        ("events", "text/event-stream", "text/event-stream; charset=utf-8"),
        ("lines", "application/jsonl", "application/jsonl"),
        ("anything", "application/x-anything", "application/x-anything"),
    ],
)
async def test_a_client_gets_a_declared_type_that_it_accepts(
    client: AsyncClient, path: str, accept: str, media_type: str
) -> None:
    response = await client.get(f"/{path}", headers={"Accept": accept})

    assert (response.status_code, response.headers["content-type"]) == (200, media_type)


@pytest.mark.parametrize(
    ("path", "accept", "types"),
    [
        ("csv", "application/json", "text/csv"),
        ("csv", "text/csv;q=0, */*", "text/csv"),
        ("page", "text/csv", "text/html"),
        ("both", "text/html", "application/json or text/csv"),
        ("events", "application/json", "text/event-stream"),
    ],
)
async def test_a_client_that_accepts_no_declared_type_gets_406_with_their_names(
    client: AsyncClient, path: str, accept: str, types: str
) -> None:
    response = await client.get(f"/{path}", headers={"Accept": accept})

    assert_problem(response, 406, "not_acceptable")
    assert response.json()["detail"] == f"The response is available as {types}, and `Accept` excludes that."


@pytest.mark.parametrize("path", ["both", "csv"])
async def test_several_accept_headers_are_one_list(client: AsyncClient, path: str) -> None:
    response = await client.get(f"/{path}", headers=[("Accept", "text/html"), ("Accept", "text/csv")])

    assert (response.status_code, response.headers["content-type"]) == (200, "text/csv; charset=utf-8")


async def test_an_error_is_a_problem_document_for_every_client(client: AsyncClient) -> None:
    response = await client.get("/csv?fails=true", headers={"Accept": "text/csv"})

    assert_problem(response, 404, "not_found")


async def test_a_response_with_several_types_says_that_it_varies(client: AsyncClient) -> None:
    assert (await client.get("/both")).headers["vary"] == "Accept"
    assert "vary" not in (await client.get("/csv")).headers


def test_the_document_lists_the_declared_types() -> None:
    paths = application(router).openapi()["paths"]

    found = {path: set(item["get"]["responses"]["200"].get("content", {})) for path, item in paths.items()}
    assert found == {
        "/csv": {"text/csv"},
        "/page": {"text/html"},
        "/both": {"application/json", "text/csv"},
        "/events": {"text/event-stream"},
        "/lines": {"application/jsonl"},
        "/anything": set(),
    }
