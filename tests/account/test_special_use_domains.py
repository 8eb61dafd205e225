"""Addresses in domains for private networks and development: accepted outside of production, or by a setting."""

from collections.abc import AsyncIterator

import pytest
from httpx2 import AsyncClient, Response

from app.core.db.database import Database, WriteSession
from app.mail.settings import accepts_special_use_domains
from app.main import create_app
from tests.account.measure_enumeration import MAILING
from tests.aftermath import assert_problem, snapshot
from tests.conftest import LoggedIn, make_settings, running

ADDRESSES = pytest.mark.parametrize("email", ["ada@corp.local", "ada@example.test", "Ada@app.LOCALHOST"])


# Each operation that is given an address, with the other members of its body.
OPERATIONS = {**MAILING, "POST /api/v1/users": {}}


async def send(client: AsyncClient, operation: str, email: str, who: LoggedIn) -> Response:
    body = {"email": email, **OPERATIONS[operation]}
    return await client.post(operation.removeprefix("POST "), json=body, headers=who.headers)


@pytest.fixture
async def strict(database_url: str, database: Database) -> AsyncIterator[AsyncClient]:
    """A client of an application with the default of production."""
    async with running(
        create_app(make_settings(database_url, mail={"special_use_domains": False}), database)
    ) as client:
        yield client


async def test_outside_of_production_every_operation_accepts_such_an_address(
    client: AsyncClient, admin: LoggedIn
) -> None:
    for number, operation in enumerate(OPERATIONS):
        response = await send(client, operation, f"ada{number}@corp.local", admin)

        assert response.is_success, response.text


@ADDRESSES
async def test_production_refuses_such_an_address_in_every_operation(
    strict: AsyncClient, session: WriteSession, admin: LoggedIn, email: str
) -> None:
    before = await snapshot(session)

    for operation in OPERATIONS:
        response = await send(strict, operation, email, admin)

        assert_problem(response, 422, "validation_error", "#/email")
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
