import asyncio
import json
from typing import Any
from urllib.parse import quote, unquote

import pytest
import structlog
from fastapi import Request, Response
from httpx2 import ASGITransport, AsyncClient
from starlette.types import Receive, Scope, Send

from app.core.config import LogSettings
from app.core.errors import NotFoundError
from app.core.http import routing
from app.core.http.access import public
from app.core.http.etags import IfMatch, IfNoneMatch
from app.core.http.middleware import RequestMiddleware
from app.core.observability.logs import REDACTED, configure
from app.core.schemas.fields import Payload
from tests.aftermath import assert_problem
from tests.core.applications import application, serving, with_state
from tests.core.recording import Recording

HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
    "strict-transport-security": "max-age=31536000; includeSubDomains",
}
# One request for each kind of response.
REQUESTS = [
    ("GET", "/things/1", 200),
    ("HEAD", "/things/1", 200),
    ("GET", "/missing", 404),
    ("GET", "/nothing", 404),
    ("DELETE", "/things/1", 405),
    ("POST", "/things", 415),
    ("GET", "/things/1?x=1", 422),
    ("GET", "/things/1?token=x", 400),
    ("GET", "/bug", 500),
    ("GET", "/problems/not-found", 200),
]


class Thing(Payload):
    name: str


router = routing.router()


@router.get("/things/{thing_id}", openapi_extra=public)
async def read_thing(thing_id: str, request: Request) -> dict[str, str]:
    if thing_id == "mine":
        request.scope["user_id"] = "0192f0c1-a2b3-7c4d-8e5f-60718293a4b5"
        request.scope["session_id"] = "0192f0c1-a2b3-7c4d-8e5f-60718293a4b6"
    return {"id": thing_id}


@router.post("/things", openapi_extra=public)
async def create_thing(payload: Thing) -> Thing:
    return payload


@router.get("/missing", openapi_extra=public)
async def raise_not_found() -> None:
    raise NotFoundError


@router.get("/bug", openapi_extra=public)
async def bug() -> None:
    raise ZeroDivisionError


@router.get("/slow", openapi_extra=public)
async def sleep() -> None:
    await asyncio.sleep(0.06)


@router.get("/log-context", openapi_extra=public)
async def bind_log_context() -> None:
    structlog.contextvars.bind_contextvars(order="CANARY")


@router.get("/secret-in-log-context", openapi_extra=public)
async def bind_a_secret() -> None:
    structlog.contextvars.bind_contextvars(password="CANARY", header="Bearer CANARY")


@router.get("/cacheable", openapi_extra=public)
async def cacheable(response: Response) -> str:
    response.headers["Cache-Control"] = "public, max-age=60"
    return "x"


@router.get("/conditions", openapi_extra=public)
async def read_conditions(if_match: IfMatch, if_none_match: IfNoneMatch) -> list[str | None]:
    return [if_match.header, if_none_match.header]


@router.delete("/empty/{status}", openapi_extra=public)
async def respond_without_content(status: int, response: Response) -> None:
    response.status_code = status


@router.delete("/empty", openapi_extra=public, status_code=204)
async def respond_without_content_as_declared() -> None: ...


@pytest.fixture
async def app() -> Any:
    async with serving(router) as client:
        yield client


def access_lines(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["logger"] == "app.access"]


# Request ids


@pytest.mark.parametrize("given", ["abcd1234", "0192f0c1-a2b3-7c4d-8e5f-60718293a4b5", "A_b-" * 16])
async def test_a_valid_request_id_is_kept(app: AsyncClient, recording: Recording, given: str) -> None:
    lines = recording()

    response = await app.get("/things/1", headers={"X-Request-ID": given})

    assert response.headers["x-request-id"] == given
    assert [line["request_id"] for line in lines()] == [given]


@pytest.mark.parametrize(
    "given", [None, "", "short", "x" * 65, "with space", "a\x1b[31mred", "new\x85line", "ümlaut12", "a" * 100_000]
)
async def test_any_other_request_id_is_replaced(app: AsyncClient, recording: Recording, given: str | None) -> None:
    lines = recording()
    headers = [] if given is None else [(b"X-Request-ID", given.encode("latin-1"))]

    response = await app.get("/things/1", headers=headers)

    made = response.headers["x-request-id"]
    assert made != given
    assert len(made) == 32
    assert int(made, 16)
    assert [line["request_id"] for line in lines()] == [made]


async def test_each_request_gets_its_own_id(app: AsyncClient) -> None:
    ids = {(await app.get("/things/1")).headers["x-request-id"] for _ in range(5)}

    assert len(ids) == 5


# Headers


@pytest.mark.parametrize(("method", "path", "status"), REQUESTS)
async def test_every_response_has_the_security_headers(app: AsyncClient, method: str, path: str, status: int) -> None:
    response = await app.request(method, path)

    assert response.status_code == status
    assert {name: response.headers.get(name) for name in HEADERS} == HEADERS
    assert len(response.headers["x-request-id"]) == 32


async def test_a_response_can_make_itself_cacheable(app: AsyncClient) -> None:
    response = await app.get("/cacheable")

    assert response.headers.get_list("cache-control") == ["public, max-age=60"]


@pytest.mark.parametrize("path", ["/empty", "/empty/204", "/empty/205", "/empty/304"])
async def test_a_response_without_content_has_no_content_headers(app: AsyncClient, path: str) -> None:
    response = await app.delete(path)

    assert response.content == b""
    assert "content-type" not in response.headers
    assert "content-length" not in response.headers
    assert "x-request-id" in response.headers


@pytest.mark.parametrize(
    ("lines", "read"),
    [
        ([("If-Match", '"1"'), ("If-None-Match", '"3"'), ("If-Match", '"2"')], ['"1", "2"', '"3"']),
        ([("If-None-Match", '"1"'), ("If-None-Match", '"2"')], [None, '"1", "2"']),
        ([("If-Match", ", ".join(['"1"'] * 1000))], [", ".join(['"1"'] * 1000), None]),
        ([("If-Match", "1" * 8192), ("If-None-Match", "1" * 8193)], ["1" * 8192, ""]),
    ],
)
async def test_a_condition_may_be_long_and_repeated(
    app: AsyncClient, lines: list[tuple[str, str]], read: list[str | None]
) -> None:
    response = await app.get("/conditions", headers=lines)

    assert (response.status_code, response.json()) == (200, read)


@pytest.mark.parametrize(
    "path",
    [
        *("/things/a%2Fb", "/things%2fa", "/%2fthings/a", "/things/a%00", "/things/%2e%2e%2fa"),
        *("/things/a%0a", "/conditions%0A"),
    ],
)
async def test_a_path_with_an_encoded_slash_newline_or_nul_is_not_found(app: AsyncClient, path: str) -> None:
    response = await app.get(path)

    assert (response.status_code, response.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["/things/a%5cb", "/things/a%252fb", "/things/a;b=c"])
async def test_similar_escapes_are_part_of_their_segment(app: AsyncClient, path: str) -> None:
    response = await app.get(path)

    assert response.json() == {"id": unquote(path.rpartition("/")[2])}


async def test_a_server_need_not_send_the_raw_path() -> None:
    scope = scope_of("GET", "/things/1")
    del scope["raw_path"]

    sent = await call("GET", "", scope=scope)

    assert sent[0]["status"] == 200


async def test_without_hsts_responses_do_not_require_https() -> None:
    async with serving(router, hsts=False) as client:
        response = await client.get("/things/1")

    assert "strict-transport-security" not in response.headers
    assert response.headers["x-frame-options"] == "DENY"


# Methods


@pytest.mark.parametrize("path", ["/things/1", "/missing", "/nothing", "/bug", "/problems/not-found", "/docs"])
async def test_head_has_the_response_of_get_without_its_body(app: AsyncClient, path: str) -> None:
    got = await app.get(path, headers={"X-Request-ID": "the-same-id"})
    head = await app.head(path, headers={"X-Request-ID": "the-same-id"})

    assert head.status_code == got.status_code
    assert head.headers == got.headers
    assert head.content == b""
    assert got.content != b""


async def test_head_is_logged_as_head(app: AsyncClient, recording: Recording) -> None:
    lines = recording()

    await app.head("/things/1")

    assert [line["method"] for line in access_lines(lines())] == ["HEAD"]


async def test_the_response_to_head_has_an_empty_body() -> None:
    sent = await call("HEAD", "/things/1")

    assert [message.get("body") for message in sent[1:]] == [b""]


async def test_the_scope_of_the_server_is_not_changed() -> None:
    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None: ...

    scope = scope_of("HEAD", "/things/1")

    await application(router)(scope, receive, send)

    assert scope["method"] == "HEAD"


# Secrets in the URL


@pytest.mark.parametrize("path", ["/things/1", "/things", "/nothing", "/docs", "/problems/x", "/openapi.json"])
@pytest.mark.parametrize(
    "query", ["token=CANARY", "a=1&access_token=CANARY", "password=CANARY", "%74oken=CANARY", "token"]
)
async def test_a_secret_in_the_url_is_refused_everywhere_and_never_logged(
    app: AsyncClient, recording: Recording, path: str, query: str
) -> None:
    lines = recording()

    response = await app.get(f"{path}?{query}")

    assert response.status_code == 400
    assert response.json()["code"] == "secret_in_url"
    assert "CANARY" not in response.text
    written = lines()
    assert len(written) == 1
    assert "CANARY" not in str(written)


@pytest.mark.parametrize("query", ["tokens=1", "x=token", "x=1%26token=2"])
async def test_a_name_similar_to_a_secret_is_an_unknown_parameter(app: AsyncClient, query: str) -> None:
    response = await app.get(f"/things/1?{query}")

    assert response.json()["code"] == "validation_error"


# Access log


async def test_a_request_is_logged_with_its_route_and_never_its_path(app: AsyncClient, recording: Recording) -> None:
    lines = recording()

    await app.get("/things/CANARY", headers={"X-Request-ID": "abcd1234", "User-Agent": "CANARY"})

    (line,) = lines()
    assert set(line) == {
        "event",
        "method",
        "route",
        "status",
        "duration_ms",
        "statements",
        "database_ms",
        "request_id",
        "level",
        "logger",
        "timestamp",
    }
    assert (line["event"], line["method"], line["route"], line["status"]) == (
        "request",
        "GET",
        "/things/{thing_id}",
        200,
    )
    assert line["request_id"] == "abcd1234"
    assert 0 <= line["duration_ms"] < 5000
    assert (line["statements"], line["database_ms"]) == (0, 0)


async def test_the_access_line_has_the_ids_of_the_user_and_the_session(app: AsyncClient, recording: Recording) -> None:
    lines = recording()

    await app.get("/things/mine")
    await app.get("/things/other")

    known, unknown = lines()
    assert known["user_id"] == "0192f0c1-a2b3-7c4d-8e5f-60718293a4b5"
    assert known["session_id"] == "0192f0c1-a2b3-7c4d-8e5f-60718293a4b6"
    assert not {"user_id", "session_id"} & unknown.keys()


async def test_a_slow_request_is_logged_as_a_warning(recording: Recording) -> None:
    lines = recording()
    for limit in ("1h", "50ms"):
        async with serving(router, log_settings=LogSettings.model_validate({"slow_request": limit})) as client:
            await client.get("/slow")

    quick, slow = lines()
    assert (quick["level"], quick.get("slow")) == ("info", None)
    assert (slow["level"], slow["slow"], slow["event"], slow["route"]) == ("warning", True, "request", "/slow")
    assert slow["duration_ms"] > 50


SAMPLED = {"sampled_routes": ["/things/{thing_id}", "/missing", "/slow"], "sample_every": 3, "slow_request": "1h"}


async def test_of_a_sampled_route_one_request_in_n_is_logged(recording: Recording) -> None:
    lines = recording()
    async with serving(router, log_settings=LogSettings.model_validate(SAMPLED)) as client:
        for number in range(1, 8):
            await client.get("/things/1", headers={"X-Request-ID": f"request-{number}"})
        await client.get("/cacheable", headers={"X-Request-ID": "another-route"})

    written = [line["request_id"] for line in lines()]
    assert written == ["request-1", "request-4", "request-7", "another-route"]


@pytest.mark.parametrize("path", ["/missing", "/slow"])
async def test_a_failed_or_slow_request_to_a_sampled_route_is_always_logged(recording: Recording, path: str) -> None:
    lines = recording()
    settings = LogSettings.model_validate({**SAMPLED, "slow_request": "50ms"})
    async with serving(router, log_settings=settings) as client:
        for _ in range(4):
            await client.get(path)

    assert len(lines()) == 4


async def test_sampling_can_be_switched_off(recording: Recording) -> None:
    lines = recording()
    settings = LogSettings.model_validate({**SAMPLED, "sample_every": 1})
    async with serving(router, log_settings=settings) as client:
        for _ in range(3):
            await client.get("/things/1")

    assert len(lines()) == 3


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/nothing/CANARY", "(none)"),
        ("/things/1?token=x", "(none)"),
        ("/missing", "/missing"),
        ("/bug", "/bug"),
        ("/problems/x", "/problems/{name}"),
    ],
)
async def test_the_access_line_has_the_route_also_after_an_error(
    app: AsyncClient, recording: Recording, path: str, route: str
) -> None:
    lines = recording()

    await app.get(path)

    assert [line["route"] for line in access_lines(lines())] == [route]


@pytest.mark.parametrize(("method", "path", "status"), REQUESTS)
async def test_every_request_is_one_access_line(
    app: AsyncClient, recording: Recording, method: str, path: str, status: int
) -> None:
    lines = recording()

    await app.request(method, path)

    assert [(line["method"], line["status"]) for line in access_lines(lines())] == [(method, status)]


async def test_log_context_does_not_leak_into_the_next_request(app: AsyncClient, recording: Recording) -> None:
    lines = recording()

    await app.get("/log-context", headers={"X-Request-ID": "first-one"})
    await app.get("/things/1", headers={"X-Request-ID": "second-one"})

    first, second = lines()
    assert (first["request_id"], first["order"]) == ("first-one", "CANARY")
    assert second["request_id"] == "second-one"
    assert "order" not in second


async def test_a_secret_in_the_log_context_is_redacted(app: AsyncClient, recording: Recording) -> None:
    lines = recording()

    await app.get("/secret-in-log-context")

    (line,) = lines()
    assert (line["password"], line["header"]) == (REDACTED, f"Bearer {REDACTED}")


async def test_a_secret_in_place_of_the_method_is_redacted(recording: Recording) -> None:
    lines = recording()

    await call("rt1.0123456789abcdefghijABCDEFGHIJ", "/things/1")

    assert [line["method"] for line in lines()] == [REDACTED]


@pytest.mark.usefixtures("restored_logging")
async def test_access_lines_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(level="warning"), readable=False)
    for number, limit in enumerate(("1h", "50ms")):
        async with serving(router, log_settings=LogSettings.model_validate({"slow_request": limit})) as client:
            await client.get("/slow", headers={"X-Request-ID": f"request-{number}"})

    # Of the two, only the slow request is a warning.
    assert [json.loads(line)["request_id"] for line in capsys.readouterr().out.splitlines()] == ["request-1"]


@pytest.mark.usefixtures("restored_logging")
async def test_local_access_lines_are_readable(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(), readable=True)
    async with serving(router) as client:
        await client.get("/things/1", headers={"X-Request-ID": "abcd1234"})

    (line,) = [line for line in capsys.readouterr().out.splitlines() if "app.access" in line]
    assert "/things/{thing_id}" in line
    assert "abcd1234" in line
    assert not line.startswith("{")


# ASGI


def scope_of(method: str, path: str, headers: list[tuple[bytes, bytes]] | None = None) -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers or [],
        "scheme": "http",
        "server": ("test", 80),
        "client": ("127.0.0.1", 1),
        "http_version": "1.1",
    }


async def call(
    method: str, path: str, *messages: dict[str, Any], scope: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Send a request by plain ASGI. After the messages the client disconnects."""
    waiting = list(messages)
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await with_state(application(router))(scope or scope_of(method, path), receive, send)
    return sent


@pytest.mark.parametrize("messages", [[], [{"type": "http.request", "body": b'{"na', "more_body": True}]])
async def test_a_client_disconnect_is_logged_as_499_without_a_traceback(
    recording: Recording, messages: list[dict[str, Any]]
) -> None:
    lines = recording()
    scope = scope_of("POST", "/things", [(b"content-type", b"application/json")])

    sent = await call("POST", "/things", *messages, scope=scope)

    assert sent == []
    (line,) = lines()
    assert (line["route"], line["status"]) == ("/things", 499)
    assert "exception" not in line


async def test_other_asgi_messages_pass_through() -> None:
    seen: list[str] = []

    async def inner(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(scope["type"])

    async def unused() -> Any: ...

    async def unused_send(_message: Any) -> None: ...

    await RequestMiddleware(inner, max_body_size=1, hsts=False)({"type": "lifespan"}, unused, unused_send)

    assert seen == ["lifespan"]


async def test_a_request_cancelled_by_the_server_gets_503() -> None:
    async def cancelled(*_call: object) -> None:
        raise asyncio.CancelledError

    async with serving(RequestMiddleware(cancelled, max_body_size=1, hsts=False)) as client:
        response = await client.get("/")

    assert_problem(response, 503, "shutting_down")
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("path", ["/things/a\n", "/things/a\0"])
async def test_the_decoded_path_is_checked_if_the_server_sends_no_raw_path(path: str) -> None:
    async def without_raw_path(scope: Scope, receive: Receive, send: Send) -> None:
        await inner({name: value for name, value in scope.items() if name != "raw_path"}, receive, send)

    inner = with_state(application(router))
    async with AsyncClient(transport=ASGITransport(without_raw_path), base_url="http://test") as client:
        response = await client.get(quote(path))

    assert (response.status_code, response.json()["code"]) == (404, "not_found")
