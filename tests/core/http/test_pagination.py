from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import quote

import pytest
from fastapi import Query
from httpx2 import AsyncClient
from pydantic import BaseModel
from sqlalchemy import select

from app.core.db import crud
from app.core.db.database import Database, WriteSession
from app.core.db.keyset import Order
from app.core.http import routing
from app.core.http.access import public
from app.core.http.dependencies import ReadSessionDep
from app.core.http.pagination import Page, PageQuery, PagerDep
from app.users.models import User
from tests.core.applications import serving
from tests.factories import make_user


class Sort(StrEnum):
    EMAIL = "email"
    EMAIL_DESCENDING = "-email"


class ThingQuery(PageQuery):
    role: str | None = None
    sort: Sort = Sort.EMAIL


class ThingRead(BaseModel):
    email: str


router = routing.router()


@router.get("/shelves/{shelf}/things", response_model=Page[ThingRead], openapi_extra=public)
async def list_things(query: Annotated[ThingQuery, Query()], session: ReadSessionDep, pager: PagerDep) -> Any:
    order = Order((User.email_key,), descending=query.sort == Sort.EMAIL_DESCENDING)
    statement = select(User.email, User.email_key)
    if query.role is not None:
        statement = statement.where(User.role == query.role)
    return await pager.list(query, order, lambda page: crud.page(session, statement, page))


@pytest.fixture
async def things(database: Database, session: WriteSession) -> AsyncIterator[AsyncClient]:
    """Return a client of an application with a list of seven things."""
    for letter in "abcdefg":
        await make_user(session, email=f"{letter}@x.co", role="admin" if letter in "ag" else "user")
    await session.commit()
    async with serving(router, database) as client:
        yield client


def emails(body: Any) -> str:
    return "".join(item["email"][0] for item in body["items"])


async def test_the_last_page_has_no_cursor(things: AsyncClient) -> None:
    first = (await things.get("/shelves/1/things?limit=3")).json()
    second = (await things.get("/shelves/1/things", params={"limit": 3, "cursor": first["next_cursor"]})).json()
    third = (await things.get("/shelves/1/things", params={"limit": 3, "cursor": second["next_cursor"]})).json()

    assert [emails(page) for page in (first, second, third)] == ["abc", "def", "g"]
    assert third["next_cursor"] is None


async def test_the_link_points_to_the_next_page_of_the_same_list(things: AsyncClient) -> None:
    listed = ""
    url: str | None = "/shelves/1/things?limit=2&sort=-email&role=user"
    while url:
        response = await things.get(url)
        assert response.status_code == 200
        listed += emails(response.json())
        url = response.links["next"]["url"] if response.links else None

    assert listed == "fedcb"


async def test_the_last_page_has_no_link(things: AsyncClient) -> None:
    response = await things.get("/shelves/1/things?limit=7")

    assert emails(response.json()) == "abcdefg"
    assert response.json()["next_cursor"] is None
    assert "link" not in response.headers


@pytest.mark.parametrize("shelf", ["ü€", "a b", "x>; rel=evil, <y", "a\r\nX-Evil: 1", "100%", "a?b#c"])
async def test_a_link_is_ascii_for_any_path(things: AsyncClient, shelf: str) -> None:
    response = await things.get(f"/shelves/{quote(shelf, safe='')}/things?limit=2")

    assert response.status_code == 200
    assert "x-evil" not in response.headers
    target = response.links["next"]["url"]
    assert emails((await things.get(target)).json()) == "cd"


async def test_the_default_limit_is_fifty(things: AsyncClient, session: WriteSession) -> None:
    for number in range(60):
        await make_user(session, email=f"z{number}@x.co")
    await session.commit()

    assert len((await things.get("/shelves/1/things")).json()["items"]) == 50


@pytest.mark.parametrize(("limit", "found"), [("1", 1), ("100", 7), ("07", 7)])
async def test_limits_within_the_bounds_are_accepted(things: AsyncClient, limit: str, found: int) -> None:
    response = await things.get(f"/shelves/1/things?limit={limit}")

    assert len(response.json()["items"]) == found


@pytest.mark.parametrize(
    "limit",
    [
        "0",
        "-1",
        "101",
        "abc",
        "1.5",
        "1.0",
        "",
        "%D9%A1%D9%A0",
        "%2010",
        "%2B10",
        "1e2",
        "1_0",
        "0x10",
        "2147483648",
        "9223372036854775808",
        "1" + "0" * 300,
        "null",
        "%00",
    ],
)
async def test_any_other_limit_is_refused(things: AsyncClient, limit: str) -> None:
    response = await things.get(f"/shelves/1/things?limit={limit}")

    assert response.status_code == 422
    assert [error["pointer"] for error in response.json()["errors"]] == ["#/query/limit"]


@pytest.mark.parametrize(
    ("query", "pointer", "code"),
    [
        ("foo=1", "#/query/foo", "unknown_parameter"),
        ("offset=1", "#/query/offset", "unknown_parameter"),
        ("Limit=5", "#/query/Limit", "unknown_parameter"),
        ("limit[]=5", "#/query/limit%5B%5D", "unknown_parameter"),
        ("limit=5&limit=6", "#/query/limit", "duplicate_parameter"),
        ("limit=5&limit=5", "#/query/limit", "duplicate_parameter"),
        ("cursor=a&cursor=b", "#/query/cursor", "duplicate_parameter"),
        ("role=user&role=admin", "#/query/role", "duplicate_parameter"),
        ("sort=password_hash", "#/query/sort", "enum"),
        ("sort=id;drop", "#/query/sort", "enum"),
        ("sort=", "#/query/sort", "enum"),
    ],
)
async def test_unknown_and_repeated_parameters_are_refused(
    things: AsyncClient, query: str, pointer: str, code: str
) -> None:
    response = await things.get(f"/shelves/1/things?{query}")

    assert response.status_code == 422
    assert [(error["pointer"], error["code"]) for error in response.json()["errors"]] == [(pointer, code)]


async def test_the_page_size_may_change_between_pages(things: AsyncClient) -> None:
    cursor = (await things.get("/shelves/1/things?limit=2")).json()["next_cursor"]

    assert emails((await things.get("/shelves/1/things", params={"cursor": cursor})).json()) == "cdefg"


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("/shelves/2/things", {}),
        ("/shelves/1/things", {"sort": "-email"}),
        ("/shelves/1/things", {"role": "user"}),
    ],
)
async def test_a_cursor_is_bound_to_its_path_sort_and_filters(
    things: AsyncClient, path: str, parameters: dict[str, str]
) -> None:
    cursor = (await things.get("/shelves/1/things?limit=2")).json()["next_cursor"]

    response = await things.get(path, params={**parameters, "cursor": cursor})

    assert response.status_code == 400
    assert response.json()["type"] == "/problems/invalid-cursor"
    assert response.json()["code"] == "invalid_cursor"


async def test_a_cursor_is_valid_if_the_default_sort_is_given_explicitly(things: AsyncClient) -> None:
    cursor = (await things.get("/shelves/1/things?limit=2")).json()["next_cursor"]

    response = await things.get("/shelves/1/things", params={"sort": "email", "cursor": cursor})

    assert emails(response.json()) == "cdefg"


@pytest.mark.parametrize("cursor", ["", "x", "%00", "%ED%A0%80", "%FF", "AAAA", "bnVsbA", "A" * 1024, "A" * 10_240])
async def test_an_invalid_cursor_is_refused(things: AsyncClient, cursor: str) -> None:
    response = await things.get(f"/shelves/1/things?cursor={cursor}")

    assert response.status_code == 400
    assert response.json()["code"] == "invalid_cursor"


async def test_the_cursor_of_a_deleted_row_continues_after_it(things: AsyncClient, session: WriteSession) -> None:
    cursor = (await things.get("/shelves/1/things?limit=2")).json()["next_cursor"]
    user = (await session.scalars(select(User).where(User.email == "b@x.co"))).one()
    await crud.remove(session, User, user.id)
    await session.commit()

    assert emails((await things.get("/shelves/1/things", params={"cursor": cursor})).json()) == "cdefg"
