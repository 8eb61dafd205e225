from typing import Annotated, Any

import pytest
from fastapi import Depends, Form, Header, Query, Response
from httpx2 import AsyncClient
from pydantic import Field

from app.core.errors import ConflictError, MalformedRequestError, NotFoundError
from app.core.http import routing
from app.core.http.access import public
from app.core.http.problems import problem_responses, raises
from app.core.schemas.fields import Payload, ShortText
from tests.aftermath import assert_problem
from tests.core.applications import application, serving

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Thing(Payload):
    name: ShortText
    count: int = Field(default=0, ge=0)


class Place(Payload):
    street: ShortText
    city: ShortText = "Bern"


router = routing.router(prefix="/things", tags=["things"])


@router.post("", openapi_extra=public)
async def create_thing(payload: Thing) -> dict[str, Any]:
    """Create a thing.

    It has a name, and
    nothing else.
    """
    return payload.model_dump()


@router.post("/anything", openapi_extra=public)
async def take_anything(payload: dict[str, Any]) -> dict[str, Any]:
    """Accept
    any object."""
    return payload


@router.post("/form", openapi_extra=public)
async def take_form(payload: Annotated[Place, Form()]) -> dict[str, Any]:
    return payload.model_dump()


@router.get("", openapi_extra=public, summary="Search things", responses=problem_responses(NotFoundError))
async def list_things(
    number: Annotated[int, Query(alias="n")] = 0, x_colour: Annotated[str | None, Header()] = None
) -> list[str | int | None]:
    """Not the summary."""
    return [number, x_colour]


class SameStatusError(MalformedRequestError):
    code = "same_status"
    detail = "Another malformed request."


@router.put("", openapi_extra=public, responses=problem_responses(SameStatusError, ConflictError))
async def replace_things(payload: Thing) -> None:
    """Replace all things."""


@pytest.fixture
async def things() -> Any:
    async with serving(router, max_body_size=1_048_576) as client:
        yield client


async def send(client: AsyncClient, body: bytes, path: str = "/things/anything", **headers: str) -> Any:
    return await client.post(path, content=body, headers={**JSON, **headers})


# Bodies over HTTP


async def test_every_operation_uses_the_strict_parser(things: AsyncClient) -> None:
    assert (await send(things, b'{"a": NaN}')).status_code == 400
    assert (await send(things, b'{"a": 1, "a": 2}')).json()["code"] == "duplicate_member"
    assert (await send(things, b"[" * 40)).json()["code"] == "too_deep"
    assert (await send(things, b"")).json()["code"] == "malformed_request"
    assert (await send(things, b'{"a": 1.5}')).json() == {"a": 1.5}


@pytest.mark.parametrize("body", [b"null", b"true", b"1", b'"x"', b"[]", b"[{}]"])
async def test_json_that_is_not_an_object_is_invalid_for_a_model(things: AsyncClient, body: bytes) -> None:
    response = await send(things, body, "/things")

    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "#/"


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        (b"{}", "#/name", "missing"),
        (b'{"name": null}', "#/name", "string_type"),
        (b'{"name": 1}', "#/name", "string_type"),
        (b'{"name": ["a"]}', "#/name", "string_type"),
        (b'{"name": ""}', "#/name", "string_too_short"),
        (b'{"name": " "}', "#/name", "blank"),
        (b'{"name": "\\u0000"}', "#/name", "unprintable"),
        (b'{"name": "\\ud800"}', "#/name", "string_unicode"),
        (b'{"name": "x", "count": "1"}', "#/count", "int_type"),
        (b'{"name": "x", "count": 1.0}', "#/count", "int_type"),
        (b'{"name": "x", "count": true}', "#/count", "int_type"),
        (b'{"name": "x", "count": -1}', "#/count", "greater_than_equal"),
        (b'{"name": "x", "is_superuser": true}', "#/is_superuser", "extra_forbidden"),
        (b'{"name": "x", "a/b~c": 1}', "#/a~1b~0c", "extra_forbidden"),
        (b'{"name": "x", "\\ud800": 1}', "#/", "string_unicode"),
    ],
)
async def test_values_are_not_converted_and_unknown_members_not_ignored(
    things: AsyncClient, body: bytes, pointer: str, code: str
) -> None:
    response = await send(things, body, "/things")

    assert response.status_code == 422
    assert [(error["pointer"], error["code"]) for error in response.json()["errors"]] == [(pointer, code)]


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"', "application/json;"],
)
async def test_json_is_accepted_with_its_media_type(things: AsyncClient, content_type: str) -> None:
    response = await things.post("/things", content=b'{"name": "x"}', headers={"Content-Type": content_type})

    assert response.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Content-Type", "")],
        [("Content-Type", "text/plain")],
        [("Content-Type", "application/x-www-form-urlencoded")],
        [("Content-Type", "multipart/form-data; boundary=x")],
        [("Content-Type", "application/vnd.api+json")],
        [("Content-Type", "application/json, text/html")],
        [("Content-Type", "application/json; charset=latin-1")],
        [("Content-Type", "application/json; charset=utf-8; x=y")],
        [("Content-Type", "application/json"), ("Content-Type", "application/json")],
        [("Content-Type", "application/json"), ("Content-Type", "text/plain")],
        [("Content-Type", "application/json"), ("Content-Encoding", "gzip")],
        [("Content-Type", "application/json"), ("Content-Encoding", "br")],
        [("Content-Type", "application/json"), ("Content-Encoding", "identity, gzip")],
        [("Content-Type", "application/json"), ("Content-Encoding", "identity"), ("Content-Encoding", "gzip")],
    ],
)
async def test_other_media_types_and_encodings_are_refused(things: AsyncClient, headers: list[tuple[str, str]]) -> None:
    request = things.build_request("POST", "/things", content=b'{"name": "x"}', headers=headers)

    response = await things.send(request)

    assert response.status_code == 415
    assert response.json()["code"] == "unsupported_media_type"


async def test_the_identity_encoding_is_accepted(things: AsyncClient) -> None:
    response = await send(things, b'{"name": "x"}', "/things", **{"Content-Encoding": "Identity"})

    assert response.status_code == 200


@pytest.mark.parametrize(
    ("body", "street"),
    [
        (b"street=a+b", "a b"),
        (b"street=%C3%BC", "ü"),
        ("street=ü".encode(), "ü"),
        (b"street=%26%3D", "&="),
        (b"&street=x&", "x"),
    ],
)
async def test_a_form_is_accepted(things: AsyncClient, body: bytes, street: str) -> None:
    response = await things.post("/things/form", content=body, headers=FORM)

    assert response.json() == {"street": street, "city": "Bern"}


@pytest.mark.parametrize("body", [b"street=%FF", b"street=\xff", b"street=%ED%A0%80", b"\xc3=1&street=x"])
async def test_a_form_that_is_not_utf8_is_malformed(things: AsyncClient, body: bytes) -> None:
    response = await things.post("/things/form", content=body, headers=FORM)

    assert (response.status_code, response.json()["code"]) == (400, "malformed_request")


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        (b"street=x&street=y", "#/street", "duplicate_parameter"),
        (b"street=x&street=x", "#/street", "duplicate_parameter"),
        (b"street=x&country=y", "#/country", "extra_forbidden"),
        (b"street[]=x", "#/street", "missing"),
        (b"", "#/street", "missing"),
        (b"street=%00", "#/street", "unprintable"),
    ],
)
async def test_repeated_unknown_and_missing_fields_of_a_form_are_refused(
    things: AsyncClient, body: bytes, pointer: str, code: str
) -> None:
    response = await things.post("/things/form", content=body, headers=FORM)

    assert response.status_code == 422
    assert (pointer, code) in [(error["pointer"], error["code"]) for error in response.json()["errors"]]


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=x", "text/plain"])
async def test_a_form_with_another_media_type_is_refused(things: AsyncClient, content_type: str) -> None:
    response = await things.post("/things/form", content=b"street=x", headers={"Content-Type": content_type})

    assert response.status_code == 415


# Parameters


async def test_declared_parameters_are_read_under_their_alias(things: AsyncClient) -> None:
    response = await things.get("/things?n=5", headers={"X-Colour": "red"})

    assert response.json() == [5, "red"]


@pytest.mark.parametrize("query", ["number=5", "x_colour=red", "X-Colour=red", "N=5", "=", "x", "%00=1"])
async def test_an_undeclared_query_parameter_is_refused(things: AsyncClient, query: str) -> None:
    response = await things.get(f"/things?{query}")

    assert response.status_code == 422
    assert response.json()["errors"][0]["code"] == "unknown_parameter"


async def test_an_operation_with_a_body_refuses_query_parameters(things: AsyncClient) -> None:
    response = await send(things, b'{"name": "x"}', "/things?name=y")

    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "#/query/name"


# Declarations


@pytest.mark.parametrize(
    "accept",
    [
        "*/*",
        "application/json",
        "Application/JSON;q=0.5",
        "application/*",
        "text/html, */*;q=0.1",
        "nonsense",
        "",
        ";;q=0",
    ],
)
async def test_a_client_that_accepts_json_gets_it(things: AsyncClient, accept: str) -> None:
    response = await things.get("/things", headers={"Accept": accept})

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "accept",
    ["text/html", "application/xml;q=1", "application/json;q=0, */*", "*/*;q=0.000", "x/" + "y" * 10_000, "a/b;q=NaN"],
)
async def test_a_client_that_does_not_accept_json_gets_406(things: AsyncClient, accept: str) -> None:
    response = await things.get("/things", headers={"Accept": accept})

    assert_problem(response, 406, "not_acceptable")


@pytest.fixture(scope="module")
def document() -> Any:
    return application(router).openapi()


def test_the_first_sentence_of_the_docstring_is_the_summary_and_the_rest_the_description(document: Any) -> None:
    operation = document["paths"]["/things"]["post"]

    assert operation["summary"] == "Create a thing"
    assert operation["description"] == "It has a name, and\nnothing else."


def test_a_docstring_of_one_sentence_gives_no_description(document: Any) -> None:
    operation = document["paths"]["/things/anything"]["post"]

    assert operation["summary"] == "Accept any object"
    assert "description" not in operation


def test_an_explicit_summary_is_kept(document: Any) -> None:
    assert document["paths"]["/things"]["get"]["summary"] == "Search things"


def test_an_operation_without_a_body_declares_the_common_errors(document: Any) -> None:
    assert set(document["paths"]["/things"]["get"]["responses"]) == {"200", "400", "404", "406", "422", "500", "503"}


def test_an_operation_with_a_body_also_declares_the_errors_of_body_parsing(document: Any) -> None:
    responses = document["paths"]["/things"]["post"]["responses"]

    assert set(responses) == {"200", "400", "406", "413", "415", "422", "500", "503"}


def test_errors_that_share_a_status_are_merged(document: Any) -> None:
    responses = document["paths"]["/things"]["put"]["responses"]

    examples = responses["400"]["content"]["application/problem+json"]["examples"]
    assert set(examples) == {"malformed_request", "duplicate_member", "too_deep", "same_status"}
    assert examples["same_status"]["value"]["detail"] == "Another malformed request."
    assert set(responses["409"]["content"]["application/problem+json"]["examples"]) == {"conflict"}


def test_merging_does_not_change_other_operations(document: Any) -> None:
    examples = document["paths"]["/things"]["post"]["responses"]["400"]["content"]["application/problem+json"]

    assert set(examples["examples"]) == {"malformed_request", "duplicate_member", "too_deep"}


def test_an_operation_declares_the_errors_of_its_dependencies() -> None:
    @raises(ConflictError)
    async def lower() -> None: ...

    @raises(SameStatusError, NotFoundError)
    async def upper(_lower: Annotated[None, Depends(lower)]) -> None: ...

    other = routing.router()

    @other.get("/x", openapi_extra=public)
    async def x(_upper: Annotated[None, Depends(upper)]) -> None: ...

    responses = application(other).openapi()["paths"]["/x"]["get"]["responses"]

    assert {"404", "409"} <= set(responses)
    assert set(responses["400"]["content"]["application/problem+json"]["examples"]) == {
        "malformed_request",
        "same_status",
    }


def test_a_declared_response_that_is_not_a_problem_is_kept() -> None:
    other = routing.router()

    @other.get("/x", openapi_extra=public, responses={503: {"description": "Closed on Sundays"}})
    async def x() -> None: ...

    responses = application(other).openapi()["paths"]["/x"]["get"]["responses"]

    assert responses["503"] == {"description": "Closed on Sundays"}


async def test_too_many_query_parameters_are_refused(things: AsyncClient) -> None:
    response = await things.get(f"/things?n=1{'&' * 100}")

    assert response.status_code == 422
    assert [error["code"] for error in response.json()["errors"]] == ["too_many_parameters"]
    assert (await things.get(f"/things?n=1{'&' * 99}")).status_code == 200


probes = routing.router(prefix="/probes")


async def refuse() -> None:
    raise NotFoundError


@probes.get("/probe", openapi_extra=public)
async def probe() -> Response:
    return Response("well", media_type="text/plain")


@probes.get("/broken", openapi_extra=public)
async def probe_broken() -> Response:
    raise ConflictError


@probes.get("/guarded", openapi_extra=public, dependencies=[Depends(refuse)])
async def probe_guarded() -> Response:
    raise AssertionError


@probes.get("/blocking", openapi_extra=public)
def probe_blocking() -> Response:
    return Response("from a thread")


@probes.get("/parameter", openapi_extra=public)
async def probe_parameter(word: str = "nothing") -> Response:
    return Response(word)


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/probes/probe", 200, "well"),
        ("/probes/probe?a=1", 422, "unknown_parameter"),
        ("/probes/broken", 409, "conflict"),
        ("/probes/guarded", 404, "not_found"),
        ("/probes/blocking", 200, "from a thread"),
        ("/probes/parameter?word=some", 200, "some"),
    ],
)
async def test_an_operation_that_returns_a_response_is_as_strict(path: str, status: int, text: str) -> None:
    async with serving(probes) as client:
        response = await client.get(path)

    assert response.status_code == status
    assert text in response.text
