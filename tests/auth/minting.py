"""The ways to get tokens, and what each gives to an account that may not have them. Each feature lists its own in `minting.py`."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import asyncpg
from httpx2 import AsyncClient

from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from tests.auth.code_factor import ENROLLED
from tests.auth.login_sessions import TOKEN, start
from tests.conftest import LoggedIn
from tests.factories import PASSWORD, make_user

REAUTHENTICATE = "/api/v1/auth/reauthenticate"

type Change = Literal["none", "disabled", "unverified", "factor", "role"]
"""What is special about the account when the request arrives. `role`: its role needs a second factor."""
type Acr = Literal["aal1", "aal2"]


@dataclass(frozen=True)
class Site:
    """The application. `watcher` is a connection outside of it."""

    client: AsyncClient
    database: Database
    hasher: PasswordHasher
    watcher: asyncpg.Connection

    async def account(self, role: str) -> LoggedIn:
        """Create an account, without a login."""
        async with self.database.begin() as session:
            user = await make_user(session, self.hasher, role=role)
        return LoggedIn(str(user.id), user.email, {})

    async def live_sessions(self, account: LoggedIn) -> dict[UUID, str]:
        """Return the assurance of each live session of an account."""
        statement = "SELECT id, acr FROM sessions WHERE user_id = $1 AND revoked_at IS NULL"
        return {row["id"]: row["acr"] for row in await self.watcher.fetch(statement, UUID(account.user_id))}

    async def execute(self, statement: str, account: LoggedIn) -> None:
        """Run a statement whose `$1` is the id of the account."""
        await self.watcher.execute(statement, UUID(account.user_id))


@dataclass(frozen=True)
class Gives:
    """The response has tokens with this assurance."""

    acr: Acr
    starts_session: bool = False


@dataclass(frozen=True)
class Refuses:
    """The response is an error, and the sessions stay as they are."""

    status: int
    code: str


@dataclass(frozen=True)
class Way:
    """One way to get tokens from an operation."""

    operation: str
    begin: Callable[[Site, LoggedIn], Awaitable[Mapping[str, Any]]]
    """Does what comes before, for an ordinary account, and returns the request that gets tokens. Then the account changes."""
    outcomes: Mapping[Change, Gives | Refuses]
    add_factor: str = f"UPDATE users SET full_name = '{ENROLLED}' WHERE id = $1"  # noqa: S608  # Our own words.
    is_factor_real: bool = False
    """Whether the site has the second factor of the installed feature. Otherwise, it has `CodeFactor`."""


async def _log_in(_site: Site, account: LoggedIn) -> Mapping[str, Any]:
    return {"data": {"grant_type": "password", "username": account.email, "password": PASSWORD}}


async def _refresh(site: Site, account: LoggedIn) -> Mapping[str, Any]:
    pair = await start(site.client, account.email)
    return {"data": {"grant_type": "refresh_token", "refresh_token": pair.refresh}}


async def _give_password(site: Site, account: LoggedIn) -> Mapping[str, Any]:
    pair = await start(site.client, account.email)
    return {"json": {"password": PASSWORD}, "headers": pair.headers}


WAYS = {
    "log in": Way(
        f"POST {TOKEN}",
        _log_in,
        {
            "none": Gives("aal1", starts_session=True),
            "disabled": Refuses(400, "invalid_grant"),
            "unverified": Refuses(403, "email_not_verified"),
            "factor": Refuses(403, "mfa_required"),
            "role": Gives("aal1", starts_session=True),
        },
    ),
    "refresh": Way(
        f"POST {TOKEN}",
        _refresh,
        {
            "none": Gives("aal1"),
            "disabled": Refuses(400, "invalid_grant"),
            # A session of an unverified account began before its address became unverified.
            "unverified": Gives("aal1"),
            "factor": Gives("aal1"),
            "role": Gives("aal1"),
        },
    ),
    "give the password again": Way(
        f"POST {REAUTHENTICATE}",
        _give_password,
        {
            "none": Gives("aal1"),
            "disabled": Refuses(401, "invalid_token"),
            "unverified": Gives("aal1"),
            "factor": Refuses(403, "code_required"),
            "role": Gives("aal1"),
        },
    ),
}
# The functions that use a function which makes tokens: see `DOORS` in test_minting_operations.py.
CALLERS = {
    "app.auth.service._start": {"app.auth.sessions.service.start"},
    "app.auth.service.complete_login": {"app.auth.sessions.service.start"},
    "app.auth.service.reauthenticate": {"app.auth.sessions.service.renew"},
    "app.auth.service._reauthenticate_with_factor.renew": {"app.auth.sessions.service.renew"},
    "app.auth.sessions.service.start": {"app.auth.sessions.service.issue"},
    "app.auth.sessions.service.renew": {"app.auth.sessions.service.issue"},
    "app.auth.sessions.service.issue": {"access_tokens.issue", "app.auth.sessions.refresh_tokens.make"},
    "app.auth.sessions.rotation.refresh": {"app.auth.sessions.service.issue"},
    "app.auth.sessions.rotation._refresh_used": {"app.auth.sessions.service.issue"},
}
