"""Query parameters and form fields that may be repeated, because they are declared as lists."""

from collections import deque
from collections.abc import Sequence
from typing import Annotated, Any

import pytest
from fastapi import Depends, Form, Query
from httpx2 import AsyncClient
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, Json

from app.core.http import routing
from app.core.http.access import public
from app.core.schemas.fields import Payload, ShortText
from tests.core.applications import serving

FORM = {"Content-Type": "application/x-www-form-urlencoded"}

type Tags = Annotated[list[ShortText], Query()]


class Filters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tag: list[str] = Field(default=[], max_length=10)
    kinds: set[int] | None = Field(default=None, alias="kind")
    sizes: tuple[int, ...] = Field(default=(), validation_alias=AliasChoices("size", "s"))
    name: str = ""


class ByName(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_by_name=True)

    label: str = Field(default="", alias="l")


class Labels(Payload):
    label: list[ShortText] = Field(default=[])
    title: ShortText = "none"


async def wanted(size: Annotated[list[int] | None, Query()] = None) -> list[int] | None:
    return size


router = routing.router()


@router.get("/list", openapi_extra=public)
async def read_list(tag: Annotated[list[str], Query()], one: str = "") -> Any:
    return [tag, one]


@router.get("/kinds", openapi_extra=public)
async def read_kinds(
    a: Annotated[set[str] | None, Query()] = None,
    b: Annotated[tuple[int, int], Query()] = (0, 0),
    c: Annotated[frozenset[int], Query(alias="see")] = frozenset(),
    d: Annotated[Sequence[str] | None, Query()] = None,
    e: Annotated[Annotated[deque[int], Field(max_length=3)] | None, Query()] = None,
) -> Any:
    return {name: value and sorted(value) for name, value in locals().items()}


@router.get("/model", openapi_extra=public)
async def read_model(filters: Annotated[Filters, Query()]) -> Any:
    return filters


@router.get("/optional", openapi_extra=public)
async def read_optional(filters: Annotated[Filters | None, Query()] = None) -> Any:
    return filters


@router.get("/named", openapi_extra=public)
async def read_named(names: Annotated[ByName, Query()]) -> Any:
    return names


@router.get("/dependency", openapi_extra=public)
async def read_dependency(sizes: Annotated[list[int] | None, Depends(wanted)]) -> Any:
    return sizes


@router.get("/both", openapi_extra=public)
async def read_both(size: int, _sizes: Annotated[list[int] | None, Depends(wanted)]) -> Any:
    return size


@router.get("/json", openapi_extra=public)
async def read_json(filters: Annotated[Json[Filters], Query()]) -> Any:
    return filters


@router.get("/alias", openapi_extra=public)
async def read_alias(tags: Tags) -> Any:
    return tags


@router.post("/form", openapi_extra=public)
async def take_form(tag: Annotated[list[str], Form()], one: Annotated[str, Form()] = "") -> Any:
    return [tag, one]


@router.post("/form/model", openapi_extra=public)
async def take_model(labels: Annotated[Labels, Form()]) -> Any:
    return labels


@pytest.fixture
async def client() -> Any:
    async with serving(router) as client:
        yield client


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("list?tag=a&tag=b", [["a", "b"], ""]),
        ("list?tag=a&one=x&tag=a", [["a", "a"], "x"]),
        ("kinds?a=x&a=y&b=1&b=2", {"a": ["x", "y"], "b": [1, 2], "c": [], "d": None, "e": None}),
        ("kinds?see=3&see=4&d=p&d=q", {"a": None, "b": [0, 0], "c": [3, 4], "d": ["p", "q"], "e": None}),
        ("kinds?e=1&e=2", {"a": None, "b": [0, 0], "c": [], "d": None, "e": [1, 2]}),
        ("model?tag=a&tag=b", {"tag": ["a", "b"], "kind": None, "sizes": [], "name": ""}),
        ("model?kind=1&kind=2&s=1&s=2", {"tag": [], "kind": [1, 2], "sizes": [1, 2], "name": ""}),
        ("model?size=1&size=2&name=x", {"tag": [], "kind": None, "sizes": [1, 2], "name": "x"}),
        ("optional?tag=a&tag=b", {"tag": ["a", "b"], "kind": None, "sizes": [], "name": ""}),
        ("named?label=x", {"l": "x"}),
        ("named?l=x", {"l": "x"}),
        ("dependency?size=1&size=2", [1, 2]),
        ('json?filters={"tag":["a"]}', {"tag": ["a"], "kind": None, "sizes": [], "name": ""}),
        ("alias?tags=a&tags=b", ["a", "b"]),
    ],
)
async def test_a_parameter_that_is_declared_as_a_list_may_be_repeated(
    client: AsyncClient, query: str, expected: Any
) -> None:
    response = await client.get(f"/{query}")

    assert (response.status_code, response.json()) == (200, expected)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("list?tag=a&one=x&one=x", "one"),
        ("model?name=x&name=x", "name"),
        ("named?l=x&l=y", "l"),
        ("named?label=x&label=y", "label"),
        # One of two declarations reads a single value, so a repetition is ambiguous.
        ("both?size=1&size=2", "size"),
        ('json?filters={"tag":[]}&filters={}', "filters"),
    ],
)
async def test_other_parameters_may_not_be_repeated(client: AsyncClient, query: str, name: str) -> None:
    response = await client.get(f"/{query}")

    assert response.status_code == 422
    assert [(one["pointer"], one["code"]) for one in response.json()["errors"]] == [
        (f"#/query/{name}", "duplicate_parameter")
    ]


@pytest.mark.parametrize("query", ["model?kinds=1", "model?sizes=1", "json?tag=a", "list?tag=a&tags=b"])
async def test_only_the_declared_names_are_known(client: AsyncClient, query: str) -> None:
    response = await client.get(f"/{query}")

    assert response.status_code == 422
    assert "unknown_parameter" in [one["code"] for one in response.json()["errors"]]


async def test_the_number_of_repetitions_is_limited(client: AsyncClient) -> None:
    response = await client.get("/list?" + "&".join(["tag=a"] * 101))

    assert response.status_code == 422
    assert response.json()["errors"][0]["code"] == "too_many_parameters"
    assert (await client.get("/model?" + "&".join(["tag=a"] * 11))).status_code == 422


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("form", b"tag=a&tag=b&one=x", [["a", "b"], "x"]),
        ("form/model", b"label=a&label=b&title=x", {"label": ["a", "b"], "title": "x"}),
    ],
)
async def test_a_form_field_that_is_declared_as_a_list_may_be_repeated(
    client: AsyncClient, path: str, body: bytes, expected: Any
) -> None:
    response = await client.post(f"/{path}", content=body, headers=FORM)

    assert (response.status_code, response.json()) == (200, expected)


@pytest.mark.parametrize(
    ("path", "body", "pointer", "code"),
    [
        ("form", b"tag=a&one=x&one=y", "#/one", "duplicate_parameter"),
        ("form", b"tag=a&other=x", "#/other", "extra_forbidden"),
        ("form/model", b"title=x&title=y", "#/title", "duplicate_parameter"),
        ("form/model", b"other=x", "#/other", "extra_forbidden"),
    ],
)
async def test_other_form_fields_are_given_once_and_must_be_known(
    client: AsyncClient, path: str, body: bytes, pointer: str, code: str
) -> None:
    response = await client.post(f"/{path}", content=body, headers=FORM)

    assert response.status_code == 422
    assert [(one["pointer"], one["code"]) for one in response.json()["errors"]] == [(pointer, code)]
