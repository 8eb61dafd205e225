"""Operations for everybody that show more to a caller who is logged in."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Response
from fastapi.responses import PlainTextResponse
from httpx2 import AsyncClient
from httpx2 import Response as HttpResponse
from sqlalchemy import update

from app.auth.dependencies import OptionalPrincipal
from app.core.config import Settings
from app.core.db.database import Database, WriteSession
from app.core.http import routing
from app.core.http.access import undeclared_operations
from app.core.http.etags import IfNoneMatch
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from app.users.models import User
from tests.aftermath import assert_problem
from tests.auth.forge import Forge, signing_jwk
from tests.auth.test_dependencies import BARE, token_of
from tests.auth.test_tokens import CHALLENGE
from tests.conftest import KEY_SET, LoggedIn, log_in, running
from tests.factories import PASSWORD, make_user

PATH = "/greeting"


def assert_refused(response: HttpResponse) -> None:
    assert_problem(response, 401, "invalid_token")
    assert response.headers.get_list("WWW-Authenticate") == [CHALLENGE]


class Thing:
    """A row with a version."""

    version = 7


def optional_router() -> Any:
    router = routing.router(tags=["greetings"])

    @router.get(PATH)
    async def read_greeting(principal: OptionalPrincipal, response: Response) -> dict[str, str | None]:
        """Greet the caller."""
        response.headers["Cache-Control"] = "max-age=60"
        return {"user_id": str(principal.user_id) if principal else None}

    @router.get("/plain", response_class=PlainTextResponse)
    async def read_plain(principal: OptionalPrincipal) -> PlainTextResponse:
        """Greet the caller in plain text."""
        return PlainTextResponse(str(principal), headers={"Cache-Control": "max-age=60", "Vary": "Accept"})

    @router.get("/tagged")
    async def read_tagged(_principal: OptionalPrincipal, if_none_match: IfNoneMatch) -> None:
        """Return a row that has a tag."""
        if_none_match.tag(Thing())

    return router


@pytest.fixture
def app(settings: Settings, database: Database) -> FastAPI:
    app = create_app(settings, database)
    routing.include(app, optional_router())
    return app


@pytest.fixture
async def visitor(app: FastAPI) -> AsyncIterator[AsyncClient]:
    """A client of the application with the operations."""
    async with running(app) as client:
        yield client


async def test_without_an_authorization_header_the_caller_is_anonymous(visitor: AsyncClient) -> None:
    response = await visitor.get(PATH)

    assert (response.status_code, response.json()) == (200, {"user_id": None})
    assert "www-authenticate" not in response.headers


async def test_a_valid_token_names_the_caller(visitor: AsyncClient, user: LoggedIn) -> None:
    response = await visitor.get(PATH, headers=user.headers)

    assert (response.status_code, response.json()) == (200, {"user_id": user.user_id})


async def test_a_token_with_any_scopes_names_the_caller(
    visitor: AsyncClient, session: WriteSession, hasher: PasswordHasher
) -> None:
    admin = await make_user(session, hasher, role="admin")
    await session.commit()
    form = {"grant_type": "password", "username": admin.email, "password": PASSWORD, "scope": "users:read"}
    token = (await visitor.post("/api/v1/auth/token", data=form)).json()["access_token"]

    response = await visitor.get(PATH, headers={"Authorization": f"Bearer {token}"})

    assert response.json() == {"user_id": str(admin.id)}


async def test_an_expired_token_is_refused(visitor: AsyncClient, user: LoggedIn) -> None:
    forge = Forge(token_of(user), signing_jwk(KEY_SET))
    expired = forge.with_claims(iat=forge.claims["iat"] - 7200, exp=forge.claims["exp"] - 7200)

    response = await visitor.get(PATH, headers={"Authorization": f"Bearer {expired}"})

    assert_refused(response)


async def test_a_revoked_token_is_refused(visitor: AsyncClient, session: WriteSession, user: LoggedIn) -> None:
    await session.execute(update(User).where(User.email == user.email).values(is_active=False))
    await session.commit()

    response = await visitor.get(PATH, headers=user.headers)

    assert_refused(response)


async def test_the_token_of_an_ended_session_is_refused(visitor: AsyncClient, user: LoggedIn) -> None:
    (listed,) = (await visitor.get("/api/v1/users/me/sessions", headers=user.headers)).json()["items"]
    await visitor.delete(f"/api/v1/users/me/sessions/{listed['id']}", headers=user.headers)

    refused = await visitor.get(PATH, headers=user.headers)
    anonymous = await visitor.get(PATH)
    again = await visitor.get(PATH, headers=await log_in(visitor, user.email))

    assert_refused(refused)
    assert [anonymous.json()["user_id"], again.json()["user_id"]] == [None, user.user_id]


@pytest.mark.parametrize(
    ("value", "challenge"),
    [
        ("Bearer", CHALLENGE),
        ("Bearer x", CHALLENGE),
        ("Bearer a.b.c", CHALLENGE),
        ("", BARE),
        ("Basic dXNlcjpwYXNzd29yZA==", BARE),
        ("DPoP x", BARE),
    ],
)
async def test_other_credentials_are_refused_and_never_ignored(
    visitor: AsyncClient, value: str, challenge: str
) -> None:
    response = await visitor.get(PATH, headers={"Authorization": value})

    assert response.status_code == 401
    assert response.headers.get_list("WWW-Authenticate") == [challenge]


async def test_two_authorization_headers_are_malformed(visitor: AsyncClient, user: LoggedIn) -> None:
    response = await visitor.get(PATH, headers=[*user.headers.items(), ("Authorization", "Basic x")])

    assert response.status_code == 400


@pytest.mark.parametrize(
    ("path", "headers", "vary"),
    [
        (PATH, {}, "Authorization"),
        ("/plain", {}, "Accept, Authorization"),
        ("/tagged", {"If-None-Match": '"7"'}, "Authorization"),
    ],
)
async def test_caches_keep_the_responses_of_callers_apart(
    visitor: AsyncClient, user: LoggedIn, path: str, headers: dict[str, str], vary: str
) -> None:
    responses = [await visitor.get(path, headers={**headers, **caller}) for caller in ({}, user.headers)]

    assert [response.headers["vary"] for response in responses] == [vary, vary]


async def test_a_public_operation_does_not_vary_by_caller(visitor: AsyncClient) -> None:
    response = await visitor.get("/livez")

    assert "vary" not in response.headers


async def test_the_document_says_that_the_login_is_optional(app: FastAPI) -> None:
    operation = app.openapi()["paths"][PATH]["get"]

    assert operation["security"] == [{"login": []}, {}]
    examples = operation["responses"]["401"]["content"]["application/problem+json"]["examples"]
    assert set(examples) == {"unauthorized", "invalid_token"}
    assert "403" not in operation["responses"]


def test_the_operation_counts_as_declared(app: FastAPI) -> None:
    assert list(undeclared_operations(app)) == []


async def greeted(principal: OptionalPrincipal) -> str:
    return "friend" if principal else "stranger"


async def test_a_dependency_may_take_the_optional_principal(
    settings: Settings, database: Database, user: LoggedIn
) -> None:
    router = routing.router()

    @router.get("/deeper")
    async def read_deeper(name: Annotated[str, Depends(greeted)]) -> str:
        """Greet the caller by name."""
        return name

    app = create_app(settings, database)
    routing.include(app, router)
    async with running(app) as client:
        responses = [await client.get("/deeper", headers=headers) for headers in ({}, user.headers)]

    assert [response.json() for response in responses] == ["stranger", "friend"]
    assert [response.headers["vary"] for response in responses] == ["Authorization"] * 2
    assert app.openapi()["paths"]["/deeper"]["get"]["security"] == [{"login": []}, {}]
