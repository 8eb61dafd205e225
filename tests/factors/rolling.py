"""A client of `make rolling` whose account has a second factor."""

import asyncio
from typing import Any

from httpx2 import AsyncClient

from app.core.db.database import Database
from tests.conftest import make_settings
from tests.drill.fleet import TOKEN, Fleet, bearer, form, read_and_refresh
from tests.factories import PASSWORD
from tests.factors.phone import CONFIRM, REAUTHENTICATE, SECOND_LEG, TOTP, Phone, forget_used_codes

REFUSED = "password alone, refused"


async def act(fleet: Fleet, email: str, stopping: asyncio.Event) -> None:
    """Set a second factor up on the new release, use the session on both, and try the password alone on the earlier one."""
    database = Database(make_settings(fleet.url).database)
    async with AsyncClient(timeout=30) as client:
        while not fleet.running("now"):  # noqa: ASYNC110  # The drill starts one.
            await asyncio.sleep(0.1)
        phone, pair = await set_up(fleet, client, email)
        while not stopping.is_set():
            pair = await read_and_refresh(fleet, client, pair)
            await try_password_alone(fleet, client, email, pair)
            if fleet.running("now"):
                async with database.begin() as session:
                    await forget_used_codes(session)
                # Without a new process, the owner can use the session, but not begin another one.
                pair = await log_in_with_code(fleet, client, email, phone) or pair
    await database.dispose()
    if not fleet.results[REFUSED]:
        fleet.failures.append("no password alone was tried on the earlier release")


async def set_up(fleet: Fleet, client: AsyncClient, email: str) -> tuple[Phone, dict[str, Any]]:
    first = await fleet.send(client, "login", "POST", TOKEN, data=form(email), release="now")
    pending = await fleet.send(client, "setup", "POST", TOTP, headers=bearer(first), expected=201, release="now")
    phone = Phone(pending["secret"])
    code = {"code": phone.code()}
    return phone, await fleet.send(client, "setup", "POST", CONFIRM, json=code, headers=bearer(first), release="now")


async def log_in_with_code(fleet: Fleet, client: AsyncClient, email: str, phone: Phone) -> dict[str, Any]:
    first = await fleet.send(client, "first leg", "POST", TOKEN, data=form(email), expected=403, release="now")
    if not first:
        return {}
    body = {"mfa_token": first["mfa_token"], "code": phone.code()}
    return await fleet.send(client, "second leg", "POST", SECOND_LEG, json=body, release="now")


async def try_password_alone(fleet: Fleet, client: AsyncClient, email: str, pair: dict[str, Any]) -> None:
    """The earlier release refuses a login, and to renew the session. It says that another attempt may succeed."""
    attempts: list[tuple[str, dict[str, Any]]] = [(TOKEN, {"data": form(email)})]
    if pair:
        attempts.append((REAUTHENTICATE, {"json": {"password": PASSWORD}, "headers": bearer(pair)}))
    for path, request in attempts:
        response = await fleet.request(client, "password alone", "POST", path, release="before", **request)
        if response is None:
            continue
        if response.status_code != 503 or "Retry-After" not in response.headers or "access_token" in response.text:
            fleet.failures.append(f"password alone at {path}: {response.status_code} {response.text}")
        else:
            fleet.results[REFUSED] += 1
