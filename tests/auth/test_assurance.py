"""Operations and roles that need a second factor, or a recent login (RFC 9470)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import pytest
import time_machine
from fastapi import APIRouter
from httpx2 import AsyncClient, Response

from app import startup
from app.audit.service import Actor
from app.auth import second_factor
from app.auth import service as auth_service
from app.auth.access import tickets
from app.auth.dependencies import CurrentPrincipal, Principal, UsersReader, require
from app.auth.errors import InsufficientAuthenticationError, InsufficientScopeError
from app.auth.sessions import service as sessions
from app.auth.settings import AuthSettings
from app.auth.toolkit import Toolkit
from app.core import product
from app.core.config import Settings
from app.core.db.database import Database, WriteSession
from app.core.errors import ConfigurationError
from app.core.http import routing
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from app.users.models import User
from tests.aftermath import assert_problem, snapshot
from tests.auth.code_factor import CodeFactor
from tests.auth.login_sessions import ME, Pair, refresh, start, ticket_of
from tests.conftest import ROOT, make_settings, running
from tests.factories import ADMINISTRATION, make_user
from tests.listings import listings

USERS = "/api/v1/users"
ACTOR = Actor(address="192.0.2.1")
CHALLENGE = (
    f'Bearer realm="{product.SLUG}", error="insufficient_user_authentication", '
    'error_description="A stronger or more recent login is needed", '
)
MODES = pytest.mark.parametrize("access_check", ["memory", "database"])


@dataclass(frozen=True)
class Site:
    """The application, what its services work with, and an administrator."""

    client: AsyncClient
    kit: Toolkit
    admin: User

    async def strong(self, account: User | None = None) -> Pair:
        """Start a session with two factors, as the second leg of a login does."""
        owner = account or self.admin
        async with self.kit.database.begin() as unit:
            user = await sessions.lock_unchanged(unit, owner.id, owner.authz_version)
            pair = await auth_service.complete_login(
                unit, self.kit, ACTOR, user, None, amr=("otp",), is_over_limit=False
            )
        return Pair(pair.model_dump())


@asynccontextmanager
async def site(
    database: Database, database_url: str, admin: User, router: APIRouter | None = None, **auth: str
) -> AsyncIterator[Site]:
    app = create_app(make_settings(database_url, auth=auth), database)
    app.include_router(router or operations())
    kits: list[Toolkit] = []

    async with app.router.lifespan_context(app) as state:
        kits.append(dict(state or {})["auth"])
    async with running(app) as client:
        while (await client.get("/readyz")).status_code != 200:  # The listener loads the revocations.
            pass
        yield Site(client, kits[0], admin)


def operations() -> APIRouter:
    router = routing.router()

    @router.get("/strong", dependencies=[require(acr="aal2")])
    async def read_strong(_principal: CurrentPrincipal) -> None:
        """Needs a second factor."""

    @router.get("/recent", dependencies=[require(max_age=60)])
    async def read_recent(_principal: CurrentPrincipal) -> None:
        """Needs a recent login."""

    @router.get("/both", dependencies=[require(acr="aal2", max_age=60)])
    async def read_both(_principal: CurrentPrincipal) -> None:
        """Needs both."""

    @router.get("/scoped")
    async def read_scoped(principal: UsersReader) -> str:
        """Needs a scope."""
        return principal.acr

    return router


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a second factor."""
    monkeypatch.setattr(second_factor, "installed", CodeFactor)


@pytest.fixture
async def boss(session: WriteSession, hasher: PasswordHasher) -> User:
    boss = await make_user(session, hasher, role="admin")
    await session.commit()
    return boss


def assert_insufficient(response: Response, needs: str) -> None:
    assert_problem(response, 401, "insufficient_user_authentication")
    assert response.headers.get_list("www-authenticate") == [CHALLENGE + needs]


async def test_the_example_of_the_page_needs_a_second_factor(database: Database, database_url: str, boss: User) -> None:
    (example,) = (listing for listing in listings(ROOT / "docs" / "step-up.md") if listing.language == "python")
    module: dict[str, Any] = {}
    exec(compile(example.text, str(example.path), "exec"), module)  # noqa: S102  # A listing of this project.

    async with site(database, database_url, boss, module["router"]) as running:
        weak, strong = await start(running.client, boss.email), await running.strong()
        refused, done = [await running.client.post("/payouts", headers=one.headers) for one in (weak, strong)]

    assert_insufficient(refused, 'acr_values="aal2", max_age=300')
    assert done.status_code == 204


@MODES
async def test_a_role_that_needs_a_factor_has_no_scopes_without_one(
    database: Database, database_url: str, session: WriteSession, boss: User, access_check: str
) -> None:
    async with site(database, database_url, boss, mfa_required_roles="admin", access_check=access_check) as running:
        tokens = await start(running.client, boss.email)
        before = await snapshot(session)
        read = await running.client.get(USERS, headers=tokens.headers)
        written = await running.client.post(USERS, json={"email": "new@example.com"}, headers=tokens.headers)
        own = await running.client.get(ME, headers=tokens.headers)

    assert tokens.body["scope"] == tokens.claims["scope"] == ""
    assert_insufficient(read, 'acr_values="aal2"')
    assert_insufficient(written, 'acr_values="aal2"')
    assert await snapshot(session) == before
    assert own.status_code == 200


@MODES
async def test_a_role_that_needs_a_factor_has_its_scopes_with_one(
    database: Database, database_url: str, boss: User, access_check: str
) -> None:
    async with site(database, database_url, boss, mfa_required_roles="admin", access_check=access_check) as running:
        tokens = await running.strong()
        read = await running.client.get(USERS, headers=tokens.headers)
        written = await running.client.post(USERS, json={"email": "new@example.com"}, headers=tokens.headers)

    assert tokens.body["scope"] == ADMINISTRATION
    assert (read.status_code, written.status_code) == (200, 201)


async def test_a_refresh_gives_no_scopes_that_the_login_did_not_get(
    database: Database, database_url: str, boss: User
) -> None:
    async with site(database, database_url, boss, mfa_required_roles="admin") as running:
        weak = await start(running.client, boss.email)
        again = await refresh(running.client, weak)
        asked = await refresh(running.client, again, scope="users:read")

    assert (again.body["scope"], asked.body["scope"]) == ("", "")
    assert asked.claims["acr"] == "aal1"


@MODES
async def test_a_role_given_later_gives_no_scopes_to_a_session_without_a_factor(
    database: Database, database_url: str, session: WriteSession, hasher: PasswordHasher, boss: User, access_check: str
) -> None:
    other = await make_user(session, hasher)
    await session.commit()

    async with site(database, database_url, boss, mfa_required_roles="admin", access_check=access_check) as running:
        before = await start(running.client, other.email)
        admin = await running.strong()
        promoted = await running.client.patch(f"{USERS}/{other.id}", json={"role": "admin"}, headers=admin.headers)
        after = await refresh(running.client, before)
        read = await running.client.get(USERS, headers=after.headers)

    assert promoted.status_code == 200, promoted.text
    assert after.body["scope"] == ""
    assert_insufficient(read, 'acr_values="aal2"')


@MODES
async def test_without_the_role_a_missing_scope_stays_a_missing_scope(
    database: Database, database_url: str, session: WriteSession, hasher: PasswordHasher, boss: User, access_check: str
) -> None:
    other = await make_user(session, hasher)
    await session.commit()

    async with site(database, database_url, boss, mfa_required_roles="admin", access_check=access_check) as running:
        tokens = await start(running.client, other.email)
        read = await running.client.get(USERS, headers=tokens.headers)

    assert_problem(read, 403, "insufficient_scope")


async def test_a_write_confirms_the_factor_of_the_session(
    database: Database, database_url: str, session: WriteSession, boss: User
) -> None:
    async with site(database, database_url, boss) as running:
        claims = (await start(running.client, boss.email)).claims
    principal = Principal(
        user_id=boss.id,
        session_id=UUID(claims["sid"]),
        version=claims["ver"],
        scopes=frozenset(claims["scope"].split()),
        auth_time=claims["auth_time"],
        acr=claims["acr"],
        expires_at=claims["exp"],
        needed=frozenset({"users:write"}),
        settings=AuthSettings(mfa_required_roles=("admin",)),
        visitor=Actor,
    )

    with pytest.raises(InsufficientAuthenticationError):
        await principal.confirm(session)
    await replace(principal, needed=frozenset()).confirm(session)


@MODES
async def test_tokens_from_before_the_role_needed_a_factor_write_nothing(
    database: Database, database_url: str, boss: User, access_check: str
) -> None:
    async with site(database, database_url, boss) as running:
        tokens = await start(running.client, boss.email)

    async with site(database, database_url, boss, mfa_required_roles="admin", access_check=access_check) as running:
        written = await running.client.post(USERS, json={"email": "new@example.com"}, headers=tokens.headers)

    assert tokens.body["scope"] == ADMINISTRATION
    assert_insufficient(written, 'acr_values="aal2"')


async def test_a_ticket_opens_nothing_that_its_session_lacks_a_factor_for(
    database: Database, database_url: str, boss: User
) -> None:
    settings = AuthSettings(mfa_required_roles=("admin",))
    async with site(database, database_url, boss, mfa_required_roles="admin") as running:
        weak = await start(running.client, boss.email)
        strong = await running.strong()
        refused = await ticket_of(running.client, weak.headers)
        accepted = await ticket_of(running.client, strong.headers)

    with pytest.raises(InsufficientAuthenticationError):
        await tickets.redeem(database, refused, ["users:read"], settings)
    assert "users:read" in (await tickets.redeem(database, accepted, ["users:read"], settings)).scopes


async def test_an_operation_can_need_a_second_factor(database: Database, database_url: str, boss: User) -> None:
    async with site(database, database_url, boss) as running:
        weak, strong = await start(running.client, boss.email), await running.strong()
        refused = await running.client.get("/strong", headers=weak.headers)
        accepted = await running.client.get("/strong", headers=strong.headers)
        anonymous = await running.client.get("/strong")

    assert_insufficient(refused, 'acr_values="aal2"')
    assert accepted.status_code == 200
    assert_problem(anonymous, 401, "unauthorized")


async def test_an_operation_can_need_a_recent_login(database: Database, database_url: str, boss: User) -> None:
    async with site(database, database_url, boss) as running:
        tokens = await start(running.client, boss.email)
        with time_machine.travel(tokens.claims["auth_time"] + 59, tick=False):
            accepted = await running.client.get("/recent", headers=tokens.headers)
        with time_machine.travel(tokens.claims["auth_time"] + 61, tick=False):
            refused = await running.client.get("/recent", headers=tokens.headers)

    assert accepted.status_code == 200
    assert_insufficient(refused, "max_age=60")


async def test_a_refusal_names_all_that_the_operation_needs(database: Database, database_url: str, boss: User) -> None:
    async with site(database, database_url, boss) as running:
        weak, strong = await start(running.client, boss.email), await running.strong()
        refused = await running.client.get("/both", headers=weak.headers)
        accepted = await running.client.get("/both", headers=strong.headers)
        with time_machine.travel(strong.claims["auth_time"] + 61, tick=False):
            late = await running.client.get("/both", headers=strong.headers)

    assert accepted.status_code == 200
    for response in (refused, late):
        assert_insufficient(response, 'acr_values="aal2", max_age=60')


async def test_the_document_of_the_api_lists_the_refusal(database: Database, database_url: str, boss: User) -> None:
    async with site(database, database_url, boss) as running:
        paths = (await running.client.get("/openapi.json")).json()["paths"]

    for path in ("/strong", "/recent", "/both", "/scoped"):
        examples = paths[path]["get"]["responses"]["401"]["content"]["application/problem+json"]["examples"]
        assert InsufficientAuthenticationError.code in examples
    assert InsufficientScopeError.code not in str(paths["/strong"])


def settings_with_roles() -> Settings:
    return make_settings("postgresql://nobody@127.0.0.1/nothing", auth={"mfa_required_roles": "admin"})


@pytest.mark.usefixtures("restored_logging")
def test_the_application_starts_with_a_role_that_needs_a_factor() -> None:
    startup.prepare(settings_with_roles())


@pytest.mark.usefixtures("restored_logging")
def test_the_application_does_not_start_if_no_account_can_have_the_factor_that_a_role_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(second_factor, "installed", lambda: second_factor.SECOND_FACTOR)

    with pytest.raises(
        ConfigurationError, match="APP_AUTH__MFA_REQUIRED_ROLES: no installed feature has second factors"
    ):
        startup.prepare(settings_with_roles())
