"""Checks each operation against the access table. An operation without a row fails."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute, iter_route_contexts
from httpx2 import AsyncClient, Request, Response
from sqlalchemy import select
from starlette.routing import Mount
from starlette.types import Message

from app.auth.models import LoginSession
from app.core import product
from app.core.config import RateLimitSettings, Settings
from app.core.db.database import Database, WriteSession
from app.core.http import routing
from app.core.http.access import PUBLIC_KEY, guards, has_optional_caller
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from tests.access import TARGET, UNKNOWN_ID, WEBSOCKET, Access, authenticated, optional, scoped, table
from tests.aftermath import assert_problem, existing, snapshot
from tests.auth.forge import Forge, signing_jwk
from tests.auth.login_sessions import ticket_of
from tests.auth.socket_routes import ADMIN, ECHO
from tests.auth.socket_routes import router as sockets_router
from tests.auth.test_dependencies import token_of
from tests.auth.test_optional_principal import PATH, optional_router
from tests.conftest import KEY_SET, JoinedDatabase, LoggedIn, cloned, log_in, make_settings, running
from tests.factories import PASSWORD, make_user

REALM = f'Bearer realm="{product.SLUG}"'
ROWS = table()
ACCESS = {operation: access for operation, access in ROWS.items() if not operation.startswith(WEBSOCKET)}
# All that take a token, those among them that need one, and those that need none.
WITH_TOKEN = [operation for operation, access in ACCESS.items() if access.scopes is not None]
GUARDED = [operation for operation in WITH_TOKEN if not ACCESS[operation].is_optional]
OPEN = [operation for operation in ACCESS if operation not in GUARDED]


def declared(app: FastAPI) -> dict[str, tuple[frozenset[str] | None, bool]]:
    """Return the scopes that each operation requires, None for a public one, and whether the login is optional.

    HEAD is left out: it belongs to GET. A mount counts as GET of the paths below it. A WebSocket has the method `WEBSOCKET`.
    """
    found: dict[str, tuple[frozenset[str] | None, bool]] = {}
    for route in iter_route_contexts(app.routes):
        required, is_optional = None, False
        if isinstance(route.original_route, APIRoute) and not (route.openapi_extra or {}).get(PUBLIC_KEY):
            required = frozenset(scope for _, scopes in guards(route.dependant) for scope in scopes)
            is_optional = has_optional_caller(route.dependant)
        if isinstance(route.original_route, APIWebSocketRoute):
            required = frozenset(scope for _, scopes in guards(route.dependant) for scope in scopes)
            found[f"{WEBSOCKET}{route.path}"] = required, False
        if isinstance(route.original_route, Mount):
            found[f"GET {route.path_format}"] = None, False
        found |= {
            f"{method} {route.path}": (required, is_optional) for method in route.methods or () if method != "HEAD"
        }
    return found


def test_the_table_lists_each_operation_with_its_scopes(settings: Settings) -> None:
    rows = {operation: (access.scopes, access.is_optional) for operation, access in ROWS.items()}

    assert declared(create_app(settings)) == rows


def test_the_table_tells_an_optional_login_from_a_required_one(settings: Settings) -> None:
    app = create_app(settings)
    routing.include(app, optional_router())

    access = optional()
    assert declared(app)[f"GET {PATH}"] == (access.scopes, access.is_optional) == (frozenset(), True)


@dataclass(frozen=True)
class Callers:
    """The headers of each kind of caller, and an account that the operations act on."""

    target: LoggedIn
    user: LoggedIn
    admin: LoggedIn
    without_scopes: LoggedIn
    refused: Mapping[str, dict[str, str]]


@pytest.fixture(scope="module")
def unlimited(settings: Settings) -> Settings:
    """Settings without rate limits."""
    return settings.model_copy(update={"rate_limit": RateLimitSettings(enabled=False)})


@pytest.fixture(scope="module")
async def worker_database(template_url: str) -> AsyncIterator[Database]:
    """A database of this module. The callers are stored in it once, and each test is rolled back to that state."""
    async with cloned(template_url) as url:
        database = Database(make_settings(url).database)
        yield database
        await database.dispose()


@pytest.fixture(scope="module")
async def callers(unlimited: Settings, worker_database: Database, hasher: PasswordHasher) -> Callers:
    """Callers who are allowed, and callers whose account was disabled, demoted or deleted after their login."""
    roles = dict.fromkeys(("user", "target", "deleted"), "user") | dict.fromkeys(
        ("admin", "disabled", "demoted"), "admin"
    )
    async with worker_database.begin() as session:
        await make_user(session, role="admin", hashed_password="set")  # The last administrator could not be changed.
        made = {
            name: await make_user(session, hasher, email=f"{name}@example.com", role=role)
            for name, role in roles.items()
        }
    async with running(create_app(unlimited, worker_database)) as client:
        logged_in = {
            name: LoggedIn(str(account.id), account.email, await log_in(client, account.email))
            for name, account in made.items()
        }
        admin = logged_in["admin"]
        form = {"grant_type": "password", "username": admin.email, "password": PASSWORD, "scope": "users:read"}
        narrow = (await client.post("/api/v1/auth/token", data=form)).json()["access_token"]
        for name, change in {"disabled": {"is_active": False}, "demoted": {"role": "user"}}.items():
            response = await client.patch(f"/api/v1/users/{made[name].id}", json=change, headers=admin.headers)
            assert response.status_code == 200
        response = await client.delete(f"/api/v1/users/{made['deleted'].id}", headers=admin.headers)
        assert response.status_code == 204
    return Callers(
        target=logged_in["target"],
        user=logged_in["user"],
        admin=admin,
        without_scopes=LoggedIn(admin.user_id, admin.email, {"Authorization": f"Bearer {narrow}"}),
        refused={
            **{name: logged_in[name].headers for name in ("disabled", "demoted", "deleted")},
            "expired": {"Authorization": f"Bearer {expired(logged_in['user'])}"},
        },
    )


@pytest.fixture(scope="module")
def unlimited_app(unlimited: Settings, joined_database: JoinedDatabase) -> FastAPI:
    """The application without rate limits. Its lifespan runs for each test."""
    return create_app(unlimited, joined_database)


@pytest.fixture
async def client(
    unlimited_app: FastAPI,
    callers: Callers,  # noqa: ARG001  # A test must not begin before they are stored.
    database: Database,  # noqa: ARG001  # The application uses it.
) -> AsyncIterator[AsyncClient]:
    """A client without rate limits."""
    async with running(unlimited_app) as client:
        yield client


def expired(user: LoggedIn) -> str:
    """Return a token of this account that expired an hour ago."""
    forge = Forge(token_of(user), signing_jwk(KEY_SET))
    return forge.with_claims(iat=forge.claims["iat"] - 3600, exp=forge.claims["iat"] - 3000)


async def prepare(session: WriteSession, operation: str, callers: Callers) -> None:
    """Add the rows that make the request of a refused or anonymous caller valid."""
    await ACCESS[operation].prepare(session, UUID(callers.target.user_id))
    await session.commit()


async def call(client: AsyncClient, operation: str, callers: Callers, headers: Mapping[str, str]) -> Response:
    """Send the request without a caller of its own: it names the target."""
    target = UUID(callers.target.user_id)
    return await client.request(**ACCESS[operation].request(operation, target, target, headers=headers))


async def call_allowed(
    client: AsyncClient, session: WriteSession, callers: Callers, operation: str, access: Access
) -> list[Response]:
    """Send the request of each caller who is allowed, after its preparation."""
    responses = []
    for caller in [callers.admin] if access.scopes else [callers.user, callers.without_scopes]:
        caller_id = UUID(caller.user_id)
        await access.prepare(session, caller_id)
        await session.commit()
        request = access.request(operation, caller_id, UUID(callers.target.user_id), headers=caller.headers)
        responses.append(await client.request(**request))
    return responses


@pytest.mark.parametrize("operation", GUARDED)
async def test_a_caller_without_a_token_is_refused(
    client: AsyncClient, session: WriteSession, callers: Callers, operation: str
) -> None:
    await prepare(session, operation, callers)
    before = await snapshot(session)

    response = await call(client, operation, callers, {})

    assert_problem(response, 401, "unauthorized")
    assert response.headers["www-authenticate"] == REALM
    assert await snapshot(session) == before


@pytest.mark.parametrize("operation", WITH_TOKEN)
async def test_a_caller_with_a_token_that_is_not_valid_is_refused(
    client: AsyncClient, session: WriteSession, callers: Callers, operation: str
) -> None:
    await prepare(session, operation, callers)
    before = await snapshot(session)

    refused = {name: await call(client, operation, callers, headers) for name, headers in callers.refused.items()}

    for response in refused.values():
        assert_problem(response, 401, "invalid_token")
        assert 'error="invalid_token"' in response.headers["www-authenticate"]
    # The response does not reveal the reason.
    assert len({response.headers["www-authenticate"] for response in refused.values()}) == 1
    assert await snapshot(session) == before


@pytest.mark.parametrize("operation", [operation for operation in WITH_TOKEN if ACCESS[operation].scopes])
async def test_a_caller_without_the_scope_is_refused(
    client: AsyncClient, session: WriteSession, callers: Callers, operation: str
) -> None:
    scopes = ACCESS[operation].scopes or frozenset()
    await prepare(session, operation, callers)
    before = await snapshot(session)

    responses = [
        await call(client, operation, callers, headers) for headers in (callers.user.headers, callers.target.headers)
    ]
    if "users:read" not in scopes:
        responses.append(await call(client, operation, callers, callers.without_scopes.headers))

    for response in responses:
        assert_problem(response, 403, "insufficient_scope")
        challenge = f'{REALM}, error="insufficient_scope", scope="{" ".join(sorted(scopes))}"'
        assert response.headers["www-authenticate"] == challenge
    assert await snapshot(session) == before


@pytest.mark.parametrize("operation", WITH_TOKEN)
async def test_an_allowed_caller_is_accepted(
    client: AsyncClient, session: WriteSession, callers: Callers, operation: str
) -> None:
    access = ACCESS[operation]

    responses = await call_allowed(client, session, callers, operation, access)

    assert all(access.accepts(response.status_code) for response in responses), [r.text for r in responses]


@pytest.mark.parametrize("operation", OPEN)
async def test_an_open_operation_needs_no_token(
    client: AsyncClient, session: WriteSession, callers: Callers, operation: str
) -> None:
    await prepare(session, operation, callers)

    response = await call(client, operation, callers, {})

    assert ACCESS[operation].accepts(response.status_code), response.text
    assert "www-authenticate" not in response.headers


async def test_a_row_can_expect_another_status(client: AsyncClient, session: WriteSession, callers: Callers) -> None:
    access = scoped("users:write", json={"email": TARGET}, status=409)

    (response,) = await call_allowed(client, session, callers, "POST /api/v1/users", access)

    assert response.json()["code"] == "email_taken"
    assert [status for status in (201, 404, 409) if access.accepts(status)] == [409]


async def test_a_row_can_send_a_query_a_file_or_another_type() -> None:
    query, file = Access(options={"params": {"q": "x"}}), Access(options={"files": {"file": ("a.png", b"PNG")}})
    table = Access(options={"content": b"a,b", "headers": {"Content-Type": "text/csv"}})

    requests = [
        Request(**access.request("POST http://test/things", UUID(int=1), UUID(int=2), headers={"X-Caller": "1"}))
        for access in (query, file, table)
    ]

    assert str(requests[0].url) == "http://test/things?q=x"
    assert requests[1].headers["content-type"].startswith("multipart/form-data")
    assert b'filename="a.png"' in await requests[1].aread()
    assert (requests[2].headers["content-type"], await requests[2].aread()) == ("text/csv", b"a,b")
    assert [request.headers["x-caller"] for request in requests] == ["1", "1", "1"]


async def test_a_row_can_send_another_body_for_each_caller(
    client: AsyncClient, session: WriteSession, callers: Callers
) -> None:
    access = authenticated(json=lambda caller: {"full_name": f"Name of {caller}"})

    responses = await call_allowed(client, session, callers, "PATCH /api/v1/users/me", access)

    assert [access.accepts(response.status_code) for response in responses] == [True, True]
    for caller in (callers.user, callers.admin):
        assert (await existing(session, caller.user_id)).full_name == f"Name of {caller.user_id}"


async def test_a_row_can_prepare_what_each_caller_needs(
    client: AsyncClient, session: WriteSession, callers: Callers
) -> None:
    async def add_session(session: WriteSession, caller: UUID) -> None:
        end = datetime.now(UTC) + timedelta(hours=1)
        session.add(
            LoginSession(
                id=caller,
                user_id=caller,
                nonce=b"nonce",
                pepper_id=1,
                scope="",
                idle_expires_at=end,
                absolute_expires_at=end,
                device_family="",
            )
        )

    access = authenticated(path=lambda caller: {"session_id": caller}, prepare=add_session)
    operation = "DELETE /api/v1/users/me/sessions/{session_id}"

    responses = await call_allowed(client, session, callers, operation, access)

    assert [access.accepts(response.status_code) for response in responses] == [True, True]
    ended = select(LoginSession.id).where(LoginSession.revoke_reason == "user")
    assert {str(id_) for id_ in await session.scalars(ended)} == {callers.user.user_id, callers.admin.user_id}


SOCKETS: Mapping[str, Access] = {
    f"{WEBSOCKET}{ECHO}": authenticated(),
    f"{WEBSOCKET}{ADMIN}/{{room_id}}": scoped("users:write", path={"room_id": UNKNOWN_ID}),
}


async def test_each_websocket_refuses_and_accepts_as_the_table_says(
    settings: Settings, database: Database, callers: Callers, client: AsyncClient
) -> None:
    app = create_app(settings, database)
    routing.include(app, sockets_router)
    rows = {**{name: access for name, access in ROWS.items() if name.startswith(WEBSOCKET)}, **SOCKETS}
    target = UUID(callers.target.user_id)
    scopes = declared(app)

    async with app.router.lifespan_context(app) as state:
        for operation, access in rows.items():
            path = str(access.request(operation, target, target)["url"])
            answers = {
                "nobody": await handshake(app, state, path, "ticket"),
                **{
                    name: await handshake(app, state, path, "ticket", await ticket_of(client, caller.headers))
                    for name, caller in {"user": callers.user, "admin": callers.admin}.items()
                },
            }

            assert scopes[operation] == (access.scopes, False)
            assert answers == {"nobody": 401, "user": 403 if access.scopes else 101, "admin": 101}, operation


async def handshake(app: FastAPI, state: Any, path: str, *subprotocols: str) -> int:
    """Return the status of a handshake; 101 if it is accepted."""
    received: list[Message] = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}]
    sent: list[Message] = []

    async def receive() -> Message:
        return received.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": path, "query_string": b"", "headers": [], "subprotocols": list(subprotocols)}
    await app({**scope, "extensions": {"websocket.http.response": {}}, "state": dict(state or {})}, receive, send)
    return 101 if sent[0]["type"] == "websocket.accept" else int(sent[0]["status"])
