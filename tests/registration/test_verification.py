"""Verification of an address: the link works once, for a day, and only for an active account."""

import asyncio
from typing import Any

import pytest
from httpx2 import AsyncClient, Response
from sqlalchemy import text

from app.core.db.database import Database, WriteSession
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from app.users.models import User
from tests.aftermath import assert_problem, events, existing
from tests.auth.post import AUTH, NEW_PASSWORD, PATIENT, Post, answer, end_windows, log_in
from tests.conftest import LoggedIn, make_settings, running
from tests.factories import PASSWORD, make_user

VERIFY = f"{AUTH}/verify-email"
RESEND = f"{AUTH}/verify-email/resend"


@pytest.fixture
async def ada(session: WriteSession, hasher: PasswordHasher) -> User:
    """An account that waits for its verification."""
    account = await make_user(session, hasher, email="ada@example.com", email_verified_at=None)
    await session.commit()
    return account


async def resend(client: AsyncClient, email: str) -> Response:
    return await client.post(RESEND, json={"email": email})


async def verify(client: AsyncClient, secret: str) -> Response:
    return await client.post(VERIFY, json={"token": secret})


async def change(session: WriteSession, statement: str, **values: object) -> None:
    await session.execute(text(statement), values)
    await session.commit()


async def test_a_link_verifies_the_address_once(
    client: AsyncClient, session: WriteSession, post: Post, ada: User
) -> None:
    await resend(client, ada.email)
    secret = await post.link()

    first, second = await verify(client, secret), await verify(client, secret)

    assert (first.status_code, first.content) == (204, b"")
    assert_problem(second, 400, "invalid_token")
    assert (await existing(session, ada.id)).email_verified_at is not None
    assert (await log_in(client, ada.email)).status_code == 200


async def test_the_audit_log_has_the_verification(
    client: AsyncClient, session: WriteSession, post: Post, ada: User
) -> None:
    asked = await resend(client, ada.email)
    done = await verify(client, await post.link())

    requested, verified = await events(session, "auth.%")
    assert (requested.event, requested.subject_id) == ("auth.verification_requested", ada.id)
    assert requested.request_id == asked.headers["x-request-id"]
    assert (verified.event, verified.subject_id, verified.actor_id) == ("auth.email_verified", ada.id, None)
    assert (verified.request_id, str(verified.ip_prefix)) == (done.headers["x-request-id"], "127.0.0.0/24")


async def test_a_link_is_no_login(client: AsyncClient, post: Post, ada: User) -> None:
    await resend(client, ada.email)

    response = await verify(client, await post.link())

    assert response.content == b""
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize(
    ("age", "status"), [("23 hours 59 minutes", 204), ("24 hours", 400), ("30 days", 400)], ids=str
)
async def test_a_link_works_for_a_day(
    client: AsyncClient, session: WriteSession, post: Post, ada: User, age: str, status: int
) -> None:
    await resend(client, ada.email)
    secret = await post.link()
    await change(session, "UPDATE account_links SET expires_at = expires_at - CAST(:age AS text)::interval", age=age)

    response = await verify(client, secret)

    assert response.status_code == status


async def test_another_link_ends_the_one_before(
    client: AsyncClient, session: WriteSession, post: Post, ada: User
) -> None:
    await resend(client, ada.email)
    old = await post.link()
    await end_windows(session)
    await resend(client, ada.email)
    new = await post.link()

    answers = [await verify(client, secret) for secret in (old, new)]

    assert [response.status_code for response in answers] == [400, 204]


DISABLED = "UPDATE users SET is_active = false"
VERIFIED = "UPDATE users SET email_verified_at = now()"
GONE = "DELETE FROM users"
OF_AN_UNKNOWN_PEPPER = "UPDATE account_links SET pepper_id = 99"


@pytest.mark.parametrize("meanwhile", [DISABLED, VERIFIED, GONE, OF_AN_UNKNOWN_PEPPER])
async def test_a_link_that_no_longer_applies_is_refused_like_a_forged_one(
    client: AsyncClient, session: WriteSession, post: Post, ada: User, meanwhile: str
) -> None:
    await resend(client, ada.email)
    secret = await post.link()
    await change(session, meanwhile)

    late, forged = await verify(client, secret), await verify(client, secret[:-4] + "AAAA")

    assert_problem(late, 400, "invalid_token")
    assert answer(late) == answer(forged)
    assert await events(session, "auth.email_verified") == []


async def test_a_link_refused_while_the_account_is_disabled_is_not_spent(
    client: AsyncClient, session: WriteSession, post: Post, ada: User
) -> None:
    await resend(client, ada.email)
    secret = await post.link()
    await change(session, DISABLED)
    await verify(client, secret)
    await change(session, "UPDATE users SET is_active = true")

    assert (await verify(client, secret)).status_code == 204


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "lt1.",
        "lt1." + "A" * 66,
        "lt1." + "A" * 65,
        "lt1." + "A" * 67,
        "rt1." + "A" * 66,
        "LT1." + "A" * 66,
        " lt1." + "A" * 66,
        "lt1." + "=" * 66,
        "lt1." + "é" * 66,
        "lt1." + "A" * 66 + "\n",
        "\0" * 70,
        "eyJhbGciOiJub25lIn0.e30.",
        "x" * 512,
        "x" * 513,
    ],
)
async def test_malformed_text_is_refused_like_an_expired_link(client: AsyncClient, token: str) -> None:
    response = await verify(client, token)

    assert_problem(response, 400, "invalid_token")
    assert response.json()["type"].endswith("/problems/invalid-token")
    assert token.strip() not in response.text.replace(response.json()["request_id"], "") or token == "x"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "#/token"),
        ({"token": ""}, "#/token"),
        ({"token": ["x"]}, "#/token"),
        ({"token": None}, "#/token"),
        ({"token": "x", "email": "ada@example.com"}, "#/email"),
    ],
)
async def test_an_invalid_body_is_refused(client: AsyncClient, body: dict[str, Any], pointer: str) -> None:
    assert_problem(await client.post(VERIFY, json=body), 422, "validation_error", pointer)


async def test_a_link_for_another_purpose_verifies_nothing(
    client: AsyncClient, session: WriteSession, post: Post, ada: User
) -> None:
    await client.post(f"{AUTH}/password/forgot", json={"email": ada.email})
    secret = await post.link()

    response = await verify(client, secret)

    assert_problem(response, 400, "invalid_token")
    assert (await existing(session, ada.id)).email_verified_at is None


async def test_a_reset_of_the_password_ends_the_link(
    client: AsyncClient, session: WriteSession, post: Post, ada: User
) -> None:
    await resend(client, ada.email)
    verification = await post.link()
    await end_windows(session)
    await client.post(f"{AUTH}/password/forgot", json={"email": ada.email})
    reset = {"token": await post.link(), "new_password": NEW_PASSWORD}
    assert (await client.post(f"{AUTH}/password/reset", json=reset)).status_code == 204

    late = await verify(client, verification)

    assert (await existing(session, ada.id)).email_verified_at is not None
    assert_problem(late, 400, "invalid_token")


async def test_reading_changes_nothing(client: AsyncClient, session: WriteSession, post: Post, ada: User) -> None:
    await resend(client, ada.email)
    secret = await post.link()

    response = await client.get(VERIFY)
    in_the_address = await client.get(VERIFY, params={"token": secret})

    assert_problem(response, 405, "method_not_allowed")
    assert in_the_address.status_code in {400, 405}
    assert (await existing(session, ada.id)).email_verified_at is None


@pytest.mark.parametrize("kind", ["unknown", "verified", "unverified", "disabled"])
async def test_every_address_gets_the_same_response_and_only_unverified_accounts_get_mail(
    client: AsyncClient, session: WriteSession, post: Post, ada: User, kind: str
) -> None:
    states = {"verified": VERIFIED, "disabled": DISABLED}
    if kind in states:
        await change(session, states[kind])

    asked = await resend(client, "nobody@example.com" if kind == "unknown" else ada.email)
    reference = await resend(client, "anybody@example.com")

    assert asked.status_code == 202
    assert answer(asked) == answer(reference)
    assert [mail.to for mail in await post.collect()] == ([ada.email] if kind == "unverified" else [])


async def test_ten_requests_in_a_minute_are_one_mail(client: AsyncClient, post: Post, ada: User) -> None:
    for _ in range(10):
        assert (await resend(client, ada.email)).status_code == 202

    assert len(await post.collect()) == 1


async def test_six_requests_in_an_hour_are_five_mails(
    client: AsyncClient, session: WriteSession, post: Post, ada: User
) -> None:
    mails = []
    for window in ["mail-minute:%"] * 6 + ["mail-%"]:
        await end_windows(session, window)
        await resend(client, ada.email.upper())
        mails.append(len(await post.collect()))

    assert mails == [1, 1, 1, 1, 1, 0, 1]


@pytest.mark.parametrize(
    "email", [["v@example.com", "e@evil.co"], "no address", None, "", "a@b@c", "x" * 300 + "@x.co"]
)
async def test_an_invalid_address_is_refused(client: AsyncClient, email: Any) -> None:
    assert_problem(await client.post(RESEND, json={"email": email}), 422, "validation_error", "#/email")


async def test_of_twenty_concurrent_uses_of_a_link_exactly_one_succeeds(clone_url: str) -> None:
    settings = make_settings(clone_url, database=PATIENT)
    database = Database(settings.database)
    post = Post(database, settings)
    async with running(create_app(settings)) as client:
        await client.post(f"{AUTH}/register", json={"email": "ada@example.com", "password": PASSWORD})
        secret = await post.link()

        answers = await asyncio.gather(*(verify(client, secret) for _ in range(20)))

    async with database.read_sessions() as session:
        written = await events(session, "auth.email_verified")
    await database.dispose()
    assert sorted(response.status_code for response in answers) == [204] + [400] * 19
    assert len(written) == 1


async def test_a_logged_in_client_can_verify_too(client: AsyncClient, post: Post, ada: User, user: LoggedIn) -> None:
    await resend(client, ada.email)

    response = await client.post(VERIFY, json={"token": await post.link()}, headers=user.headers)

    assert response.status_code == 204
