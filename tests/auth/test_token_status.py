"""Whether a verified token is still valid, decided from memory and by a query, with real connections."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from uuid import UUID, uuid4

import pytest
from fastapi import FastAPI
from httpx2 import AsyncClient
from sqlalchemy import event, text

from app.audit.service import Actor
from app.auth.access.tokens import AccessTokens
from app.auth.dependencies import CurrentPrincipal, Principal
from app.auth.errors import InsufficientScopeError
from app.auth.settings import AuthSettings, issuer
from app.core.config import Settings
from app.core.db.database import Database, WriteSession
from app.core.http import routing
from app.core.security.hashing import PasswordHasher
from app.core.security.keys import parse_key_ring
from app.main import create_app
from app.users.roles import granted
from tests.aftermath import assert_problem, snapshot
from tests.auth.forge import Forge, signing_jwk
from tests.auth.login_sessions import ME, SESSIONS, Pair, is_accepted, start
from tests.conftest import KEY_SET, cloned, make_settings, running
from tests.factories import PASSWORD, make_user
from tests.test_access import ACCESS

WHO = "/who"
MODES = pytest.mark.parametrize("access_check", ["memory", "database"])
# Long enough for a busy machine.
PATIENCE = 20.0


@pytest.fixture(scope="module")
async def shared_url(template_url: str) -> AsyncIterator[str]:
    """A database with real connections, for tests that leave each other alone in it."""
    async with cloned(template_url) as url:
        yield url


def with_who(settings: Settings, database: Database) -> FastAPI:
    """The application with an operation that asks nothing of the database itself."""
    router = routing.router()

    @router.get(WHO)
    async def show_caller(principal: CurrentPrincipal) -> str:
        """Show who is asking."""
        return str(principal.user_id)

    app = create_app(settings, database)
    app.include_router(router)
    return app


@asynccontextmanager
async def service(url: str, access_check: str) -> AsyncIterator[tuple[AsyncClient, Database]]:
    """Run the application, wait until it is ready, and give its database."""
    settings = make_settings(url, auth={"access_check": access_check})
    database = Database(settings.database)
    async with running(with_who(settings, database)) as client:
        await until(partial(is_ready, client), within=10)
        yield client, database
    await database.dispose()


async def is_ready(client: AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 200


async def until(condition: Callable[[], Awaitable[bool]], *, within: float) -> float:
    """Ask until it is so, and give the seconds that took."""
    started = time.monotonic()
    async with asyncio.timeout(within):
        while not await condition():  # noqa: ASYNC110  # Another process, or the database, makes it so.
            await asyncio.sleep(0.002)
    return time.monotonic() - started


async def answers(client: AsyncClient, tokens: Pair) -> int:
    return (await client.get(WHO, headers=tokens.headers)).status_code


async def run(database: Database, statement: str, **values: object) -> None:
    async with database.begin() as session:
        await session.execute(text(statement), values)


async def add_account(database: Database, hasher: PasswordHasher, role: str = "user") -> str:
    async with database.begin() as session:
        return (await make_user(session, hasher, role=role)).email


ENDS = {
    "session": "UPDATE sessions SET revoked_at = now(), revoke_reason = 'admin' WHERE id = :session_id",
    "disabled": "UPDATE users SET is_active = false WHERE id = :user_id",
    "role": "UPDATE users SET role = 'admin', authz_version = authz_version + 1 WHERE id = :user_id",
    "deleted": "DELETE FROM users WHERE id = :user_id",
}


@MODES
@pytest.mark.usefixtures("without_polls")
async def test_a_revocation_ends_its_tokens_at_once_and_no_others(
    shared_url: str, hasher: PasswordHasher, access_check: str
) -> None:
    async with service(shared_url, access_check) as (client, database):
        bystander = await start(client, await add_account(database, hasher))
        for name, statement in ENDS.items():
            tokens = await start(client, await add_account(database, hasher))
            assert await answers(client, tokens) == 200

            values = {"session_id": tokens.session_id, "user_id": UUID(tokens.claims["sub"])}
            await run(database, statement, **{key: value for key, value in values.items() if f":{key}" in statement})
            if access_check == "database":
                assert await answers(client, tokens) == 401, name
            await until(partial(refused, client, tokens), within=PATIENCE)

            assert await answers(client, bystander) == 200, name


async def refused(client: AsyncClient, tokens: Pair) -> bool:
    response = await client.get(WHO, headers=tokens.headers)
    if response.status_code == 401:
        assert_problem(response, 401, "invalid_token")
    return response.status_code == 401


@MODES
async def test_a_revocation_that_is_rolled_back_ends_nothing(
    shared_url: str, hasher: PasswordHasher, access_check: str
) -> None:
    async with service(shared_url, access_check) as (client, database):
        tokens = await start(client, await add_account(database, hasher))

        async with database.sessions() as session:
            await session.execute(text(ENDS["session"]), {"session_id": tokens.session_id})
            await session.rollback()

        await asyncio.sleep(0.05)
        assert await answers(client, tokens) == 200


@pytest.mark.parametrize(("access_check", "queries"), [("memory", 0), ("database", 1)])
async def test_only_the_database_mode_queries_for_each_request(
    shared_url: str, hasher: PasswordHasher, access_check: str, queries: int
) -> None:
    async with service(shared_url, access_check) as (client, database):
        tokens = await start(client, await add_account(database, hasher))
        statements: list[str] = []

        def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            statements.append(statement)

        for engine in (database.engine, database.read_engine):
            event.listen(engine.sync_engine, "before_cursor_execute", note)
        assert await answers(client, tokens) == 200

    assert len(statements) == queries


async def test_changes_of_credentials_and_accounts_always_query_the_database(
    shared_url: str, hasher: PasswordHasher
) -> None:
    async with service(shared_url, "memory") as (client, database):
        email = await add_account(database, hasher, role="admin")
        tokens, other = await start(client, email), await start(client, email)
        me = f"/api/v1/users/{tokens.claims['sub']}"
        # A revocation without a notification, as if it had not arrived yet.
        await run(database, "ALTER TABLE sessions DISABLE TRIGGER sessions_end_is_published")
        await run(database, ENDS["session"], session_id=tokens.session_id)
        operations = [
            ("POST", "/api/v1/auth/reauthenticate", {"password": PASSWORD}),
            ("PUT", f"{ME}/password", {"current_password": PASSWORD, "new_password": "another long pass phrase"}),
            ("DELETE", ME, None),
            ("DELETE", SESSIONS, None),
            ("DELETE", f"{SESSIONS}/{other.session_id}", None),
            ("POST", "/api/v1/users", {"email": "made@example.com"}),
            ("PATCH", me, {"full_name": "Changed"}),
            ("DELETE", me, None),
            ("DELETE", f"{me}/sessions", None),
            ("POST", f"{me}/password-reset", None),
        ]

        in_memory = await answers(client, tokens)
        for method, path, body in operations:
            response = await client.request(method, path, json=body, headers=tokens.headers)
            assert (response.status_code, response.json()["code"]) == (401, "invalid_token"), (method, path)

        await run(database, "ALTER TABLE sessions ENABLE TRIGGER sessions_end_is_published")

        assert in_memory == 200
        assert await is_accepted(client, other)
        assert (await start(client, email)).body["scope"]


async def test_an_account_that_is_read_anyway_is_checked_as_well(shared_url: str, hasher: PasswordHasher) -> None:
    async with service(shared_url, "memory") as (client, database):
        tokens = await start(client, await add_account(database, hasher))
        await run(database, "ALTER TABLE users DISABLE TRIGGER users_change_is_published")
        await run(database, ENDS["disabled"], user_id=UUID(tokens.claims["sub"]))
        await run(database, "ALTER TABLE users ENABLE TRIGGER users_change_is_published")

        assert await answers(client, tokens) == 200
        assert not await is_accepted(client, tokens)


@MODES
async def test_without_state_and_database_the_response_is_503(access_check: str) -> None:
    settings = make_settings("postgresql://nobody@127.0.0.1:1/nothing", auth={"access_check": access_check})
    ring = parse_key_ring(KEY_SET, source="tests")
    issuing = AccessTokens(ring, issuer=issuer(settings), audience=settings.of(AuthSettings).audience, lifetime=600)
    now = int(time.time())
    token, _ = issuing.issue(
        user_id=uuid4(),
        session_id=uuid4(),
        version=1,
        scopes=[],
        auth_time=now,
        acr="aal1",
        amr=["pwd"],
        session_ends=now + 600,
    )
    database = Database(settings.database)

    async with running(with_who(settings, database)) as client:
        good = await client.get(WHO, headers={"Authorization": f"Bearer {token}"})
        bad = await client.get(WHO, headers={"Authorization": f"Bearer {token[:-4]}AAAA"})
    await database.dispose()

    assert_problem(good, 503, "database_unavailable")
    assert int(good.headers["Retry-After"]) >= 1
    assert_problem(bad, 401, "invalid_token")


async def test_a_genuine_token_needs_an_existing_account_and_session(shared_url: str, hasher: PasswordHasher) -> None:
    async with service(shared_url, "database") as (client, database):
        mine = await start(client, await add_account(database, hasher))
        theirs = await start(client, await add_account(database, hasher))
        forge = Forge(mine.access, signing_jwk(KEY_SET))

        for claims in (
            {"sid": str(uuid4())},
            {"sub": str(uuid4())},
            {"sid": str(theirs.session_id)},
            {"sub": theirs.claims["sub"]},
            {"ver": 2},
            {"ver": 0},
        ):
            response = await client.get(WHO, headers={"Authorization": f"Bearer {forge.with_claims(**claims)}"})
            assert_problem(response, 401, "invalid_token")

        assert await answers(client, mine) == 200


SCOPED_WRITES = [
    operation for operation, access in ACCESS.items() if access.scopes and not operation.startswith("GET ")
]


@MODES
@pytest.mark.parametrize("operation", SCOPED_WRITES)
async def test_nothing_is_written_by_a_token_with_a_scope_that_the_role_does_not_grant(
    shared_url: str, hasher: PasswordHasher, access_check: str, operation: str
) -> None:
    access = ACCESS[operation]
    scope = " ".join(sorted(access.scopes or ()))
    async with service(shared_url, access_check) as (client, database):
        tokens = await start(client, await add_account(database, hasher))
        target = tokens.claims["sub"]
        forge = Forge(tokens.access, signing_jwk(KEY_SET))
        headers = {"Authorization": f"Bearer {forge.with_claims(scope=scope)}"}
        async with database.read_sessions() as session:
            before = await snapshot(session)

        request = access.request(operation, UUID(target), UUID(target), headers=headers)
        response = await client.request(**request)

        async with database.read_sessions() as session:
            after = await snapshot(session)
    assert_problem(response, 403, "insufficient_scope")
    assert f'scope="{scope}"' in response.headers["www-authenticate"]
    assert after == before


async def test_a_write_confirms_what_the_role_grants(
    client: AsyncClient, session: WriteSession, hasher: PasswordHasher
) -> None:
    account = await make_user(session, hasher)
    await session.commit()
    claims = (await start(client, account.email)).claims
    principal = Principal(
        user_id=account.id,
        session_id=UUID(claims["sid"]),
        version=claims["ver"],
        scopes=frozenset({"users:write"}),
        auth_time=claims["auth_time"],
        acr="aal1",
        expires_at=claims["exp"],
        needed=frozenset({"users:write"}),
        settings=AuthSettings(),
        visitor=Actor,
    )

    with pytest.raises(InsufficientScopeError):
        await principal.confirm(session)


def test_an_unknown_role_grants_nothing() -> None:
    assert granted("a role of another release") == frozenset()
