import asyncio
import errno
import json
import os
import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from typing import Annotated, Any, override
from uuid import UUID

import pytest
from asyncpg import (
    CheckViolationError,
    ExclusionViolationError,
    ForeignKeyViolationError,
    NotNullViolationError,
    UniqueViolationError,
)
from fastapi import APIRouter, BackgroundTasks, Depends, HTTPException, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPBearer
from httpx2 import ASGITransport, AsyncClient
from pydantic import BaseModel, Field, SecretStr
from sqlalchemy.exc import IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.types import Receive, Scope, Send

from app.core import errors
from app.core.db.failures import DatabaseUnavailableError
from app.core.errors import (
    AppError,
    ConflictError,
    FieldError,
    GoneMeanwhileError,
    InvalidInputError,
    NotFoundError,
    RateLimitedError,
    UnavailableError,
)
from app.core.http import routing
from app.core.http.access import public
from app.core.http.problems import kind_of_status, pointer, problem_response, problem_responses
from app.core.schemas.fields import PathIdentifier, Payload
from tests.core.applications import application, serving, with_state
from tests.core.recording import Recording

MEDIA_TYPE = "application/problem+json"
MEMBERS = {"type", "title", "status", "detail", "instance", "request_id", "code"}
KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, AppError) and kind is not AppError
]


class EscapedError(ConflictError):
    problem = "escaped"
    code = "<code>"
    detail = "Tags like <script>alert('&')</script> are text."


class UnprintableError(Exception):
    @override
    def __str__(self) -> str:
        raise ZeroDivisionError


class UnhandledError(Exception):
    """Its handler fails."""


class Secret(Payload):
    password: SecretStr = Field(min_length=1, max_length=8)
    count: int = Field(ge=1, le=3)


class Strict(BaseModel):
    number: int


class OAuthRoute(routing.Route):
    has_oauth_errors = True


def make(kind: type[AppError]) -> AppError:
    if kind is RateLimitedError:
        return RateLimitedError(retry_after=7)
    if kind is InvalidInputError:
        return InvalidInputError(FieldError("#/name", "blank", "This must not be blank."))
    return kind()


async def failing_dependency() -> None:
    raise ZeroDivisionError


async def failing_on_exit() -> AsyncIterator[None]:
    yield
    raise ZeroDivisionError


router = routing.router()
oauth = routing.router(route_class=OAuthRoute)


@router.get("/kinds/{number}", openapi_extra=public)
async def fail(number: int) -> None:
    raise make(KINDS[number])


@router.post("/secrets", openapi_extra=public)
async def take(payload: Secret) -> int:
    return payload.count


@router.put("/secrets", openapi_extra=public)
async def take_many(payload: list[Secret]) -> int:
    return len(payload)


@router.get("/things/{thing_id}", openapi_extra=public)
async def read_thing(thing_id: PathIdentifier) -> str:
    return str(thing_id)


@router.delete("/things/{thing_id}", openapi_extra=public)
async def remove_thing(thing_id: PathIdentifier) -> str:
    return str(thing_id)


@router.get("/http/{status}", openapi_extra=public)
async def raise_http(status: int) -> None:
    raise HTTPException(status, "CANARY.", {"Retry-After": "5"})


@router.get("/unreachable", openapi_extra=public)
async def unreachable() -> None:
    raise DatabaseUnavailableError from OSError("no route to host")


@router.get("/exhausted", openapi_extra=public)
async def exhausted() -> None:
    raise PoolTimeoutError("pool of CANARY")


@router.get("/bug/timeout", openapi_extra=public)
async def timeout_of_another_service() -> None:
    raise TimeoutError


VIOLATIONS = (UniqueViolationError, CheckViolationError, NotNullViolationError, ExclusionViolationError)


@router.get("/deleted", openapi_extra=public, responses=problem_responses(GoneMeanwhileError))
async def refer_to_a_deleted_row() -> None:
    raise IntegrityError("CANARY", None, ForeignKeyViolationError("CANARY"))


@router.get("/violations/{number}", openapi_extra=public, responses=problem_responses(GoneMeanwhileError))
async def violate(number: int) -> None:
    raise IntegrityError("CANARY", None, VIOLATIONS[number]("CANARY"))


@router.get("/bug/statement", openapi_extra=public)
async def bug_in_a_statement() -> None:
    raise IntegrityError("CANARY", None, UniqueViolationError("CANARY"))


@router.get("/bug/reference", openapi_extra=public, responses=problem_responses(ConflictError))
async def bug_in_a_reference() -> None:
    raise IntegrityError("CANARY", None, ForeignKeyViolationError("CANARY"))


@router.get("/bug/endpoint", openapi_extra=public)
async def bug_in_the_endpoint() -> None:
    raise ZeroDivisionError("CANARY")


@router.get("/bug/dependency", openapi_extra=public, dependencies=[Depends(failing_dependency)])
async def bug_in_a_dependency() -> None: ...


@router.get("/bug/exit", openapi_extra=public)
async def bug_when_a_dependency_ends(_none: Annotated[None, Depends(failing_on_exit, scope="function")]) -> None: ...


@router.get("/bug/response", openapi_extra=public, response_model=Strict)
async def bug_in_the_response() -> dict[str, str]:
    return {"number": "x"}


@router.get("/bug/serialisation", openapi_extra=public)
async def bug_in_serialisation() -> Any:
    return {"object": object()}


@router.get("/bug/late", openapi_extra=public)
async def bug_after_the_response(_none: Annotated[None, Depends(failing_on_exit)]) -> str:
    return "sent"


@router.get("/bug/stream", openapi_extra=public)
async def bug_in_the_middle_of_the_response() -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        raise ZeroDivisionError

    return StreamingResponse(chunks())


@router.get("/bug/background", openapi_extra=public)
async def bug_in_a_background_task(background: BackgroundTasks) -> str:
    background.add_task(failing_dependency)
    return "sent"


@router.get("/bug/unprintable", openapi_extra=public)
async def bug_that_cannot_be_printed() -> None:
    raise UnprintableError


@router.get("/bug/surrogate", openapi_extra=public)
async def bug_with_a_text_that_cannot_be_encoded() -> None:
    raise ValueError("CANARY \ud800 \x00")


@router.get("/bug/handler", openapi_extra=public)
async def bug_in_an_exception_handler() -> None:
    raise UnhandledError


@oauth.post("/oauth", openapi_extra=public)
async def oauth_operation(payload: Secret) -> None:
    if payload.count == 1:
        raise UnavailableError
    raise RateLimitedError(retry_after=9) if payload.count == 2 else HTTPException(402, "Pay first.")


router.include_router(oauth)


@pytest.fixture
async def app() -> AsyncIterator[AsyncClient]:
    async with serving(router) as client:
        yield client


def problem(response: Any, status: int, code: str, *, root: str = "") -> dict[str, Any]:
    """Check the format of an error response, and return the document."""
    assert response.status_code == status
    assert response.headers["content-type"] == MEDIA_TYPE
    document: dict[str, Any] = response.json()
    assert set(document) - {"errors", "details"} == MEMBERS
    assert ("errors" in document) == (status == 422)
    assert document["status"] == status
    assert document["code"] == code
    assert document["request_id"] == response.headers["x-request-id"]
    assert re.fullmatch(rf"{root}/problems/[a-z]+(-[a-z]+)*", document["type"])
    assert document["title"] == document["type"].rpartition("/")[2].replace("-", " ").capitalize()
    assert document["detail"].endswith(".")
    return document


# Every kind of error


@pytest.mark.parametrize("number", range(len(KINDS)), ids=lambda number: KINDS[number].__name__)
async def test_every_kind_of_error_has_one_shape(app: AsyncClient, number: int) -> None:
    kind = KINDS[number]

    response = await app.get(f"/kinds/{number}")

    document = problem(response, kind.status, kind.code)
    assert document["type"] == f"/problems/{kind.problem}"
    assert document["instance"] == f"/kinds/{number}"
    assert document["detail"] == kind.detail


@pytest.mark.parametrize(("kind", "seconds"), [(RateLimitedError, "7"), (UnavailableError, "1")])
async def test_a_temporary_error_has_retry_after(app: AsyncClient, kind: type[AppError], seconds: str) -> None:
    response = await app.get(f"/kinds/{KINDS.index(kind)}")

    assert response.headers["retry-after"] == seconds


@pytest.mark.parametrize("number", range(len(KINDS)), ids=lambda number: KINDS[number].__name__)
async def test_every_kind_has_a_page_that_lists_its_codes(app: AsyncClient, number: int) -> None:
    kind = KINDS[number]

    response = await app.get(f"/problems/{kind.problem}")

    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert f"<code>{kind.code}</code> ({int(kind.status)})" in response.text


async def test_an_error_page_escapes_its_content(app: AsyncClient) -> None:
    tags: list[str] = []

    class Tags(HTMLParser):
        @override
        def handle_starttag(self, tag: str, attrs: object) -> None:
            tags.append(tag)

    response = await app.get(f"/problems/{EscapedError.problem}")

    Tags().feed(response.text)
    assert "&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;" in response.text
    assert set(tags) == {"html", "head", "meta", "title", "body", "h1", "p", "code", "dl", "dt", "dd"}


@pytest.mark.parametrize("name", ["x", "Not-Found", "not-found%00", "%3Cscript%3E", "%ED%A0%80"])
async def test_an_unknown_kind_has_no_page(app: AsyncClient, name: str) -> None:
    problem(await app.get(f"/problems/{name}"), 404, "not_found")


# The framework's own errors


@pytest.mark.parametrize("path", ["/", "/nothing", "/things", "/things/", "/THINGS/x", "/things/a/b", "/x" * 2000])
async def test_an_unknown_path_is_a_problem(app: AsyncClient, path: str) -> None:
    document = problem(await app.get(path), 404, "not_found")

    assert document["instance"] == path


@pytest.mark.parametrize(
    "thing",
    ["abc", "0", "-1", "1.0", "null", "%00", "%27%20or%201=1--", "0192F0C1-A2B3-7C4D-8E5F-60718293A4B5", "x" * 10_000],
)
async def test_a_malformed_id_is_not_found(app: AsyncClient, thing: str) -> None:
    problem(await app.get(f"/things/{thing}"), 404, "not_found")


@pytest.mark.parametrize("method", ["PUT", "PATCH", "POST", "OPTIONS", "TRACE", "FOO"])
async def test_another_method_gets_405_with_the_methods_of_all_matching_routes(app: AsyncClient, method: str) -> None:
    response = await app.request(method, "/things/0192f0c1-a2b3-7c4d-8e5f-60718293a4b5")

    problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "DELETE, GET, HEAD"


async def test_a_declared_path_has_not_the_methods_of_a_pattern() -> None:
    router = routing.router()

    @router.get("/things/newest", openapi_extra=public)
    async def read_newest() -> None: ...

    @router.delete("/things/{thing_id}", openapi_extra=public)
    async def delete_thing(thing_id: str) -> None: ...

    async with serving(router) as client:
        declared, pattern = await client.put("/things/newest"), await client.put("/things/1")

    assert (declared.headers["allow"], pattern.headers["allow"]) == ("GET, HEAD", "DELETE")


async def test_without_get_head_is_not_allowed(app: AsyncClient) -> None:
    response = await app.get("/secrets")

    problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST, PUT"


async def test_head_without_get_is_refused(app: AsyncClient) -> None:
    response = await app.head("/secrets")

    assert response.status_code == 405
    assert response.content == b""


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_body_with_a_too_large_content_length_is_refused_unread(method: str) -> None:
    async def receive() -> Any:
        pytest.fail("the body was read")

    sent = await call(method, "/secrets", receive, [(b"content-length", b"4097")])

    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]


async def test_a_body_of_unknown_length_is_refused_at_the_limit(app: AsyncClient) -> None:
    pulled = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal pulled
        for _ in range(100):
            pulled += 1
            yield b"x" * 1000

    response = await app.post("/secrets", content=chunks(), headers={"Content-Type": "application/json"})

    problem(response, 413, "payload_too_large")
    assert response.headers["connection"] == "close"
    assert pulled < 10


async def test_a_body_of_the_maximum_size_is_read(app: AsyncClient) -> None:
    body = b'{"password": "x", "count": 1}'.ljust(4096)

    response = await app.post("/secrets", content=body, headers={"Content-Type": "application/json"})

    assert response.status_code == 200


@pytest.mark.parametrize("length", ["-1", "abc", "5, 5", "", "٣", "1e9"])
async def test_an_invalid_content_length_is_left_to_the_server(length: str) -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    headers = [(b"content-length", length.encode()), (b"content-type", b"application/json")]
    sent = await call("POST", "/secrets", receive, headers)

    assert sent[0]["status"] == 422


async def test_another_media_type_is_a_problem(app: AsyncClient) -> None:
    problem(await app.post("/secrets", content=b"{}"), 415, "unsupported_media_type")


async def test_malformed_json_is_a_problem(app: AsyncClient) -> None:
    response = await app.post("/secrets", content=b"{", headers={"Content-Type": "application/json"})

    problem(response, 400, "malformed_request")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "malformed_request"),
        (401, "unauthorized"),
        (402, "payment_required"),
        (403, "forbidden"),
        (404, "not_found"),
        (409, "conflict"),
        (410, "gone"),
        (413, "payload_too_large"),
        (416, "range_not_satisfiable"),
        (418, "im_a_teapot"),
        (422, "validation_error"),
        (429, "rate_limited"),
        (451, "unavailable_for_legal_reasons"),
        (499, "client_error"),
        (500, "internal_error"),
        (502, "bad_gateway"),
        (503, "service_unavailable"),
        (504, "gateway_timeout"),
        (599, "server_error"),
    ],
)
async def test_an_http_exception_keeps_its_status_detail_and_headers(app: AsyncClient, status: int, code: str) -> None:
    response = await app.get(f"/http/{status}")
    page = await app.get(response.json()["type"])

    document = problem(response, status, code)
    assert document["detail"] == "CANARY."
    assert response.headers["retry-after"] == "5"
    assert response.headers["content-type"] == MEDIA_TYPE
    assert (page.status_code, code in page.text) == (200, True)


@pytest.mark.parametrize(("status", "is_logged"), [(499, False), (500, True), (503, True)])
async def test_a_server_error_is_logged_with_its_detail_and_traceback(
    app: AsyncClient, recording: Recording, status: int, is_logged: bool
) -> None:
    lines = recording()

    await app.get(f"/http/{status}")

    errors = [line for line in lines() if line["level"] == "error"]
    assert len(errors) == is_logged
    for line in errors:
        assert "CANARY." in line["event"]
        assert "raise HTTPException" in line["exception"]


@pytest.mark.parametrize(
    ("detail", "kept"),
    [
        ({"reason": "CANARY"}, {"reason": "CANARY"}),
        ([1, None], [1, None]),
        (7, 7),
        (float("nan"), "NaN"),
        ({"at": UUID(int=7)}, {"at": str(UUID(int=7))}),
    ],
)
async def test_a_detail_that_is_not_text_becomes_the_member_details(detail: Any, kept: Any) -> None:
    async with serving(raising_router(HTTPException(409, detail))) as client:
        response = await client.get("/raise")

    assert problem(response, 409, "conflict")["details"] == kept


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (HTTPException(204), 204, b""),
        (HTTPException(304), 304, b""),
        (HTTPException(302, headers={"Location": "/elsewhere"}), 302, b'{"detail":"Found"}'),
    ],
)
async def test_an_http_exception_below_400_is_handled_by_fastapi(
    error: HTTPException, status: int, body: bytes
) -> None:
    async with serving(raising_router(error)) as client:
        response = await client.get("/raise")

    assert (response.status_code, response.content) == (status, body)
    assert response.headers.get("location") == (error.headers or {}).get("Location")


@pytest.mark.parametrize("status", [404, 502])
async def test_an_http_exception_without_a_detail_gets_that_of_its_kind(status: int) -> None:
    async with serving(raising_router(HTTPException(status))) as client:
        response = await client.get("/raise")

    assert response.json()["detail"] == kind_of_status(status).detail


@pytest.mark.parametrize("status", [429, 503])
async def test_429_and_503_get_retry_after_if_it_is_missing(status: int) -> None:
    async with serving(raising_router(HTTPException(status))) as client:
        response = await client.get("/raise")

    assert response.headers["retry-after"] == "1"


async def test_content_headers_of_an_http_exception_are_ignored() -> None:
    headers = {"content-type": "text/html", "Content-Length": "1", "X-Reason": "kept"}
    async with serving(raising_router(HTTPException(403, headers=headers))) as client:
        response = await client.get("/raise")

    assert problem(response, 403, "forbidden")
    assert response.headers["x-reason"] == "kept"


async def test_an_endpoint_that_raises_405_sets_allow_itself() -> None:
    async with serving(raising_router(HTTPException(405, headers={"Allow": "PUT"}))) as client:
        response = await client.get("/raise")

    assert problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "PUT"


def below_proxy(router: APIRouter) -> AsyncClient:
    """Return a client of an application whose root path is `/proxy`."""
    app = with_state(application(router))

    async def below(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": "/proxy"}, receive, send)

    return AsyncClient(transport=ASGITransport(below), base_url="http://test")


@pytest.mark.parametrize("path", ["/proxy/raise", "/raise"], ids=["with", "without"])
async def test_405_names_the_methods_of_a_path_with_or_without_the_root_path(path: str) -> None:
    # A server puts the root path before the path (ASGI 3). An application that is called by other code may get it without.
    async with below_proxy(raising_router(HTTPException(400))) as client:
        response = await client.post(path)

    assert problem(response, 405, "method_not_allowed", root="/proxy")
    assert response.headers["allow"] == "GET, HEAD"


async def test_a_mounted_application_that_raises_405_keeps_its_allow() -> None:
    async def mounted(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise HTTPException(405, headers={"Allow": "PUT"})

    app = application(raising_router(HTTPException(400)))
    app.mount("/mounted", mounted)
    async with AsyncClient(transport=ASGITransport(with_state(app)), base_url="http://test") as client:
        response = await client.get("/mounted/x")

    assert problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "PUT"


@pytest.mark.parametrize(
    ("errors", "status"),
    [([], 422), ([{}], 422), ([{"loc": (), "type": "x", "msg": "y"}], 422), ([{"loc": ("path",)}], 404)],
)
async def test_a_validation_error_of_the_application_is_a_problem(errors: list[Any], status: int) -> None:
    async with serving(raising_router(RequestValidationError(errors))) as client:
        response = await client.get("/raise")

    assert response.status_code == status
    assert response.headers["content-type"] == MEDIA_TYPE


async def test_security_schemes_of_fastapi_keep_their_challenge() -> None:
    guarded = routing.router()

    @guarded.get("/raise", openapi_extra=public, dependencies=[Depends(HTTPBearer())])
    async def read() -> None: ...

    async with serving(guarded) as client:
        response = await client.get("/raise")

    assert (response.status_code, response.json()["detail"]) == (401, "Not authenticated")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "error",
    [RecursionError(), ExceptionGroup("two", [ValueError(), HTTPException(409)]), "\xff".encode("latin-1")],
    ids=["recursion", "group", "unicode"],
)
async def test_any_other_exception_is_an_internal_error(error: Any) -> None:
    async with serving(raising_router(error)) as client:
        response = await client.get("/raise")

    problem(response, 500, "internal_error")


class ShelfNotFoundError(NotFoundError):
    code = "shelf_not_found"
    detail = "There is no such shelf."


class ThingNotFoundError(NotFoundError):
    code = "thing_not_found"
    detail = "There is no such thing."


class Bought(Payload):
    count: int


shop = routing.router(prefix="/shop")
UNKNOWN = str(UUID(int=7))


@shop.get("/{shelf_id}", openapi_extra=public, responses=problem_responses(ShelfNotFoundError))
async def read_shelf(shelf_id: PathIdentifier) -> None:  # noqa: ARG001
    raise ShelfNotFoundError


@shop.get("/numbers/{number}", openapi_extra=public, responses=problem_responses(ThingNotFoundError))
async def read_number(number: int) -> None:  # noqa: ARG001
    raise ThingNotFoundError


@shop.get("/plain/{plain_id}", openapi_extra=public)
async def read_plain(plain_id: PathIdentifier) -> None:  # noqa: ARG001
    raise NotFoundError


@shop.put(
    "/{shelf_id}/things/{thing_id}",
    openapi_extra=public,
    responses=problem_responses(ShelfNotFoundError, ThingNotFoundError),
)
async def buy(shelf_id: PathIdentifier, thing_id: PathIdentifier, payload: Bought) -> None:  # noqa: ARG001
    raise ShelfNotFoundError if str(shelf_id) == UNKNOWN else ThingNotFoundError


@pytest.mark.parametrize(
    ("method", "malformed", "unknown", "code"),
    [
        ("GET", "/shop/x", f"/shop/{UNKNOWN}", "shelf_not_found"),
        ("GET", "/shop/numbers/x", "/shop/numbers/7", "thing_not_found"),
        ("GET", "/shop/plain/x", f"/shop/plain/{UNKNOWN}", "not_found"),
        ("PUT", "/shop/x/things/x", f"/shop/{UNKNOWN}/things/{UNKNOWN}", "shelf_not_found"),
        ("PUT", f"/shop/{UUID(int=1)}/things/x", f"/shop/{UUID(int=1)}/things/{UNKNOWN}", "thing_not_found"),
    ],
)
async def test_a_malformed_id_gets_the_same_document_as_an_unknown_one(
    method: str, malformed: str, unknown: str, code: str
) -> None:
    body = {"count": 1} if method == "PUT" else None
    async with serving(shop) as client:
        documents = [problem(await client.request(method, path, json=body), 404, code) for path in (malformed, unknown)]
        refused = [await client.put(f"/shop/{shelf}/things/{shelf}", json={}) for shelf in ("x", UNKNOWN)]

    differing = {"instance": "", "request_id": ""}
    assert documents[0] | differing == documents[1] | differing
    # Invalid input is reported before an unknown id.
    assert [one.status_code for one in refused] == [422, 422]
    assert refused[0].json()["errors"] == refused[1].json()["errors"]


def raising_router(error: Any) -> APIRouter:
    """Return a router with an operation that raises this error, or decodes these bytes as UTF-8."""
    failing = routing.router()

    @failing.get("/raise", openapi_extra=public)
    async def fail_with_it() -> None:
        if isinstance(error, bytes):
            error.decode()
        raise error

    return failing


# Validation errors


async def test_validation_errors_name_members_and_never_show_values(app: AsyncClient) -> None:
    response = await app.post("/secrets", json={"password": "CANARYCANARY", "count": "CANARY", "extra": "CANARY"})

    document = problem(response, 422, "validation_error")
    assert document["errors"] == [
        {"pointer": "#/password", "code": "too_long", "detail": "This must have a length of at most 8."},
        {"pointer": "#/count", "code": "int_type", "detail": "This must be an integer."},
        {"pointer": "#/extra", "code": "extra_forbidden", "detail": "This member is unknown."},
    ]
    assert "CANARY" not in response.text
    assert "CANARY" not in str(response.headers)


@pytest.mark.parametrize(
    "body", [{"count": 1, "secret": "CANARY"}, {"password": ["CANARY"], "count": 1}, "CANARY", ["CANARY"], {"count": 9}]
)
async def test_a_validation_error_never_contains_the_input(app: AsyncClient, body: Any) -> None:
    response = await app.post("/secrets", json=body)

    problem(response, 422, "validation_error")
    assert "CANARY" not in response.text
    assert "pydantic" not in response.text


async def test_validation_errors_show_the_declared_limits(app: AsyncClient) -> None:
    low = (await app.post("/secrets", json={"password": "x", "count": 0})).json()
    high = (await app.post("/secrets", json={"password": "", "count": 4})).json()

    assert [error["detail"] for error in low["errors"]] == ["This must be 1 or more."]
    assert [error["detail"] for error in high["errors"]] == [
        "This must have a length of at least 1.",
        "This must be 3 or less.",
    ]


async def test_a_pointer_into_a_list_has_an_index(app: AsyncClient) -> None:
    response = await app.put("/secrets", json=[{"password": "x", "count": 1}, {"password": "x"}])

    assert [error["pointer"] for error in response.json()["errors"]] == ["#/1/count"]


async def test_at_most_twenty_errors_of_a_body_are_shown(app: AsyncClient) -> None:
    response = await app.put("/secrets", json=[{}] * 50)

    assert len(problem(response, 422, "validation_error")["errors"]) == 20


async def test_at_most_twenty_errors_of_a_query_are_shown(app: AsyncClient) -> None:
    query = "&".join(f"p{number}=1" for number in range(50))

    response = await app.get(f"/things/x?{query}")

    assert len(problem(response, 422, "validation_error")["errors"]) == 20


async def test_a_long_member_name_is_cut(app: AsyncClient) -> None:
    response = await app.post("/secrets", json={"password": "x", "count": 1, "n" * 1000: 1})

    assert problem(response, 422, "validation_error")["errors"][0]["pointer"] == "#/" + "n" * 64


@pytest.mark.parametrize(
    ("names", "written"),
    [
        (["a"], "#/a"),
        (["a/b", "c~d"], "#/a~1b/c~0d"),
        (["ü \x00"], "#/%C3%BC%20%00"),
        (["\ud800"], "#/%3F"),
        (["list", 3], "#/list/3"),
        ([], "#/"),
    ],
)
def test_a_pointer_is_a_json_pointer_in_a_fragment(names: list[str | int], written: str) -> None:
    assert pointer(*names) == written


def without_body() -> Any:
    """Return a `receive` with an empty body. After it, the client waits for the response."""
    messages = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        return messages.pop() if messages else await asyncio.get_running_loop().create_future()

    return receive


async def call(method: str, path: str, receive: Any, headers: list[tuple[bytes, bytes]]) -> list[Any]:
    """Send a request by plain ASGI, for values that an HTTP client would not send."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": b"/",
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "scheme": "http",
        "server": ("test", 80),
        "client": ("127.0.0.1", 1),
        "http_version": "1.1",
    }
    await with_state(application(router))(scope, receive, send)
    return sent


@pytest.mark.parametrize(
    "path", ["/\udc80", "//things/x", "/\x00", "/ü€🦊", '/"\\', "/a\r\nX-Evil: 1", "/%0d%0a", "/?"]
)
async def test_every_path_can_be_shown_in_a_problem(path: str) -> None:
    start, body = await call("GET", path, without_body(), [])

    assert start["status"] == 404
    assert body["body"].isascii()
    assert b"\r" not in body["body"]
    assert b"X-Evil: 1" not in body["body"]


def test_a_problem_is_ascii_for_any_detail() -> None:
    class OddError(ConflictError):
        detail = "\ud800 ü"

    body = bytes(problem_response({"path": "/"}, OddError()).body)

    assert body.isascii()
    assert json.loads(body)["detail"] == "\ud800 ü"


# The database


async def test_an_unavailable_database_is_503_and_the_log_has_the_reason(recording: Recording) -> None:
    lines = recording()
    async with serving(router) as client:
        responses = [await client.get(path) for path in ("/unreachable", "/exhausted")]

    for response in responses:
        problem(response, 503, "database_unavailable")
        assert response.headers["retry-after"] == "1"
        assert "CANARY" not in response.text
    logged = [line for line in lines() if line["logger"] == "app.core.http.error_handlers"]
    assert [line["event"] for line in logged] == [
        "the database cannot answer: OSError('no route to host')",
        "the database cannot answer: TimeoutError('pool of CANARY')",
    ]
    assert [line["request_id"] for line in logged] == [response.headers["x-request-id"] for response in responses]


async def test_a_violated_foreign_key_is_a_conflict_if_the_operation_declares_it() -> None:
    async with serving(router) as client:
        response = await client.get("/deleted")

    problem(response, 409, "gone_meanwhile")
    assert "CANARY" not in response.text


@pytest.mark.parametrize("number", range(len(VIOLATIONS)))
async def test_other_violated_constraints_are_internal_errors(recording: Recording, number: int) -> None:
    lines = recording()
    async with serving(router) as client:
        response = await client.get(f"/violations/{number}")

    problem(response, 500, "internal_error")
    assert [line["event"] for line in lines() if "exception" in line] == ["unhandled error"]


# File descriptors


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
async def test_without_a_free_file_descriptor_the_response_is_503_and_the_log_has_the_reason(
    recording: Recording, number: int
) -> None:
    lines = recording()
    async with serving(raising_router(OSError(number, os.strerror(number), "CANARY"))) as client:
        response = await client.get("/raise")

    problem(response, 503, "service_unavailable")
    assert response.headers["retry-after"] == "1"
    assert "CANARY" not in response.text
    (line,) = [line for line in lines() if line["logger"] == "app.core.http.error_handlers"]
    assert line["event"] == f"no file descriptor is free: [Errno {number}] {os.strerror(number)}: 'CANARY'"
    assert line["request_id"] == response.headers["x-request-id"]


async def test_any_other_os_error_is_an_internal_error(recording: Recording) -> None:
    lines = recording()
    async with serving(raising_router(FileNotFoundError(errno.ENOENT, "CANARY"))) as client:
        response = await client.get("/raise")

    problem(response, 500, "internal_error")
    assert [line["event"] for line in lines() if "exception" in line] == ["unhandled error"]


# Unexpected exceptions


@pytest.mark.parametrize(
    "place",
    [
        *("endpoint", "statement", "reference", "dependency", "exit", "response", "serialisation", "timeout"),
        *("unprintable", "surrogate"),
    ],
)
async def test_an_unexpected_exception_is_a_bare_500_and_one_log_line_with_the_traceback(
    recording: Recording, place: str
) -> None:
    lines = recording()
    async with serving(router) as client:
        response = await client.get(f"/bug/{place}")

    document = problem(response, 500, "internal_error")
    assert document["detail"] == "Something went wrong on our side."
    assert "CANARY" not in response.text
    tracebacks = [line for line in lines() if "exception" in line]
    assert [(line["event"], line["level"]) for line in tracebacks] == [("unhandled error", "error")]
    assert tracebacks[0]["request_id"] == document["request_id"]
    assert "Traceback" in tracebacks[0]["exception"]


def raising(error: Exception) -> Any:
    """Return a middleware that raises."""

    async def broken(*_call: object) -> None:
        raise error

    return lambda app: broken  # noqa: ARG005  # It never calls the application.


async def test_an_unexpected_exception_in_a_middleware_is_a_bare_500(recording: Recording) -> None:
    lines = recording()
    async with serving(router, layers=[raising(ZeroDivisionError())]) as client:
        response = await client.get("/bug/endpoint")

    problem(response, 500, "internal_error")
    assert len([line for line in lines() if "exception" in line]) == 1


async def test_an_unexpected_exception_in_an_exception_handler_is_a_bare_500(recording: Recording) -> None:
    async def broken(_request: object, _error: Exception) -> Response:
        raise ZeroDivisionError("CANARY")

    failing = application(router)
    failing.add_exception_handler(UnhandledError, broken)
    lines = recording()
    async with serving(failing) as client:
        response = await client.get("/bug/handler")

    problem(response, 500, "internal_error")
    assert "CANARY" not in response.text
    assert len([line for line in lines() if "exception" in line]) == 1


async def test_an_error_raised_by_a_middleware_gets_its_own_response() -> None:
    async with serving(router, layers=[raising(RateLimitedError(retry_after=3))]) as client:
        response = await client.get("/bug/endpoint")

    problem(response, 429, "rate_limited")
    assert response.headers["retry-after"] == "3"


@pytest.mark.parametrize(
    ("path", "body", "is_complete"),
    [("/bug/late", b'"sent"', True), ("/bug/background", b'"sent"', True), ("/bug/stream", b"first", False)],
)
async def test_an_exception_after_the_response_has_started_does_not_change_it(
    recording: Recording, path: str, body: bytes, is_complete: bool
) -> None:
    lines = recording()

    start, *chunks = await call("GET", path, without_body(), [])

    assert start["status"] == 200
    assert b"".join(chunk["body"] for chunk in chunks) == body
    # If the last message is missing, the server closes the connection, so that the client notices.
    assert is_complete != chunks[-1].get("more_body", False)
    written = lines()
    assert len([line for line in written if "exception" in line]) == 1
    assert [line["status"] for line in written if line["event"] == "request"] == [200]


# OAuth


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({"password": "x", "count": 1}, 503, "temporarily_unavailable"),
        ({"password": "x", "count": 2}, 429, "temporarily_unavailable"),
        ({"password": "x"}, 422, "invalid_request"),
    ],
)
async def test_errors_at_token_endpoints_have_the_oauth_members(
    app: AsyncClient, body: dict[str, Any], status: int, error: str
) -> None:
    response = await app.post("/oauth", json=body)

    document = response.json()
    assert response.status_code == status
    assert document["error"] == error
    assert document["error_description"] == document["detail"]
    assert response.headers["pragma"] == "no-cache"
    assert response.headers["cache-control"] == "no-store"


async def test_an_http_exception_at_a_token_endpoint_has_the_oauth_members(app: AsyncClient) -> None:
    response = await app.post("/oauth", json={"password": "x", "count": 3})

    assert (response.status_code, response.json()["error"]) == (402, "invalid_request")
    assert response.json()["error_description"] == "Pay first."


async def test_a_request_refused_before_routing_has_the_oauth_members_at_token_endpoints(app: AsyncClient) -> None:
    large = await app.post("/oauth", json={"password": "x" * 5000})
    other = await app.post("/secrets", json={"password": "x" * 5000})

    assert (large.status_code, large.json()["error"]) == (413, "invalid_request")
    assert other.status_code == 413
    assert "error" not in other.json()


async def test_a_kind_without_an_oauth_name_is_an_invalid_request(app: AsyncClient) -> None:
    response = await app.get("/oauth")

    assert response.status_code == 405
    assert response.json()["error"] == "invalid_request"


async def test_a_request_refused_before_routing_below_a_root_path_has_the_oauth_members() -> None:
    async with below_proxy(router) as client:
        large = await client.post("/proxy/oauth", json={"password": "x" * 5000})

    assert (large.status_code, large.json()["error"]) == (413, "invalid_request")
