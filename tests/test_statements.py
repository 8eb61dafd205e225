"""The number of statements of each operation. This finds accidental statements, and statements per row."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from types import MappingProxyType
from unittest.mock import patch
from uuid import UUID

import pytest
from httpx2 import AsyncClient

from app import features
from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from tests.access import Access
from tests.conftest import cloned, log_in, make_settings, running
from tests.factories import PASSWORD, make_user
from tests.test_access import ACCESS

TOKEN = "/api/v1/auth/token"
# Executed statements, with all features enabled as in production. BEGIN and COMMIT are not counted: the driver sends them.
STATEMENTS = MappingProxyType(
    {
        # Count the attempt. Read the account. Lock it. Reset the count, write the event, evict a session and insert the new one.
        "POST /api/v1/auth/token": 4,
        "POST /api/v1/auth/revoke": 0,  # A malformed token never reaches the database.
        "POST /api/v1/auth/register": 2,
        "POST /api/v1/auth/verify-email": 1,
        "POST /api/v1/auth/verify-email/resend": 2,
        "POST /api/v1/auth/password/forgot": 2,
        "POST /api/v1/auth/password/reset": 1,
        # Changes of credentials check the token in the database. They count an attempt before hashing, and take it back after it.
        "POST /api/v1/auth/reauthenticate": 6,
        "PUT /api/v1/users/me/password": 14,
        "GET /api/v1/users/me/sessions": 1,
        "DELETE /api/v1/users/me/sessions": 4,
        "DELETE /api/v1/users/me/sessions/{session_id}": 2,
        # Changes by administrators check the token twice: first of all, and again with its account locked.
        "DELETE /api/v1/users/{user_id}/sessions": 5,
        "POST /api/v1/users/{user_id}/password-reset": 8,
        "GET /api/v1/users/me": 1,
        "PATCH /api/v1/users/me": 3,
        "DELETE /api/v1/users/me": 5,
        # Account, sessions, events, and one for each feature with an `export.py`.
        "GET /api/v1/users/me/export": 3 + len(list(features.parts("export"))),
        "GET /api/v1/users": 1,
        "POST /api/v1/users": 8,
        "GET /api/v1/users/{user_id}": 1,
        "PATCH /api/v1/users/{user_id}": 5,
        "DELETE /api/v1/users/{user_id}": 5,
        "GET /api/v1/audit-events": 1,
        "GET /readyz": 3,
        **dict.fromkeys(["GET /livez", "GET /.well-known/jwks.json", "GET /problems/{name}"], 0),
        **dict.fromkeys(["GET /openapi.json", "GET /docs", "GET /docs/{name}"], 0),
    }
)
# Maximum for operations without a row, which belong to other features.
MOST_OF_A_READ, MOST_OF_A_WRITE = 1, 5
_callers = count(1)


@dataclass
class Site:
    """An application in memory mode, as in production, on its own database with about sixty accounts."""

    client: AsyncClient
    database: Database
    hasher: PasswordHasher

    async def account(self, **values: str) -> str:
        """Add an account and return its id."""
        async with self.database.begin() as session:
            return str((await make_user(session, self.hasher, **values)).id)

    @contextmanager
    def noted(self) -> Iterator[list[str]]:
        """Record the executed statements until the block ends."""
        statements: list[str] = []
        record = self.database.query_log.record

        def recording(statement: str, duration: float) -> None:
            statements.append(statement)
            record(statement, duration)

        with patch.object(self.database.query_log, "record", recording):
            yield statements


@pytest.fixture(scope="module")
async def site(template_url: str, hasher: PasswordHasher) -> AsyncIterator[Site]:
    """The application after it has loaded the revocations. Before, it queries the database for each request."""
    async with cloned(template_url) as url:
        settings = make_settings(url, auth={"access_check": "memory"})
        database = Database(settings.database)
        async with running(create_app(settings, database)) as client:
            while (await client.get("/readyz")).status_code != 200:  # The listener loads them.
                pass
            site = Site(client, database, hasher)
            for number in range(60):
                await site.account(email=f"other{number}@example.com")
            await site.account(email="target@example.com")
            # The caller of an operation is then never the last administrator.
            await site.account(email="keeper@example.com", role="admin")
            yield site
        await database.dispose()


@pytest.mark.parametrize("operation", ACCESS)
async def test_an_operation_executes_the_listed_number_of_statements(site: Site, operation: str) -> None:
    caller = f"caller{next(_callers)}@example.com"
    access = ACCESS[operation]
    caller_id = await site.account(email=caller, role="admin")
    async with site.database.begin() as session:
        await access.prepare(session, UUID(caller_id))
    is_public = access.scopes is None
    headers = {} if is_public else await log_in(site.client, caller)
    request = access.request(operation, UUID(caller_id), UUID(await site.account()), headers=headers)

    with site.noted() as statements:
        response = await site.client.request(**request)

    assert access.accepts(response.status_code), response.text
    check_number(operation, access, statements)


def check_number(operation: str, access: Access, statements: Sequence[str]) -> None:
    expected = STATEMENTS.get(operation, access.statements)
    most = MOST_OF_A_READ if operation.startswith("GET ") else MOST_OF_A_WRITE
    assert len(statements) == expected or (expected is None and len(statements) <= most), (
        f"{len(statements)} statements instead of {most if expected is None else expected}. If all are needed, write "
        f"`statements={len(statements)}` in the feature's access.py. They were: {statements}"
    )


def test_a_feature_states_the_number_of_its_statements() -> None:
    access = Access(statements=2)

    check_number("GET /things", access, ["SELECT 1"] * 2)
    with pytest.raises(AssertionError, match="1 statements instead of 2"):
        check_number("GET /things", access, ["SELECT 1"])
    with pytest.raises(AssertionError, match=r"2 statements instead of 1.*write `statements=2`"):
        check_number("GET /things", Access(), ["SELECT 1"] * 2)


async def test_a_refresh_executes_one_statement(site: Site) -> None:
    form = {"grant_type": "password", "username": "target@example.com", "password": PASSWORD}
    pair = (await site.client.post(TOKEN, data=form)).json()
    form = {"grant_type": "refresh_token", "refresh_token": pair["refresh_token"]}

    with site.noted() as statements:
        response = await site.client.post(TOKEN, data=form)

    assert response.status_code == 200
    assert len(statements) == 1, statements


async def test_a_full_page_needs_as_many_statements_as_an_empty_one(site: Site) -> None:
    await site.account(email="reader@example.com", role="admin")
    headers = await log_in(site.client, "reader@example.com")
    counts = []
    for query in ("limit=100", "email=nobody@example.com"):
        with site.noted() as statements:
            response = await site.client.get(f"/api/v1/users?{query}", headers=headers)
        counts.append((len(response.json()["items"]) > 50, len(statements)))

    assert counts == [(True, 1), (False, 1)]
