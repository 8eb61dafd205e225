"""The second leg at the same time as every write that locks the same account, waiting logins or factors: no deadlock."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from httpx2 import AsyncClient, Response
from sqlalchemy import event

from app.core.db.database import Database
from app.core.db.failures import sqlstate
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from tests.auth.post import PATIENT, bearer, pair_of
from tests.conftest import LoggedIn, make_settings, running
from tests.factories import make_user
from tests.factors.phone import REAUTHENTICATE, TOTP, Enrolled, enrol, first_leg, second_leg

type Send = Callable[[AsyncClient, Enrolled, Enrolled], Awaitable[Response]]
USERS = "/api/v1/users"
_DEADLOCK = "40P01"
_ROUNDS = 6
OTHERS: dict[str, Send] = {
    "reset the factors": lambda client, admin, owner: client.delete(
        f"{USERS}/{owner.user_id}/mfa", headers=admin.pair.headers
    ),
    "remove the app": lambda client, _, owner: client.delete(TOTP, headers=owner.pair.headers),
    "renew the login": lambda client, _, owner: client.post(
        REAUTHENTICATE, json={"recovery_code": owner.recovery_codes[1]}, headers=owner.pair.headers
    ),
    "disable": lambda client, admin, owner: client.patch(
        f"{USERS}/{owner.user_id}", json={"is_active": False}, headers=admin.pair.headers
    ),
    "end the sessions": lambda client, admin, owner: client.delete(
        f"{USERS}/{owner.user_id}/sessions", headers=admin.pair.headers
    ),
    "delete the account": lambda client, admin, owner: client.delete(
        f"{USERS}/{owner.user_id}", headers=admin.pair.headers
    ),
}


async def owner_of(client: AsyncClient, database: Database, hasher: PasswordHasher, **values: Any) -> Enrolled:
    async with database.begin() as session:
        user = await make_user(session, hasher, **values)
    return await enrol(client, LoggedIn(str(user.id), user.email, bearer(await pair_of(client, user.email))))


@pytest.mark.slow
async def test_no_write_deadlocks_with_a_second_leg(clone_url: str, hasher: PasswordHasher) -> None:
    settings = make_settings(clone_url, database=PATIENT, rate_limit={"enabled": False})
    database = Database(settings.database)
    deadlocked = []

    def note(context: Any) -> None:
        if context.sqlalchemy_exception is not None and sqlstate(context.sqlalchemy_exception) == _DEADLOCK:
            deadlocked.append(context.statement)

    event.listen(database.engine.sync_engine, "handle_error", note)
    statuses = set()
    async with running(create_app(settings, database)) as client:
        admin = await owner_of(client, database, hasher, role="admin")
        await owner_of(client, database, hasher, role="admin")
        for send in OTHERS.values():
            for _ in range(_ROUNDS):
                owner = await owner_of(client, database, hasher)
                tokens = [await first_leg(client, owner.email) for _ in range(3)]
                legs = (second_leg(client, token, code=owner.phone.code(steps=1)) for token in tokens)
                responses = await asyncio.gather(*legs, send(client, admin, owner))
                statuses |= {response.status_code for response in responses}
    await database.dispose()

    assert deadlocked == []
    assert statuses <= {200, 204, 400, 401}
