"""Accounts for concurrent writes, and every operation that writes."""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from uuid import UUID

import asyncpg
from httpx2 import AsyncClient, Response
from sqlalchemy import event

from app.auth.sessions.cutoff import end_every_session
from app.auth.settings import AuthSettings
from app.core.config import Settings
from app.core.db.database import Database
from app.core.db.failures import sqlstate
from app.core.security.hashing import PasswordHasher
from app.core.security.keys import load_key_ring
from app.jobs.queue import AnyJob, Work, name_of
from app.users import links
from app.users.models import Purpose
from app.worker import PERIODIC
from tests.access import NEW_PASSWORD
from tests.auth.forge import Forge, signing_jwk
from tests.auth.post import Post
from tests.conftest import KEY_SET
from tests.factories import PASSWORD, make_user
from tests.test_access import ACCESS

TOKEN = "/api/v1/auth/token"
_DEADLOCK = "40P01"
_PURPOSES: tuple[Purpose, ...] = ("verify_email", "reset_password", "confirm_email")
_SAVED = ("users", "sessions", "account_links")


@dataclass(frozen=True)
class Party:
    """An account with two login sessions, and the secret of a usable link for each purpose."""

    user_id: UUID
    email: str
    tokens: dict[str, Any]
    other_session: UUID
    secrets: dict[Purpose, str]

    @property
    def headers(self) -> dict[str, str]:
        """Return the header of the first login session.

        The access token is signed again with the current time, because many rounds take longer than its lifetime.
        """
        forge = Forge(self.tokens["access_token"], signing_jwk(KEY_SET))
        age = int(time.time()) - forge.claims["iat"]
        times = {name: forge.claims[name] + age for name in ("iat", "exp", "auth_time")}
        return {"Authorization": f"Bearer {forge.with_claims(**times)}"}


@dataclass
class Crowd:
    """The application and its accounts. `restore` restores their rows, so that tokens and links are valid again."""

    client: AsyncClient
    database: Database
    settings: Settings
    watcher: asyncpg.Connection
    parties: dict[str, Party] = field(default_factory=dict)
    deadlocked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Record each statement that PostgreSQL cancels because of a deadlock."""

        def note(context: Any) -> None:
            if context.sqlalchemy_exception is not None and sqlstate(context.sqlalchemy_exception) == _DEADLOCK:
                self.deadlocked.append(context.statement)

        event.listen(self.database.engine.sync_engine, "handle_error", note)

    @cached_property
    def post(self) -> Post:
        """Runs waiting jobs."""
        return Post(self.database, self.settings)

    @cached_property
    def work(self) -> Work:
        """The argument of jobs."""
        no_mailer: Any = None
        return Work(self.database, no_mailer, load_key_ring(self.settings.of(AuthSettings)), self.settings)

    async def add(self, name: str, hasher: PasswordHasher, **values: Any) -> None:
        """Add an account. Ids ascend in the order in which accounts are added."""
        async with self.database.begin() as session:
            user = await make_user(session, hasher, email=f"{name}@example.com", **values)
            secrets = {}
            for purpose in _PURPOSES:
                moved = f"{name}-moved@example.com" if purpose == "confirm_email" else None
                link_id = await links.create(session, self.work.keys, user.id, purpose, email=moved)
                link = await links.find_live(session, link_id)
                assert link
                secrets[purpose] = links.secret(self.work.keys, link)
        form = {"grant_type": "password", "username": user.email, "password": PASSWORD}
        pairs = [(await self.client.post(TOKEN, data=form)).json() for _ in range(2)]
        rows = await self.watcher.fetch("SELECT id FROM sessions WHERE user_id = $1 ORDER BY id DESC", user.id)
        self.parties[name] = Party(user.id, user.email, pairs[0], rows[0]["id"], secrets)

    async def save(self) -> None:
        """Copy the rows of all accounts."""
        for table in _SAVED:
            await self.watcher.execute(f"CREATE TABLE saved_{table} AS TABLE {table}")

    async def restore(self) -> None:
        """Restore the rows of all accounts from the copy."""
        await self.watcher.execute("DELETE FROM users; DELETE FROM rate_limits; DELETE FROM session_cutoffs")
        for table in _SAVED:
            await self.watcher.execute(f"INSERT INTO {table} SELECT * FROM saved_{table}")  # noqa: S608  # Our own names.
        # The links of the copy expire while many rounds run.
        await self.watcher.execute("UPDATE account_links SET expires_at = now() + interval '1 hour'")

    async def send(self, operation: str, actor: Party, target: Party, request: Mapping[str, Any]) -> Response:
        """Send one request. The actor sends it if the path names the target; otherwise the target itself does."""
        caller = actor if "{user_id}" in operation or operation.endswith(" /api/v1/users") else target
        access = replace(ACCESS[operation], **request)
        headers = {} if access.scopes is None else caller.headers
        sent = access.request(operation, caller.user_id, target.user_id, headers=headers)
        return await self.client.request(**sent)

    async def prepare(self, name: str, target: Party) -> None:
        """Add the rows that a write needs, if it is an operation with own rows in the access table."""
        if access := ACCESS.get(name):
            async with self.database.begin() as session:
                await access.prepare(session, target.user_id)


type Write = Callable[[Crowd, Party, Party], Awaitable[Response | None]]


def _variants(operation: str) -> dict[str, Callable[[Party], Mapping[str, Any]]]:
    """Return the requests of an operation by name, as functions of the target."""
    named: dict[str, dict[str, Callable[[Party], Mapping[str, Any]]]] = {
        "POST /api/v1/auth/token": {
            "log in": lambda target: {"form": _password_form(target, PASSWORD)},
            "fail to log in": lambda target: {"form": _password_form(target, "not the password")},
            "refresh": lambda target: {
                "form": {"grant_type": "refresh_token", "refresh_token": target.tokens["refresh_token"]}
            },
        },
        "POST /api/v1/auth/revoke": {"log out": lambda target: {"form": {"token": target.tokens["refresh_token"]}}},
        "POST /api/v1/auth/verify-email": {
            "verify": lambda target: {"json": {"token": target.secrets["verify_email"]}}
        },
        "POST /api/v1/auth/password/reset": {
            "reset": lambda target: {"json": {"token": target.secrets["reset_password"], "new_password": NEW_PASSWORD}}
        },
        "POST /api/v1/auth/email/confirm": {
            "move": lambda target: {"json": {"token": target.secrets["confirm_email"]}}
        },
        "POST /api/v1/auth/register": {
            "register": lambda target: {"json": {"email": target.email, "password": NEW_PASSWORD}}
        },
        "POST /api/v1/auth/verify-email/resend": {"resend": lambda target: {"json": {"email": target.email}}},
        "POST /api/v1/auth/password/forgot": {"forget": lambda target: {"json": {"email": target.email}}},
        "DELETE /api/v1/users/me/sessions/{session_id}": {
            "end a session": lambda target: {"path": {"session_id": target.other_session}}
        },
        "PATCH /api/v1/users/{user_id}": {
            "rename": lambda _: {"json": {"full_name": "Ada"}},
            "disable": lambda _: {"json": {"is_active": False}},
            "demote": lambda _: {"json": {"role": "user"}},
            "promote": lambda _: {"json": {"role": "admin"}},
        },
    }
    return named.get(operation) or {operation: lambda _: {}}


def _password_form(target: Party, password: str) -> dict[str, str]:
    return {"grant_type": "password", "username": target.email, "password": password}


def _request(operation: str, variant: Callable[[Party], Mapping[str, Any]]) -> Write:
    async def write(crowd: Crowd, actor: Party, target: Party) -> Response:
        response = await crowd.send(operation, actor, target, variant(target))
        if operation.startswith("POST /api/v1/auth/"):
            # The jobs of the request are part of the write.
            await crowd.post.collect()
        return response

    return write


def _job(job: AnyJob) -> Write:
    async def run(crowd: Crowd, _actor: Party, _target: Party) -> None:
        await job(crowd.work)

    return run


async def _log_everybody_out(crowd: Crowd, _actor: Party, _target: Party) -> None:
    await end_every_session(crowd.database, batch=3)


def writes() -> Iterator[tuple[str, Write]]:
    """Yield everything that writes: each operation except GET, each periodic job, and the command of the operator."""
    for operation in ACCESS:
        if not operation.startswith("GET "):
            yield from ((name, _request(operation, variant)) for name, variant in _variants(operation).items())
    yield from ((name_of(periodic.job), _job(periodic.job)) for periodic in PERIODIC)
    yield "log everybody out", _log_everybody_out
