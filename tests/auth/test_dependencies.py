"""Where a request may carry an access token, and when the token stops working."""

from uuid import UUID

import pytest
from fastapi import FastAPI, Security
from httpx2 import AsyncClient
from sqlalchemy import delete, update

from app.auth.dependencies import CurrentPrincipal, Principal, access_token
from app.core import product
from app.core.config import Settings
from app.core.db.database import Database, WriteSession
from app.core.http import routing
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from app.users.models import User
from app.users.roles import SCOPES
from tests.auth.test_tokens import CHALLENGE, ME, assert_refused
from tests.conftest import LoggedIn, log_in, running
from tests.factories import ADMINISTRATION, make_user

BARE = f'Bearer realm="{product.SLUG}"'


def token_of(user: LoggedIn) -> str:
    return user.headers["Authorization"].removeprefix("Bearer ")


async def test_without_a_token_the_challenge_names_no_error(client: AsyncClient) -> None:
    response = await client.get(ME)

    assert response.status_code == 401
    assert response.headers.get_list("WWW-Authenticate") == [BARE]
    assert response.json()["code"] == "unauthorized"


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("", id="empty"),
        pytest.param("Basic dXNlcjpwYXNzd29yZA==", id="Basic"),
        pytest.param("Digest username=x", id="Digest"),
        pytest.param("DPoP {token}", id="DPoP"),
        pytest.param("{token}", id="no scheme"),
        pytest.param("Bearer\t{token}", id="a tab after the scheme"),
        pytest.param("Bearer{token}", id="nothing after the scheme"),
        pytest.param('Token token="{token}"', id="Token"),
    ],
)
async def test_other_schemes_count_as_no_token(client: AsyncClient, user: LoggedIn, value: str) -> None:
    response = await client.get(ME, headers={"Authorization": value.replace("{token}", token_of(user))})

    assert response.status_code == 401
    assert response.headers.get_list("WWW-Authenticate") == [BARE]


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "bEaReR"])
async def test_the_scheme_is_not_case_sensitive(client: AsyncClient, user: LoggedIn, scheme: str) -> None:
    response = await client.get(ME, headers={"Authorization": f"{scheme} {token_of(user)}"})

    assert response.status_code == 200


@pytest.mark.parametrize("value", ["Bearer", "Bearer ", "Bearer  "])
async def test_a_scheme_without_a_token_is_an_invalid_token(client: AsyncClient, value: str) -> None:
    response = await client.get(ME, headers={"Authorization": value})

    assert_refused(response)


@pytest.mark.parametrize("second", ["Bearer x", "Basic dXNlcjpwYXNzd29yZA==", ""])
async def test_two_authorization_headers_are_malformed(client: AsyncClient, user: LoggedIn, second: str) -> None:
    headers = [("Authorization", user.headers["Authorization"]), ("Authorization", second)]

    response = await client.get(ME, headers=headers)

    assert response.status_code == 400
    assert response.json()["code"] == "malformed_request"


async def test_the_same_header_twice_is_malformed_too(client: AsyncClient, user: LoggedIn) -> None:
    response = await client.get(ME, headers=[*user.headers.items(), *user.headers.items()])

    assert response.status_code == 400


@pytest.mark.parametrize("name", ["access_token", "token"])
@pytest.mark.parametrize("with_header", [True, False])
async def test_a_token_in_the_address_is_refused(
    client: AsyncClient, user: LoggedIn, name: str, *, with_header: bool
) -> None:
    response = await client.get(ME, params={name: token_of(user)}, headers=user.headers if with_header else {})

    assert response.status_code == 400
    assert response.json()["code"] == "secret_in_url"
    assert token_of(user) not in response.text


async def test_a_token_in_the_body_is_ignored(client: AsyncClient, user: LoggedIn) -> None:
    response = await client.request("GET", ME, data={"access_token": token_of(user)})

    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == BARE


@pytest.mark.parametrize("name", ["access_token", "token", "Authorization", "__Host-session"])
async def test_a_token_in_a_cookie_is_ignored(client: AsyncClient, user: LoggedIn, name: str) -> None:
    response = await client.get(ME, headers={"Cookie": f"{name}={token_of(user)}"})

    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == BARE


@pytest.mark.parametrize("name", ["X-Authorization", "Proxy-Authorization", "X-Access-Token", "X-Forwarded-User"])
async def test_a_token_in_another_header_is_ignored(client: AsyncClient, user: LoggedIn, name: str) -> None:
    response = await client.get(ME, headers={name: user.headers["Authorization"]})

    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == BARE


async def test_the_token_of_a_disabled_account_is_refused(
    client: AsyncClient, session: WriteSession, user: LoggedIn
) -> None:
    await session.execute(update(User).where(User.email == user.email).values(is_active=False))
    await session.commit()

    response = await client.get(ME, headers=user.headers)

    assert_refused(response)


async def test_a_token_from_before_a_change_of_rights_is_refused(
    client: AsyncClient, session: WriteSession, user: LoggedIn
) -> None:
    changed = update(User).where(User.email == user.email).values(authz_version=User.authz_version + 1)
    await session.execute(changed)
    await session.commit()

    before = await client.get(ME, headers=user.headers)
    after = await client.get(ME, headers=await log_in(client, user.email))

    assert_refused(before)
    assert after.status_code == 200


async def test_the_token_of_a_deleted_account_is_refused(
    client: AsyncClient, session: WriteSession, user: LoggedIn
) -> None:
    await session.execute(delete(User).where(User.email == user.email))
    await session.commit()

    response = await client.get(ME, headers=user.headers)

    assert_refused(response)


async def test_a_token_stays_refused_when_the_account_is_enabled_again(
    client: AsyncClient, session: WriteSession, user: LoggedIn
) -> None:
    for is_active in (False, True):
        await session.execute(update(User).where(User.email == user.email).values(is_active=is_active))
        await session.commit()

    before = await client.get(ME, headers=user.headers)
    after = await client.get(ME, headers=await log_in(client, user.email))

    assert_refused(before)
    assert after.status_code == 200


@pytest.fixture
def guarded_app(settings: Settings, database: Database) -> FastAPI:
    """The application with an operation that needs two scopes."""
    router = routing.router()

    @router.get("/accounts", dependencies=[Security(access_token, scopes=["users:write", "users:read"])])
    async def list_accounts(principal: CurrentPrincipal) -> dict[str, str]:
        """Show who is asking."""
        return _shown(principal)

    app = create_app(settings, database)
    app.include_router(router)
    return app


def _shown(principal: Principal) -> dict[str, str]:
    return {"user_id": str(principal.user_id), "scopes": " ".join(sorted(principal.scopes))}


async def test_a_token_without_the_scope_gets_the_needed_scopes_in_the_challenge(
    guarded_app: FastAPI, user: LoggedIn
) -> None:
    async with running(guarded_app) as client:
        response = await client.get("/accounts", headers=user.headers)

    assert response.status_code == 403
    assert response.json()["code"] == "insufficient_scope"
    challenge = f'Bearer realm="{product.SLUG}", error="insufficient_scope", scope="users:read users:write"'
    assert response.headers.get_list("WWW-Authenticate") == [challenge]


async def test_a_token_with_the_scopes_is_accepted(
    guarded_app: FastAPI, session: WriteSession, hasher: PasswordHasher
) -> None:
    admin = await make_user(session, hasher, role="admin")
    await session.commit()

    async with running(guarded_app) as client:
        response = await client.get("/accounts", headers=await log_in(client, admin.email))

    assert response.status_code == 200
    assert UUID(response.json()["user_id"]) == admin.id
    assert response.json()["scopes"] == ADMINISTRATION


async def test_an_invalid_token_is_401_with_any_scopes(guarded_app: FastAPI) -> None:
    async with running(guarded_app) as client:
        response = await client.get("/accounts", headers={"Authorization": "Bearer x"})

    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == CHALLENGE


async def test_an_operation_documents_the_errors_of_its_guard(guarded_app: FastAPI) -> None:
    operation = guarded_app.openapi()["paths"]["/accounts"]["get"]

    examples = {
        status: set(operation["responses"][status]["content"]["application/problem+json"]["examples"])
        for status in ("401", "403")
    }
    refused = {"unauthorized", "invalid_token", "insufficient_user_authentication"}
    assert examples == {"401": refused, "403": {"insufficient_scope"}}
    assert operation["security"] == [{"login": ["users:write", "users:read"]}]


async def test_the_document_says_where_and_how_to_log_in(guarded_app: FastAPI) -> None:
    scheme = guarded_app.openapi()["components"]["securitySchemes"]["login"]

    assert scheme["type"] == "oauth2"
    assert scheme["flows"] == {"password": {"scopes": SCOPES, "tokenUrl": "/api/v1/auth/token"}}
