"""Two operations at once never lose the last administrator who can log in, where the role needs a second factor.

A separate connection holds both accounts until both operations wait for them, so that they meet in every round.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import asyncpg
import pytest
from httpx2 import AsyncClient, Response

from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from tests.auth.login_sessions import ME, Pair
from tests.auth.post import PATIENT, Post, log_in
from tests.conftest import KEY_SET, LoggedIn, make_settings, running
from tests.factors.phone import TOTP, Enrolled, enrol, second_leg
from tests.races.site import Site
from tests.volume import plain

USERS = "/api/v1/users"
CAN_LOG_IN = """
    SELECT email FROM users
    WHERE role = 'admin' AND is_active AND hashed_password IS NOT NULL AND email_verified_at IS NOT NULL
"""

type Operation = Callable[[AsyncClient, Enrolled, Enrolled], Coroutine[Any, Any, Response]]
# What an administrator does to the other one, or to their own account.
OPERATIONS: dict[str, Operation] = {
    "disable": lambda client, actor, other: patch(client, actor, other, is_active=False),
    "demote": lambda client, actor, other: patch(client, actor, other, role="user"),
    "delete": lambda client, actor, other: delete(client, actor, f"{USERS}/{other.user_id}"),
    "reset the factor": lambda client, actor, other: delete(client, actor, f"{USERS}/{other.user_id}/mfa"),
    "disable oneself": lambda client, actor, _: patch(client, actor, actor, is_active=False),
    "demote oneself": lambda client, actor, _: patch(client, actor, actor, role="user"),
    "close the account": lambda client, actor, _: delete(client, actor, ME),
    "remove the app": lambda client, actor, _: delete(client, actor, TOTP),
    "reset oneself": lambda client, actor, _: delete(client, actor, f"{USERS}/{actor.user_id}/mfa"),
}
# These take an administrator away, unless they are refused.
REMOVING = ("disable", "demote", "delete", "disable oneself", "demote oneself", "close the account")
# Those that change the other administrator.
ON_THE_OTHER = ("disable", "demote", "delete", "reset the factor")


def target(name: str, actor: Enrolled, other: Enrolled) -> Enrolled:
    return other if name in ON_THE_OTHER else actor


async def patch(client: AsyncClient, actor: Enrolled, target: Enrolled, **body: object) -> Response:
    return await client.patch(f"{USERS}/{target.user_id}", json=body, headers=actor.pair.headers)


async def delete(client: AsyncClient, actor: Enrolled, path: str) -> Response:
    return await client.delete(path, headers=actor.pair.headers)


@pytest.fixture
async def site(clone_url: str, hasher: PasswordHasher) -> AsyncIterator[Site]:
    """An application with real connections, in which administrators need a second factor."""
    settings = make_settings(
        clone_url, rate_limit={"enabled": False}, database=PATIENT, auth={"mfa_required_roles": "admin"}
    )
    database = Database(settings.database)
    watcher = await asyncpg.connect(plain(clone_url))
    async with running(create_app(settings, database)) as client:
        yield Site(client, database, hasher, watcher, Post(database, settings))
    await watcher.close()
    await database.dispose()


async def two_administrators(site: Site) -> list[Enrolled]:
    """Make two administrators with a second factor. There is no other one."""
    await site.watcher.execute("DELETE FROM users")
    return [await enrol(site.client, await site.account(role="admin")) for _ in range(2)]


async def meet[First, Second](
    site: Site, first: Coroutine[Any, Any, First], second: Coroutine[Any, Any, Second]
) -> tuple[First, Second]:
    """Run two operations so that both wait for the same accounts, and then continue at once."""
    async with site.watcher.transaction():
        await site.watcher.execute("SELECT FROM users ORDER BY id FOR UPDATE")
        both = asyncio.create_task(together(first, second))
        await site.until_waiting(both, count=2)
    return await both


async def together[First, Second](
    first: Coroutine[Any, Any, First], second: Coroutine[Any, Any, Second]
) -> tuple[First, Second]:
    tasks = asyncio.create_task(first), asyncio.create_task(second)
    return await tasks[0], await tasks[1]


async def administrators_who_log_in(site: Site, known: list[Enrolled]) -> int:
    """Log every remaining administrator in, and count those who can change accounts again."""
    emails = {row["email"] for row in await site.fetch(CAN_LOG_IN)}
    return sum([await gets_the_scopes(site.client, one) for one in known if one.email in emails])


async def gets_the_scopes(client: AsyncClient, owner: Enrolled) -> bool:
    response = await log_in(client, owner.email)
    if response.status_code == 403:
        token = response.json()["mfa_token"]
        response = await second_leg(client, token, recovery_code=owner.recovery_codes.pop())
    assert response.status_code == 200, response.text
    pair = Pair(response.json())
    if pair.claims["acr"] == "aal1":
        pair = (await enrol(client, LoggedIn(owner.user_id, owner.email, pair.headers))).pair
    return "users:write" in pair.body["scope"]


# Each pair once. The fast run takes those that most often meet.
PAIRS = {
    name: pytest.param(name, list(OPERATIONS)[number:], marks=() if name == "demote oneself" else pytest.mark.slow)
    for number, name in enumerate(OPERATIONS)
}


@pytest.mark.parametrize(("first", "seconds"), PAIRS.values(), ids=PAIRS)
async def test_an_administrator_who_can_log_in_remains(site: Site, first: str, seconds: list[str]) -> None:
    for second in seconds:
        ada, eve = await two_administrators(site)

        responses = await meet(
            site, OPERATIONS[first](site.client, ada, eve), OPERATIONS[second](site.client, eve, ada)
        )

        statuses = [response.status_code for response in responses]
        # 404: the account was deleted by the other operation.
        assert set(statuses) <= {200, 204, 401, 404, 409}, [response.text for response in responses]
        # Both can remove the same account.
        removed = {
            target(name, actor, other).user_id
            for name, actor, other, status in ((first, ada, eve, statuses[0]), (second, eve, ada, statuses[1]))
            if name in REMOVING and status < 300
        }
        remaining = await administrators_who_log_in(site, [ada, eve])
        assert remaining == 2 - len(removed) >= 1, (first, second, statuses)
    assert await site.transactions_left_open() == 0


async def reset_by_command(url: str, owner: Enrolled) -> int:
    """Run `app users reset-mfa` in a process of its own, and return its exit code."""
    environment = {
        **os.environ,
        "APP_ENVIRONMENT": "test",
        "APP_AUTH__SIGNING_KEYS": KEY_SET,
        "APP_DATABASE__LOCK_TIMEOUT": "60s",
        "DATABASE_URL": url,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app", "users", "reset-mfa", owner.email, env=environment
    )
    return await process.wait()


@pytest.mark.slow
async def test_a_reset_by_the_command_leaves_an_administrator_who_can_log_in(site: Site, clone_url: str) -> None:
    for name, operation in OPERATIONS.items():
        ada, eve = await two_administrators(site)

        response, code = await meet(site, operation(site.client, ada, eve), reset_by_command(clone_url, eve))

        # The account may be gone when the command continues.
        assert code == 0 or name == "delete"
        removed = name in REMOVING and response.status_code < 300
        assert await administrators_who_log_in(site, [ada, eve]) == 2 - removed >= 1, name
