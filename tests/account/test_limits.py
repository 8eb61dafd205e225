"""Limits on mails, on mailed links, and on a password that is given again to change it."""

from collections.abc import Awaitable
from typing import Any

import pytest
from httpx2 import AsyncClient, Response
from sqlalchemy import text

from app.core.db.database import WriteSession
from app.core.security.hashing import PasswordHasher
from app.users.models import User
from tests.account.measure_enumeration import MAILING
from tests.aftermath import assert_problem, jobs
from tests.auth.post import AUTH, ME, NEW_PASSWORD, Post, bearer, log_in, pair_of, refresh
from tests.auth.test_limits import HERE, THERE, WRONG, Ask, fail, from_address, set_hits
from tests.factories import PASSWORD, make_user


@pytest.fixture
async def ada(session: WriteSession, hasher: PasswordHasher) -> User:
    """An account with a password."""
    account = await make_user(session, hasher, email="ada@example.com")
    await session.commit()
    return account


def put_password(client: AsyncClient, pair: dict[str, Any]) -> Awaitable[Response]:
    body = {"current_password": WRONG, "new_password": NEW_PASSWORD}
    return client.put(f"{ME}/password", json=body, headers=bearer(pair))


async def test_a_password_given_again_may_be_wrong_ten_times(client: AsyncClient, ada: User) -> None:
    pair = await pair_of(client, ada.email)

    statuses = [(await put_password(client, pair)).status_code for _ in range(11)]
    right = await client.post(f"{AUTH}/reauthenticate", json={"password": PASSWORD}, headers=bearer(pair))

    assert statuses == [403] * 10 + [429]
    assert right.status_code == 429
    assert (await refresh(client, pair)).status_code == 200


def reset(client: AsyncClient, _pair: dict[str, Any]) -> Awaitable[Response]:
    return client.post(f"{AUTH}/password/reset", json={"token": "junk", "new_password": NEW_PASSWORD})


def reset_at_length(client: AsyncClient, _pair: dict[str, Any]) -> Awaitable[Response]:
    return client.post(f"{AUTH}/password/reset", json={"token": "A" * 10_000, "new_password": NEW_PASSWORD})


@pytest.mark.parametrize("ask", [reset, reset_at_length])
async def test_guessed_links_count_against_the_client_address(
    client: AsyncClient, session: WriteSession, ada: User, ask: Ask
) -> None:
    pair = await pair_of(client, ada.email)
    first = await ask(client, pair)
    await set_hits(session, "token-misuse-address", 99)

    last, surplus = await ask(client, pair), await ask(client, pair)

    assert [first.status_code, last.status_code, surplus.status_code] == [400, 400, 429]
    assert 895 <= int(surplus.headers["Retry-After"]) <= 900
    # Who holds a real one is not concerned.
    assert (await refresh(client, pair)).status_code == 200
    async with from_address(client, THERE) as elsewhere:
        assert (await ask(elsewhere, pair)).status_code == 400


@pytest.mark.parametrize("operation", MAILING)
async def test_requests_for_mail_count_against_the_client_address(
    client: AsyncClient, session: WriteSession, operation: str
) -> None:
    async def ask(client: AsyncClient, name: str) -> Response:
        body = {"email": f"{name}@example.com", **MAILING[operation]}
        return await client.post(operation.removeprefix("POST "), json=body)

    await ask(client, "ada")
    await set_hits(session, "mail-request-address", 29)

    last, surplus = [await ask(client, name) for name in ("eve", "mallory")]

    assert last.status_code == 202
    assert_problem(surplus, 429, "rate_limited")
    assert len(await jobs(session)) == 2
    async with from_address(client, THERE) as elsewhere:
        assert (await ask(elsewhere, "mallory")).status_code == 202


async def test_a_counted_request_for_mail_stores_nothing_personal(
    client: AsyncClient, session: WriteSession, ada: User
) -> None:
    await client.post(f"{AUTH}/password/forgot", json={"email": ada.email})

    stored = str((await session.execute(text("SELECT * FROM rate_limits"))).all())
    for personal in ("ada@", "example", HERE, str(ada.id), ada.id.hex):
        assert personal not in stored


async def test_after_a_hundred_wrong_passwords_a_reset_one_lets_the_owner_in(
    client: AsyncClient, session: WriteSession, ada: User, post: Post
) -> None:
    """Also at an address that the owner has not used, and at that of the person who guesses."""
    await fail(client, ada.email, 1)
    for name, hits in (("login-account-address", 10), ("login-account-address-day", 100), ("login-account", 100)):
        await set_hits(session, name, hits)
    assert (await log_in(client, ada.email)).status_code == 429
    await client.post(f"{AUTH}/password/forgot", json={"email": ada.email})

    body = {"token": await post.link(), "new_password": NEW_PASSWORD}
    response = await client.post(f"{AUTH}/password/reset", json=body)

    assert response.status_code == 204, response.text
    assert (await log_in(client, ada.email, NEW_PASSWORD)).status_code == 200
    # Attempts for other accounts at the address still count.
    hits = await session.scalar(text("SELECT hits FROM rate_limits WHERE key LIKE 'login-address:%'"))
    assert hits == 1


async def test_after_a_hundred_wrong_passwords_a_changed_one_lets_the_owner_in(
    client: AsyncClient, session: WriteSession, ada: User
) -> None:
    pair = await pair_of(client, ada.email)
    await set_hits(session, "login-account-address-day", 100)
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}

    response = await client.put(f"{ME}/password", json=body, headers=bearer(pair))

    assert response.status_code == 204, response.text
    assert (await log_in(client, ada.email, NEW_PASSWORD)).status_code == 200


async def test_a_refused_change_of_the_password_gives_no_attempts(
    client: AsyncClient, session: WriteSession, ada: User
) -> None:
    pair = await pair_of(client, ada.email)
    await set_hits(session, "login-account-address-day", 100)

    response = await put_password(client, pair)

    assert response.status_code == 403
    assert (await log_in(client, ada.email)).status_code == 429
