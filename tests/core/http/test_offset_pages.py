"""Pages of lists by offset, with a total."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import pytest
from fastapi import Query
from httpx2 import AsyncClient
from pydantic import BaseModel
from sqlalchemy import select, text

from app.core.db import crud
from app.core.db.database import Database, WriteSession
from app.core.db.keyset import Order
from app.core.http import routing
from app.core.http.access import public
from app.core.http.dependencies import ReadSessionDep
from app.core.http.pagination import OffsetPage, OffsetQuery, PagerDep
from app.users.models import User
from tests.core.applications import serving
from tests.factories import make_user


class ThingQuery(OffsetQuery):
    role: str | None = None
    sort: Literal["email", "-email", "role"] = "email"


class ThingRead(BaseModel):
    email: str


ORDERS = {
    "email": Order((User.email_key,)),
    "-email": Order((User.email_key,), descending=True),
    "role": Order((User.role,)),
}
router = routing.router()


@router.get("/shelves/{shelf}/things", response_model=OffsetPage[ThingRead], openapi_extra=public)
async def list_things(query: Annotated[ThingQuery, Query()], session: ReadSessionDep, pager: PagerDep) -> Any:
    statement = select(User.email, User.email_key)
    if query.role is not None:
        statement = statement.where(User.role == query.role)
    return await pager.list_by_offset(
        query, ORDERS[query.sort], lambda page: crud.offset_page(session, statement, page)
    )


@pytest.fixture
async def things(database: Database, session: WriteSession) -> AsyncIterator[AsyncClient]:
    """Return a client of an application with a list of seven things."""
    for letter in "gfedcba":
        await make_user(session, email=f"{letter}@x.co", role="admin" if letter in "ag" else "user")
    await session.commit()
    async with serving(router, database) as client:
        yield client


def emails(response: Any) -> str:
    assert response.status_code == 200, response.text
    return "".join(item["email"][0] for item in response.json()["items"])


def offsets(response: Any) -> dict[str, str]:
    return {name: link["url"].partition("?")[2] for name, link in response.links.items()}


@pytest.mark.parametrize(
    ("query", "found", "links"),
    [
        ("limit=3", "abc", {"first": 0, "next": 3, "last": 6}),
        ("limit=3&offset=3", "def", {"first": 0, "prev": 0, "next": 6, "last": 6}),
        ("limit=3&offset=6", "g", {"first": 0, "prev": 3, "last": 6}),
        ("limit=3&offset=2", "cde", {"first": 0, "prev": 0, "next": 5, "last": 6}),
        ("limit=3&offset=7", "", {"first": 0, "prev": 4, "last": 6}),
        ("limit=3&offset=9000", "", {"first": 0, "prev": 6, "last": 6}),
        ("limit=7", "abcdefg", {"first": 0, "last": 0}),
        ("limit=100", "abcdefg", {"first": 0, "last": 0}),
    ],
)
async def test_a_page_has_a_total_and_links_to_the_others(
    things: AsyncClient, query: str, found: str, links: dict[str, int]
) -> None:
    response = await things.get(f"/shelves/1/things?{query}")

    assert emails(response) == found
    assert response.json()["total"] == 7
    assert {name: int(one.rpartition("offset=")[2]) for name, one in offsets(response).items()} == links


async def test_the_links_keep_filters_sort_and_limit(things: AsyncClient) -> None:
    response = await things.get("/shelves/1/things?limit=2&sort=-email&role=user&offset=2")

    assert response.json()["total"] == 5
    assert {name: (await things.get(link["url"])).json()["items"] for name, link in response.links.items()} == {
        "first": [{"email": "f@x.co"}, {"email": "e@x.co"}],
        "prev": [{"email": "f@x.co"}, {"email": "e@x.co"}],
        "next": [{"email": "b@x.co"}],
        "last": [{"email": "b@x.co"}],
    }


async def test_an_empty_list_has_a_total_of_zero(things: AsyncClient) -> None:
    response = await things.get("/shelves/1/things?role=nobody")

    assert response.json() == {"items": [], "total": 0}
    assert offsets(response).keys() == {"first", "last"}


async def test_rows_with_equal_values_are_in_the_order_of_their_ids(things: AsyncClient) -> None:
    pages = [
        emails(await things.get(f"/shelves/1/things?sort=role&limit=2&offset={offset}")) for offset in (0, 2, 4, 6)
    ]

    assert pages == ["ga", "fe", "dc", "b"]


@pytest.mark.parametrize(("rows", "total"), [(10_000, 10_000), (10_001, None)])
async def test_the_total_is_exact_up_to_ten_thousand(
    things: AsyncClient, session: WriteSession, rows: int, total: int | None
) -> None:
    await session.execute(
        text(
            "INSERT INTO users (id, email, email_key) SELECT gen_random_uuid(), n || '@x.co', n || '@x.co' "
            "FROM generate_series(1, :n) AS n"
        ),
        {"n": rows - 7},
    )
    await session.commit()

    first = await things.get("/shelves/1/things?limit=100&offset=9900")
    end = await things.get("/shelves/1/things?limit=100&offset=10000")

    assert first.json()["total"] == end.json()["total"] == total
    assert len(first.json()["items"]) == 100
    assert len(end.json()["items"]) == rows - 10_000
    assert offsets(first).keys() == {"first", "prev", *(["last"] if total else ["next"])}
    assert offsets(end).keys() == {"first", "prev", *(["last"] if total else [])}


@pytest.mark.parametrize(
    ("query", "code", "words"),
    [
        ("offset=10001", "offset_too_large", "cursor"),
        ("offset=999999999999", "offset_too_large", "cursor"),
        ("offset=-1", "greater_than_equal", "0 or more"),
        ("offset=x", "malformed", "integer"),
        ("limit=101", "less_than_equal", "100 or less"),
        ("cursor=x", "unknown_parameter", ""),
    ],
)
async def test_other_values_are_refused(things: AsyncClient, query: str, code: str, words: str) -> None:
    response = await things.get(f"/shelves/1/things?{query}")

    assert response.status_code == 422
    (error,) = response.json()["errors"]
    assert error["code"] == code
    assert words in error["detail"]


async def test_the_document_states_the_bounds(things: AsyncClient) -> None:
    document = (await things.get("/openapi.json")).json()

    parameters = document["paths"]["/shelves/{shelf}/things"]["get"]["parameters"]
    (offset,) = (one["schema"] for one in parameters if one["name"] == "offset")
    assert (offset["minimum"], offset["maximum"], offset["default"]) == (0, 10_000, 0)
    assert "ThingOffsetPage" in [one.get("title") for one in document["components"]["schemas"].values()]
