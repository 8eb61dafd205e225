"""Reading your own account."""

from datetime import UTC, datetime

import pytest
from httpx2 import AsyncClient
from sqlalchemy import update

from app.core.db.database import WriteSession
from app.users.models import User
from tests.conftest import LoggedIn

ME = "/api/v1/users/me"


async def test_instants_are_in_utc_with_a_z_suffix(client: AsyncClient, session: WriteSession, user: LoggedIn) -> None:
    verified = datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)
    await session.execute(update(User).where(User.email == user.email).values(email_verified_at=verified))
    await session.commit()

    body = (await client.get(ME, headers=user.headers)).json()

    assert body["email_verified_at"] == "2026-01-02T03:04:05.678900Z"
    assert all(body[name].endswith("Z") for name in ("created_at", "updated_at"))


@pytest.mark.parametrize("name", ["Ada", "<script>alert(1)</script>", "{{7*7}}", "ي مرحبا", "🐘", "=1+1"])
async def test_a_name_is_returned_as_it_is_stored(
    client: AsyncClient, session: WriteSession, user: LoggedIn, name: str
) -> None:
    await session.execute(update(User).where(User.email == user.email).values(full_name=name))
    await session.commit()

    response = await client.get(ME, headers=user.headers)

    assert response.json()["full_name"] == name
    assert response.headers["Content-Type"] == "application/json"


async def test_an_unknown_value_is_null(client: AsyncClient, user: LoggedIn) -> None:
    body = (await client.get(ME, headers=user.headers)).json()

    assert body["full_name"] is None


async def test_an_account_is_never_cached(client: AsyncClient, user: LoggedIn) -> None:
    response = await client.get(ME, headers=user.headers)

    assert response.headers["Cache-Control"] == "no-store"


async def test_head_gives_the_same_response_as_get_without_the_body(client: AsyncClient, user: LoggedIn) -> None:
    get = await client.get(ME, headers=user.headers)
    head = await client.head(ME, headers=user.headers)

    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["Content-Length"] == get.headers["Content-Length"]


@pytest.mark.parametrize("path", [f"{ME}/", "/api/v1/users//me", "/api/v1/users/ME", f"{ME};x=1", f"{ME}%2f"])
async def test_the_account_has_exactly_one_path(client: AsyncClient, user: LoggedIn, path: str) -> None:
    response = await client.get(path, headers=user.headers)

    # Where the path matches `/users/{user_id}`, the response is 403, because the user may not read other accounts.
    assert response.status_code in {404, 403}
    assert user.email not in response.text


async def test_an_unknown_parameter_is_rejected(client: AsyncClient, user: LoggedIn) -> None:
    response = await client.get(ME, params={"include": "everything"}, headers=user.headers)

    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "#/query/include"
