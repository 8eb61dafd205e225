"""Secrets and codes of second factors are in no log, export, audit event, job, error or row."""

import asyncio
import json
from base64 import b32decode

import pytest
from httpx2 import AsyncClient
from sqlalchemy import text

from app.core.db.database import Database, WriteSession
from app.core.security.hashing import PasswordHasher
from tests.auth.login_sessions import ME
from tests.auth.post import bearer, pair_of
from tests.conftest import LoggedIn, make_settings
from tests.factories import make_user
from tests.factors.phone import (
    CODES,
    CONFIRM,
    NOBODYS_CODE,
    REAUTHENTICATE,
    SECOND_LEG,
    TOTP,
    Enrolled,
    enrol,
    first_leg,
    log_in_with_code,
    second_leg,
)
from tests.servers import real_server

EMAIL = "ada@example.com"


def spellings(owner: Enrolled, *more: str) -> set[str]:
    """Return every secret of an account in the forms in which it could be written down."""
    raw = b32decode(owner.phone.secret)
    codes = {code for one in owner.recovery_codes for code in (one, one.replace("-", ""))}
    return {owner.phone.secret, raw.hex(), *codes, *more}


async def test_the_export_says_when_the_factor_was_used_and_no_secret(client: AsyncClient, owner: Enrolled) -> None:
    response = await client.get(f"{ME}/export", headers=owner.pair.headers)

    assert response.status_code == 200
    assert response.json()["factors"].keys() == {"created_at", "last_used_at"}
    assert None not in response.json()["factors"].values()
    assert not [secret for secret in spellings(owner) if secret in response.text]


async def test_the_export_of_an_account_without_a_factor_says_so(client: AsyncClient, user: LoggedIn) -> None:
    response = await client.get(f"{ME}/export", headers=user.headers)

    assert response.json()["factors"] is None


async def test_events_jobs_and_rows_hold_no_secret(client: AsyncClient, session: WriteSession, owner: Enrolled) -> None:
    token = await first_leg(client, owner.email)
    await second_leg(client, token, recovery_code=owner.recovery_codes[0])
    await log_in_with_code(client, owner)

    for table in (
        "audit_events",
        "procrastinate_jobs",
        "totp_secrets",
        "recovery_codes",
        "login_challenges",
        "sessions",
    ):
        rows = (await session.execute(text(f"SELECT one::text FROM {table} AS one"))).scalars().all()  # noqa: S608  # Our own names.
        assert not [secret for secret in spellings(owner, token) for row in rows if secret in row], table


async def test_errors_hold_no_secret(client: AsyncClient, owner: Enrolled) -> None:
    token = await first_leg(client, owner.email)
    code, recovery_code = owner.phone.wrong(), owner.recovery_codes[0]
    bodies = (
        {"mfa_token": token, "code": code},
        {"mfa_token": token, "code": f"{code}x"},
        {"mfa_token": token, "code": code, "recovery_code": recovery_code},
        {"mfa_token": f"{token}x", "recovery_code": recovery_code},
        {"mfa_token": token, "recovery_code": NOBODYS_CODE, "unknown": recovery_code},
    )

    texts = [(await client.post(SECOND_LEG, json=body)).text for body in bodies]

    assert not [secret for secret in (token, code, recovery_code) for answer in texts if secret in answer]


@pytest.mark.slow
async def test_no_log_of_a_server_holds_a_secret(clone_url: str, hasher: PasswordHasher) -> None:
    database = Database(make_settings(clone_url).database)
    async with database.begin() as session:
        user = await make_user(session, hasher, email=EMAIL)
    await database.dispose()

    async with (
        real_server(clone_url, APP_LOG__LEVEL="debug") as server,
        AsyncClient(base_url=server.base_url, timeout=60) as client,
    ):
        owner = await enrol(client, LoggedIn(str(user.id), EMAIL, bearer(await pair_of(client, EMAIL))))
        token = await first_leg(client, EMAIL)
        wrong, right = owner.phone.wrong(), owner.phone.code(steps=1)
        await second_leg(client, token, code=wrong)
        await second_leg(client, token, code=right)
        await client.post(REAUTHENTICATE, json={"recovery_code": owner.recovery_codes[0]}, headers=owner.pair.headers)
        await client.post(CONFIRM, json={"code": right}, headers=owner.pair.headers)
        codes = (await client.post(CODES, headers=owner.pair.headers)).json()["recovery_codes"]
        await client.request("DELETE", TOTP, headers=owner.pair.headers)
        # The access line is written after the response.
        await asyncio.sleep(0.2)
        values = [value for line in server.lines() for value in words(line)]

    assert values
    found = [secret for secret in spellings(owner, token, *codes) for value in values if secret in value]
    # A code is short, so it may be a part of another number.
    assert not [*found, *({wrong, right} & set(values))]


def words(line: str) -> list[str]:
    """Return the values of a structured line, or the line itself."""
    return [str(value) for value in json.loads(line).values()] if line.startswith("{") else [line]
