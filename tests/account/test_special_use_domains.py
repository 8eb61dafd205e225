"""Addresses in domains for private networks and development: accepted outside of production, or by a setting."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from httpx2 import AsyncClient

from app.core.config import Settings
from app.core.db.database import Database, WriteSession
from app.mail.settings import accepts_special_use_domains
from app.main import create_app
from tests.aftermath import assert_problem, snapshot
from tests.auth.post import Post
from tests.conftest import LoggedIn, log_in, make_settings, running

NEW = "five quiet herons at dawn"
ADDRESSES = pytest.mark.parametrize("email", ["ada@corp.local", "ada@example.test", "Ada@app.LOCALHOST"])


def requests(email: str) -> list[tuple[str, dict[str, Any], str]]:
    """Return each request that names an address: its path, its body and the member with the address."""
    return [
        ("/api/v1/auth/register", {"email": email, "password": NEW}, "email"),
        ("/api/v1/auth/verify-email/resend", {"email": email}, "email"),
        ("/api/v1/auth/password/forgot", {"email": email}, "email"),
        ("/api/v1/users", {"email": email}, "email"),
    ]


@pytest.fixture
async def strict(database_url: str, database: Database) -> AsyncIterator[AsyncClient]:
    """A client of an application with the default of production."""
    async with running(
        create_app(make_settings(database_url, mail={"special_use_domains": False}), database)
    ) as client:
        yield client


@ADDRESSES
async def test_outside_of_production_such_an_account_can_register_and_log_in(
    client: AsyncClient, database: Database, settings: Settings, email: str
) -> None:
    post = Post(database, settings)

    accepted = await client.post("/api/v1/auth/register", json={"email": email, "password": NEW})
    verified = await client.post("/api/v1/auth/verify-email", json={"token": await post.link()})

    assert (accepted.status_code, verified.status_code) == (202, 204)
    assert "Authorization" in await log_in(client, email, NEW)


async def test_outside_of_production_every_operation_accepts_such_an_address(
    client: AsyncClient, admin: LoggedIn
) -> None:
    for number, (path, body, member) in enumerate(requests("ada@corp.local")):
        response = await client.post(path, json=body | {member: f"ada{number}@corp.local"}, headers=admin.headers)

        assert response.is_success, response.text


@ADDRESSES
async def test_production_refuses_such_an_address_in_every_operation(
    strict: AsyncClient, session: WriteSession, admin: LoggedIn, email: str
) -> None:
    before = await snapshot(session)

    for path, body, member in requests(email):
        response = await strict.post(path, json=body, headers=admin.headers)

        assert_problem(response, 422, "validation_error", f"#/{member}")
        assert response.json()["errors"][0]["code"] == "email_invalid"
    assert await snapshot(session) == before


@pytest.mark.parametrize(
    ("environment", "setting", "accepted"),
    [
        ("local", None, True),
        ("test", None, True),
        ("production", None, False),
        ("production", True, True),
        ("local", False, False),
    ],
)
def test_the_environment_decides_unless_the_setting_does(
    database_url: str, environment: str, setting: bool | None, *, accepted: bool
) -> None:
    settings = make_settings(database_url, environment=environment, mail={"special_use_domains": setting})

    assert accepts_special_use_domains(settings) == accepted
