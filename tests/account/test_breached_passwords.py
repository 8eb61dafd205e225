"""A password from a known breach is refused by each operation that sets one. A broken file refuses no password."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from httpx2 import AsyncClient, Response

from app.core.db.database import Database, WriteSession
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from app.users.models import User
from tests.aftermath import assert_problem
from tests.auth.post import AUTH, ME, NEW_PASSWORD, Post, bearer, log_in, pair_of
from tests.conftest import LoggedIn, make_settings, running
from tests.core.security.test_breaches import write
from tests.factories import make_user

BREACHED = "crème brûlée for breakfast"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Passwords that are known, among them one."""
    return write(tmp_path / "breached.txt", [BREACHED, *map(str, range(50))])


@pytest.fixture
async def client(database_url: str, database: Database, file: Path) -> AsyncIterator[AsyncClient]:
    """A client of an application that has the file."""
    settings = make_settings(database_url, auth={"breached_passwords_file": file})
    async with running(create_app(settings, database)) as client:
        yield client


@pytest.fixture
async def ada(session: WriteSession, hasher: PasswordHasher) -> User:
    """An account with a password."""
    account = await make_user(session, hasher, email="ada@example.com")
    await session.commit()
    return account


async def reset(client: AsyncClient, secret: str, password: str) -> Response:
    return await client.post(f"{AUTH}/password/reset", json={"token": secret, "new_password": password})


def assert_refused(response: Response, pointer: str) -> None:
    assert_problem(response, 422, "validation_error", pointer)
    assert [error["code"] for error in response.json()["errors"]] == ["password_too_common"]
    assert BREACHED not in response.text


async def test_a_breached_password_is_refused_at_a_change(client: AsyncClient, ada: User) -> None:
    pair = await pair_of(client, ada.email)
    body = {"current_password": "correct horse battery staple", "new_password": BREACHED}

    refused = await client.put(f"{ME}/password", json=body, headers=bearer(pair))

    assert_refused(refused, "#/new_password")
    assert (await log_in(client, ada.email, BREACHED)).status_code == 400


async def test_a_breached_password_is_refused_at_a_reset_and_the_link_stays_usable(
    client: AsyncClient, post: Post, ada: User
) -> None:
    await client.post(f"{AUTH}/password/forgot", json={"email": ada.email})
    secret = await post.link()

    assert_refused(await reset(client, secret, BREACHED), "#/new_password")
    assert (await reset(client, secret, NEW_PASSWORD)).status_code == 204


async def test_a_breached_password_is_refused_as_the_first_password(
    client: AsyncClient, post: Post, admin: LoggedIn
) -> None:
    await client.post("/api/v1/users", json={"email": "invited@example.com"}, headers=admin.headers)
    secret = await post.link()

    assert_refused(await reset(client, secret, BREACHED), "#/new_password")
    assert (await reset(client, secret, NEW_PASSWORD)).status_code == 204


async def test_without_the_file_a_password_is_accepted_and_the_log_says_so(
    client: AsyncClient, post: Post, ada: User, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await client.post(f"{AUTH}/password/forgot", json={"email": ada.email})
    secret = await post.link()
    await asyncio.to_thread(file.unlink)

    response = await reset(client, secret, BREACHED)

    assert response.status_code == 204
    assert "breached passwords cannot be read" in caplog.messages


async def test_a_replaced_file_is_used_at_once(client: AsyncClient, post: Post, ada: User, file: Path) -> None:
    await client.post(f"{AUTH}/password/forgot", json={"email": ada.email})
    write(file.with_name("newer.txt"), [NEW_PASSWORD]).replace(file)

    assert_refused(await reset(client, await post.link(), NEW_PASSWORD), "#/new_password")
