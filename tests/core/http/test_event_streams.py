"""How the middleware treats event streams: headers, log, metrics, HEAD and clients that leave."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi.sse import EventSourceResponse
from starlette.responses import StreamingResponse

from app.core.config import LogSettings
from app.core.http import routing
from app.core.http.access import public
from tests.core.applications import application, serving, with_state
from tests.core.http.test_middleware import scope_of
from tests.core.recording import Recording
from tests.core.scrape import counted_so_far

router = routing.router()
# What the gauges say while a stream runs.
gauges: list[tuple[float, float]] = []


def note_gauges() -> None:
    gauges.append((counted_so_far("http_event_streams"), counted_so_far("http_requests_in_flight")))


@router.get("/ticks", response_class=EventSourceResponse, openapi_extra=public)
async def tick() -> AsyncIterator[int]:
    for number in range(3):
        note_gauges()
        yield number
        await asyncio.sleep(0.15)


@router.get("/own", openapi_extra=public)
async def own_stream() -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        yield "data: x\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "public, max-age=60"})


@router.get("/endless", response_class=EventSourceResponse, openapi_extra=public)
async def endless() -> AsyncIterator[int]:
    while True:
        yield 1
        await asyncio.sleep(0)


@router.get("/broken", response_class=EventSourceResponse, openapi_extra=public)
async def broken() -> AsyncIterator[int]:
    yield 1
    raise ZeroDivisionError


def duration(path: str) -> tuple[float, float]:
    """Return the number and the sum of the durations of a route."""
    name = "http_request_duration_seconds"
    return counted_so_far(f"{name}_count", route=path), counted_so_far(f"{name}_sum", route=path)


async def test_the_duration_of_a_stream_is_logged_but_neither_slow_nor_measured(recording: Recording) -> None:
    async with serving(router, log_settings=LogSettings.model_validate({"slow_request": "300ms"})) as client:
        # The first request of an application takes longer, because it builds the middleware.
        await client.get("/ticks")
        lines, before = recording(), duration("/ticks")
        lines()
        response = await client.get("/ticks")

    assert response.text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
    (line,) = lines()
    assert (line["level"], line["status"], line.get("slow")) == ("info", 200, None)
    assert line["duration_ms"] > 400
    after = duration("/ticks")
    assert after[0] - before[0] == 1
    assert after[1] - before[1] < 0.3


async def test_a_stream_counts_as_a_stream_and_not_as_a_request_in_progress() -> None:
    gauges.clear()
    before = (counted_so_far("http_event_streams"), counted_so_far("http_requests_in_flight"))
    async with serving(router) as client:
        await client.get("/ticks")

    streams, requests = before
    assert gauges[-1] == (streams + 1, requests)
    assert (counted_so_far("http_event_streams"), counted_so_far("http_requests_in_flight")) == before


@pytest.mark.parametrize("path", ["/ticks", "/own"])
async def test_no_cache_stores_a_stream_and_no_proxy_buffers_it(path: str) -> None:
    async with serving(router) as client:
        headers = (await client.get(path)).headers

    assert headers.get_list("cache-control") == ["no-store"]
    assert headers.get_list("x-accel-buffering") == ["no"]


async def test_head_of_a_stream_has_the_headers_and_ends(recording: Recording) -> None:
    lines = recording()
    async with serving(router) as client, asyncio.timeout(10):
        response = await client.head("/endless")

    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"].startswith("text/event-stream")
    (line,) = lines()
    assert (line["method"], line["status"]) == ("HEAD", 200)


@pytest.mark.parametrize("version", ["2.3", "2.4"])
async def test_a_client_that_leaves_a_stream_causes_no_error(recording: Recording, version: str) -> None:
    """Servers of ASGI 2.4 raise an error in `send`; earlier ones only send a message."""
    lines, sent = recording(), 0
    left = asyncio.Event()

    async def receive() -> Any:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        nonlocal sent
        sent += 1
        if sent > 5:
            left.set()
            if version == "2.4":
                raise OSError

    scope = scope_of("GET", "/endless") | {"asgi": {"version": "3.0", "spec_version": version}}
    async with asyncio.timeout(10):
        await with_state(application(router))(scope, receive, send)

    (line,) = lines()
    assert (line["event"], line["status"]) == ("request", 200)


async def test_an_error_in_a_stream_is_logged_and_leaves_the_response_incomplete(recording: Recording) -> None:
    lines, sent = recording(), []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await with_state(application(router))(scope_of("GET", "/broken"), receive, send)

    assert [line["event"] for line in lines()] == ["unhandled error", "request"]
    assert not any(message["type"] == "http.response.body" and not message.get("more_body") for message in sent)
