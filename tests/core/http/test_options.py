"""Options of an operation: other limits, other parameters, another statement timeout."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Annotated, Any

import pytest
from fastapi import Form, Request, Security
from fastapi.responses import StreamingResponse
from httpx2 import AsyncClient
from sqlalchemy import text

from app.core.config import Settings
from app.core.db.database import Database
from app.core.http import routing
from app.core.http.access import public
from app.core.http.dependencies import DatabaseDep, ReadSessionDep, SessionDep, StreamSessionDep
from app.core.schemas.fields import Payload
from tests.aftermath import assert_problem
from tests.conftest import make_settings
from tests.core.applications import application, serving, token

LIMIT = 4096
SHOW = text("SELECT current_setting('statement_timeout')")
SLEEP = text("SELECT pg_sleep(1.5)")


class Text(Payload):
    text: str


router = routing.router()


@router.get("/callback", openapi_extra=public | routing.options(extra_parameters=True))
async def callback(request: Request, code: str = "") -> Any:
    return [code, dict(request.query_params)]


@router.post("/large", openapi_extra=public | routing.options(max_body_size=3 * LIMIT))
async def take_large(payload: Text) -> int:
    return len(payload.text)


@router.post("/normal", openapi_extra=public)
async def take_normal(payload: Text) -> int:
    return len(payload.text)


@router.post("/small", openapi_extra=public | routing.options(max_body_size=100))
async def take_small(payload: Text) -> int:
    return len(payload.text)


@router.post("/form", openapi_extra=public | routing.options(max_body_size=3 * LIMIT))
async def take_form(text: Annotated[str, Form()]) -> int:
    return len(text)


@router.put("/files/{name}", openapi_extra=public | routing.options(max_body_size=3 * LIMIT, consumes="text/csv"))
async def put_file(name: str, request: Request) -> Any:
    return [name, sum([len(chunk) async for chunk in request.stream()])]


@router.put("/files/special/{name}", openapi_extra=public)
async def put_special(name: str, payload: Text) -> Any:
    return [name, payload.text]


@router.post("/guarded", openapi_extra=routing.options(max_body_size=3 * LIMIT))
async def take_guarded(payload: Text, caller: Annotated[str, Security(token, scopes=["write"])]) -> Any:
    return [len(payload.text), caller]


@router.post("/untimed", openapi_extra=public)
async def read_default(session: SessionDep, reading: ReadSessionDep) -> Any:
    return [await session.scalar(SHOW), await reading.scalar(SHOW)]


own = public | routing.options(statement_timeout=2)


@router.post("/timed", openapi_extra=own)
async def read_own(session: SessionDep, reading: ReadSessionDep, database: DatabaseDep) -> Any:
    async with database.begin() as other:
        return [await one.scalar(SHOW) for one in (session, reading, other)]


@router.get("/timed/stream", openapi_extra=own)
async def stream_own(session: StreamSessionDep) -> Any:
    return await session.scalar(SHOW), await session.scalar(text("SHOW transaction_isolation"))


@router.get("/timed/lines", openapi_extra=own)
async def generate_own(session: StreamSessionDep) -> AsyncIterator[Any]:
    yield await session.scalar(SHOW)


@router.get("/timed/rows", response_class=StreamingResponse, openapi_extra=own)
async def stream_own_rows(session: StreamSessionDep) -> StreamingResponse:
    async def rows() -> AsyncIterator[str]:
        yield str(await session.scalar(SHOW))

    return StreamingResponse(rows())


@router.get("/slow/reading", openapi_extra=own)
async def slow_reading(session: ReadSessionDep) -> None:
    await session.execute(SLEEP)


@router.post("/slow/writing", openapi_extra=own)
async def slow_writing(session: SessionDep) -> None:
    await session.execute(SLEEP)


@router.get("/slow/usual", openapi_extra=public)
async def slow_usual(session: ReadSessionDep) -> None:
    await session.execute(SLEEP)


@router.get("/slow/late", openapi_extra=public | routing.options(statement_timeout=timedelta(seconds=1)))
async def slow_late(session: ReadSessionDep) -> None:
    await session.execute(SLEEP)


@pytest.fixture
async def client() -> Any:
    async with serving(router, max_body_size=LIMIT) as client:
        yield client


def sized(length: int) -> bytes:
    return b'{"text": "%b"}' % (b"x" * (length - 12))


# Query parameters


async def test_extra_parameters_are_accepted_where_they_are_declared(client: AsyncClient) -> None:
    response = await client.get("/callback?code=1&state=2&session_state=3&iss=4")

    assert response.json() == ["1", {"code": "1", "state": "2", "session_state": "3", "iss": "4"}]


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("code=1&code=2", 422, "duplicate_parameter"),
        ("x=1&x=2&" + "&".join(["y"] * 100), 422, "too_many_parameters"),
        ("code=1&access_token=x", 400, "secret_in_url"),
        ("token=x", 400, "secret_in_url"),
    ],
)
async def test_the_other_rules_of_a_query_hold_for_extra_parameters(
    client: AsyncClient, query: str, status: int, code: str
) -> None:
    response = await client.get(f"/callback?{query}")

    assert response.status_code == status
    assert code in [response.json()["code"], *(one["code"] for one in response.json().get("errors", ()))]


# Sizes


async def chunked(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 1000):
        yield body[start : start + 1000]


@pytest.mark.parametrize("framing", [bytes, chunked])
@pytest.mark.parametrize(
    ("path", "size", "status"),
    [
        ("large", 3 * LIMIT, 200),
        ("large", 3 * LIMIT + 1, 413),
        ("normal", LIMIT, 200),
        ("normal", LIMIT + 1, 413),
        ("small", 100, 200),
        ("small", 101, 413),
        ("none", LIMIT, 404),
    ],
)
async def test_an_operation_has_the_limit_that_it_declares(
    client: AsyncClient, path: str, size: int, status: int, framing: Any
) -> None:
    headers = {"Content-Type": "application/json"}

    response = await client.post(f"/{path}", content=framing(sized(size)), headers=headers)

    assert response.status_code == status, response.text
    if status == 413:
        assert response.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "normal"), ("POST", "none"), ("GET", "large"), ("PUT", "large"), ("PUT", "files"), ("GET", "files/a")],
)
async def test_a_larger_limit_holds_for_no_other_method_or_path(client: AsyncClient, method: str, path: str) -> None:
    response = await client.request(method, f"/{path}", content=b"x" * (LIMIT + 1))

    assert response.status_code == 413


@pytest.mark.parametrize("framing", [bytes, chunked])
async def test_a_longer_path_that_looks_like_a_larger_operation_has_its_own_limit(
    client: AsyncClient, framing: Any
) -> None:
    headers = {"Content-Type": "application/json"}

    response = await client.put("/files/special/a", content=framing(sized(LIMIT + 1)), headers=headers)

    assert response.status_code == 413


async def test_a_form_may_have_a_larger_limit_too() -> None:
    async with serving(router, max_body_size=LIMIT) as client:
        assert (await client.post("/form", data={"text": "x" * 2 * LIMIT})).json() == 2 * LIMIT
        assert (await client.post("/form", data={"text": "x" * 3 * LIMIT})).status_code == 413


async def test_a_caller_is_authenticated_before_a_larger_body_is_read(client: AsyncClient) -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for part in (sized(2 * LIMIT)[:10], sized(2 * LIMIT)[10:]):
            sent += 1
            yield part

    headers = {"Content-Type": "application/json"}
    refused = await client.post("/guarded", content=sized(2 * LIMIT), headers=headers)
    accepted = await client.post("/guarded", content=body(), headers=headers | {"Authorization": "Bearer write"})
    malformed = await client.post("/guarded", content=b"{", headers=headers)

    assert_problem(refused, 401, "unauthorized")
    assert accepted.json() == [2 * LIMIT - 12, "write"]
    # Otherwise the body would be refused first.
    assert_problem(malformed, 401, "unauthorized")


# Raw bodies


async def test_an_endpoint_reads_a_raw_body_itself(client: AsyncClient) -> None:
    body = b"a,b\r\n" * 2000

    response = await client.put("/files/a", content=body, headers={"Content-Type": "text/csv; header=present"})

    assert response.json() == ["a", len(body)]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Content-Type", "application/json")],
        [("Content-Type", "text/csv; charset=latin-1")],
        [("Content-Type", "text/csv"), ("Content-Type", "text/csv")],
        [("Content-Type", "text/csv"), ("Content-Encoding", "gzip")],
    ],
)
async def test_a_raw_body_has_the_declared_media_type(client: AsyncClient, headers: list[tuple[str, str]]) -> None:
    request = client.build_request("PUT", "/files/a", content=b"a,b", headers=headers)

    assert_problem(await client.send(request), 415, "unsupported_media_type")


@pytest.mark.parametrize("framing", [bytes, chunked])
async def test_a_raw_body_is_limited_while_it_is_read(client: AsyncClient, framing: Any) -> None:
    headers = {"Content-Type": "text/csv; charset=UTF-8"}

    response = await client.put("/files/a", content=framing(b"x" * (3 * LIMIT + 1)), headers=headers)

    assert_problem(response, 413, "payload_too_large")


def test_the_document_shows_the_options() -> None:
    paths = application(router).openapi()["paths"]

    put, timed = paths["/files/{name}"]["put"], paths["/timed"]["post"]
    assert put["requestBody"]["content"] == {"text/csv": {"schema": {"type": "string", "format": "binary"}}}
    assert put["x-max-body-size"] == 3 * LIMIT
    assert {"413", "415"} <= set(put["responses"])
    assert timed["x-statement-timeout"] == 2
    assert paths["/callback"]["get"]["x-extra-parameters"] is True
    assert not [key for key in paths["/normal"]["post"] if key.startswith("x-")]


# Statement timeouts


@pytest.fixture
async def impatient(settings: Settings) -> AsyncIterator[Database]:
    url = settings.database.sqlalchemy_url().render_as_string(hide_password=False)
    database = Database(make_settings(url, database={"statement_timeout": "200ms", "pool_size": 2}).database)
    yield database
    await database.dispose()


async def test_an_operation_has_its_own_statement_timeout(impatient: Database) -> None:
    async with serving(router, impatient) as client:
        assert (await client.post("/untimed")).json() == ["200ms", "200ms"]
        assert (await client.post("/timed")).json() == ["2s", "2s", "2s"]
        assert (await client.get("/timed/stream")).json() == ["2s", "repeatable read"]
        # These run their statements after the endpoint has returned.
        assert (await client.get("/timed/lines")).json() == "2s"
        assert (await client.get("/timed/rows")).text == "2s"
        # The connections return to the timeout of the settings.
        for _ in range(4):
            assert (await client.post("/untimed")).json() == ["200ms", "200ms"]


async def test_a_slow_statement_may_take_the_time_of_its_operation(impatient: Database) -> None:
    async with serving(router, impatient) as client:
        assert (await client.get("/slow/reading")).status_code == 200
        assert (await client.post("/slow/writing")).status_code == 200
        assert (await client.get("/slow/usual")).status_code == 503
        assert (await client.get("/slow/late")).status_code == 503


# Mistakes


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"repeatable": "no"}, TypeError, "repeatable must be True or False"),
        ({"repeatable": None}, TypeError, "repeatable must be True or False"),
        ({"extra_parameters": 1}, TypeError, "extra_parameters must be True or False"),
        ({"max_body_size": "1MB"}, TypeError, "max_body_size must be a number of bytes"),
        ({"max_body_size": True}, TypeError, "max_body_size must be a number of bytes"),
        ({"max_body_size": 1.5}, TypeError, "max_body_size must be a number of bytes"),
        ({"max_body_size": 0}, ValueError, "max_body_size must be at least 1 byte"),
        ({"statement_timeout": "1s"}, TypeError, "statement_timeout must be a timedelta or a number of seconds"),
        ({"statement_timeout": True}, TypeError, "statement_timeout must be a timedelta or a number of seconds"),
        ({"statement_timeout": 0}, ValueError, "statement_timeout must be between 1 ms and 24 days"),
        ({"statement_timeout": float("inf")}, ValueError, "statement_timeout must be between 1 ms and 24 days"),
        ({"statement_timeout": float("nan")}, ValueError, "statement_timeout must be between 1 ms and 24 days"),
        ({"body_timeout": timedelta(days=30)}, ValueError, "body_timeout must be between 1 ms and 24 days"),
        ({"consumes": "csv"}, ValueError, "consumes must name media types in lower case, such as text/csv, not 'csv'"),
        ({"consumes": ("text/csv", 1)}, ValueError, "consumes must name media types"),
    ],
)
def test_a_wrong_option_is_refused_when_the_operation_is_declared(
    given: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        routing.options(**given)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"x-repeatible": False}, "x-repeatible is no option of an operation; .*repeatable="),
        ({"x-max_body_size": 1}, "x-max_body_size is no option"),
        ({"x-statement-timeout": 0}, "the option statement_timeout must be between"),
    ],
)
def test_a_misspelt_or_wrong_member_is_refused(extra: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        routing.router().get("/x", openapi_extra=public | extra)(callback)


def test_other_extensions_of_openapi_are_kept() -> None:
    other = routing.router()
    other.get("/x", openapi_extra=public | {"x-internal": True, "x-codeSamples": []})(callback)

    operation = application(other).openapi()["paths"]["/x"]["get"]

    assert (operation["x-internal"], operation["x-codeSamples"]) == (True, [])


def test_the_limit_of_fastapi_is_refused() -> None:
    with pytest.raises(ValueError, match=r"routing\.options"):
        routing.router().post("/x", openapi_extra=public, max_body_size=1)(take_normal)


def test_a_raw_body_and_a_declared_one_are_refused() -> None:
    with pytest.raises(ValueError, match="consumes"):
        routing.router().post("/x", openapi_extra=public | routing.options(consumes="text/csv"))(take_normal)


def test_a_declared_body_may_be_described_in_openapi() -> None:
    extra = {"requestBody": {"content": {"application/json": {"example": {"text": "x"}}}}}

    routing.router().post("/x", openapi_extra=public | extra)(take_normal)
