"""Registration: what the client sees, and what the owner of the address gets."""

import asyncio
import json
from typing import Any

import pytest
from httpx2 import AsyncClient, Response
from sqlalchemy import text

from app.core import product
from app.core.db.database import Database, WriteSession
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from app.users.models import User
from tests.aftermath import Rows, assert_problem, events, jobs, snapshot
from tests.auth.post import AUTH, PATIENT, Post, answer, end_windows, link_in, log_in, secret_in
from tests.conftest import make_settings, running
from tests.factories import PASSWORD, make_user

REGISTER = f"{AUTH}/register"


async def register(client: AsyncClient, email: str, password: str = PASSWORD, **more: Any) -> Response:
    return await client.post(REGISTER, json={"email": email, "password": password, **more})


async def accounts(session: WriteSession) -> Rows:
    return (await session.execute(text("SELECT * FROM users ORDER BY id"))).all()


async def make_known(session: WriteSession, hasher: PasswordHasher, kind: str) -> User:
    states: dict[str, dict[str, Any]] = {
        "verified": {},
        "unverified": {"email_verified_at": None},
        "disabled": {"is_active": False},
        "passwordless": {"hashed_password": None},
    }
    account = await make_user(session, hasher, email="ada@example.com", full_name="Ada", **states[kind])
    await session.commit()
    return account


async def test_a_new_account_verifies_its_address_and_logs_in(
    client: AsyncClient, session: WriteSession, post: Post
) -> None:
    asked = await register(client, "Ada@Example.COM", full_name="Ada Lovelace")
    (mail,) = await post.collect()
    verified = await client.post(f"{AUTH}/verify-email", json={"token": secret_in(mail)})
    login = await log_in(client, "ada@example.com")

    assert asked.status_code == 202
    assert asked.json() == {"detail": "If this can be done, a mail is on its way."}
    assert (mail.to, mail.subject) == ("Ada@example.com", f"Verify your address for {product.NAME}")
    assert "Ada Lovelace" in mail.text
    assert "24 hours" in mail.text
    assert (verified.status_code, verified.content) == (204, b"")
    assert login.status_code == 200
    (account,) = await accounts(session)
    assert (account.email, account.email_key) == ("Ada@example.com", "ada@example.com")
    assert (account.full_name, account.role, account.is_active) == ("Ada Lovelace", "user", True)
    assert account.email_verified_at is not None


async def test_a_login_before_the_verification_of_the_address_is_refused(client: AsyncClient, post: Post) -> None:
    await register(client, "ada@example.com")
    await post.collect()

    response = await log_in(client, "ada@example.com")

    assert_problem(response, 403, "email_not_verified")
    assert response.json()["error"] == "invalid_grant"


async def test_the_link_uses_the_configured_address_with_any_request_headers(
    database_url: str, database: Database
) -> None:
    settings = make_settings(
        database_url, server={"public_url": "https://id.example.com/base/", "trusted_proxies": ["127.0.0.0/8"]}
    )
    lies = {
        "Host": "evil.example",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "http",
        "Forwarded": "host=evil.example;proto=http",
        "X-Original-URL": "/evil",
        "X-Forwarded-Prefix": "/evil",
    }
    async with running(create_app(settings, database)) as client:
        await client.post(REGISTER, json={"email": "ada@example.com", "password": PASSWORD}, headers=lies)
    (mail,) = await Post(database, settings).collect()

    assert link_in(mail).startswith("https://id.example.com/base/account/verify-email#token=lt1.")
    assert "evil" not in mail.text + (mail.html or "")


@pytest.mark.parametrize("kind", ["verified", "unverified", "disabled", "passwordless"])
async def test_a_known_address_gets_the_same_response_as_an_unknown_one(
    client: AsyncClient, session: WriteSession, hasher: PasswordHasher, kind: str
) -> None:
    known = await make_known(session, hasher, kind)

    answers = [answer(await register(client, email)) for email in (known.email, "nobody@example.com")]

    assert answers[0][0] == 202
    assert answers[0] == answers[1]


@pytest.mark.parametrize("kind", ["verified", "unverified", "disabled", "passwordless"])
async def test_the_owner_of_a_known_address_gets_a_notice_and_nothing_else_changes(
    client: AsyncClient, session: WriteSession, hasher: PasswordHasher, post: Post, kind: str
) -> None:
    known = await make_known(session, hasher, kind)
    before = await accounts(session)

    await register(client, "ADA@EXAMPLE.com", "somebody else's password", full_name="Eve")
    (mail,) = await post.collect()

    assert (mail.to, mail.subject) == ("ada@example.com", f"You already have an account at {product.NAME}")
    assert "Eve" not in mail.text
    assert "#token" not in mail.text
    assert await accounts(session) == before
    assert (await snapshot(session))["account_links"] == []
    (event,) = await events(session, "auth.%")
    assert (event.event, event.subject_id, event.actor_id) == ("auth.registration_repeated", known.id, None)


async def test_the_audit_log_has_the_registration_with_its_request(
    client: AsyncClient, session: WriteSession, post: Post
) -> None:
    response = await register(client, "ada@example.com")
    await post.collect()

    (account,) = await accounts(session)
    (event,) = await events(session, "users.%")
    assert (event.event, event.subject_id, event.actor_id) == ("users.created", account.id, None)
    assert event.request_id == response.headers["x-request-id"]


async def test_a_first_registration_is_not_taken_over_by_a_second(client: AsyncClient, post: Post) -> None:
    await register(client, "ada@example.com", full_name="Ada")
    secret = await post.link()
    await register(client, "ada@example.com", "somebody else's password", full_name="Eve")
    await post.collect()
    await client.post(f"{AUTH}/verify-email", json={"token": secret})

    own, others = [await log_in(client, "ada@example.com", word) for word in (PASSWORD, "somebody else's password")]

    assert (own.status_code, others.status_code) == (200, 400)


@pytest.mark.parametrize("again", ["a+1@gmail.com", "b.a@gmail.com", "\u0430@gmail.com", "a@gmail.co"])
async def test_rules_of_mail_providers_do_not_merge_addresses(
    client: AsyncClient, session: WriteSession, post: Post, again: str
) -> None:
    await register(client, "a@gmail.com")
    await register(client, again)
    await post.collect()

    assert {account.email for account in await accounts(session)} == {"a@gmail.com", again}


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ("admin@example.com", "ADMIN@Example.COM"),
        ("ada@b\u00fccher.example", "ada@xn--bcher-kva.example"),
        ("zo\u00eb@example.com", "zoe\u0308@example.com"),
        ("stra\u00dfe@example.com", "STRASSE@example.com"),
    ],
)
async def test_spellings_of_one_address_are_one_account(
    client: AsyncClient, session: WriteSession, post: Post, first: str, again: str
) -> None:
    await register(client, first)
    await register(client, again)
    mails = await post.collect()

    (account,) = await accounts(session)
    assert {mail.to for mail in mails} == {account.email}


async def test_registration_by_invitation_refuses_new_accounts(
    database_url: str, database: Database, session: WriteSession
) -> None:
    settings = make_settings(database_url, auth={"registration": "invite"})
    async with running(create_app(settings, database)) as client:
        response = await register(client, "ada@example.com")
        malformed = await client.post(REGISTER, json={"email": "ada@example.com"})

    assert_problem(response, 404, "registration_closed")
    assert malformed.status_code == 422
    assert await jobs(session) == []


@pytest.mark.parametrize(
    ("password", "code"),
    [
        pytest.param("a" + "b c d e f g "[:13], "password_too_short", id="14 characters"),
        pytest.param("e\u0308" * 7 + "z", "password_too_short", id="15 code points, 8 characters when composed"),
        pytest.param("q7 " * 85 + "zz", "password_too_long", id="257 characters"),
        pytest.param(" " * 15, "password_too_common", id="spaces"),
        pytest.param("123456789012345", "password_too_common", id="a row of digits"),
        pytest.param("lovelace.ada@example.com", "password_contextual", id="the address"),
        pytest.param("Ada Lovelace 1815", "password_contextual", id="the name"),
        pytest.param(f"{product.SLUG} {product.SLUG} 1815 1852", "password_contextual", id="the service"),
    ],
)
async def test_a_weak_password_is_refused_by_its_code(
    client: AsyncClient, session: WriteSession, password: str, code: str
) -> None:
    response = await register(client, "lovelace.ada@example.com", password, full_name="Ada Lovelace")

    assert_problem(response, 422, "validation_error", "#/password")
    assert [error["code"] for error in response.json()["errors"]] == [code]
    assert password not in response.text
    assert await jobs(session) == []


@pytest.mark.parametrize("word", ["a" * 1025, "tab\tin the middle", "line\nin the middle", "nul\0in the middle", "", 5])
async def test_a_password_with_untypable_characters_is_refused(client: AsyncClient, word: Any) -> None:
    response = await register(client, "ada@example.com", word)

    assert_problem(response, 422, "validation_error", "#/password")


@pytest.mark.parametrize(
    ("chosen", "typed"),
    [
        pytest.param("🦊🐳🐘🐝🐙🦉🦆🐢🐍🦎🐊🐅🐆🦓🦍", "🦊🐳🐘🐝🐙🦉🦆🐢🐍🦎🐊🐅🐆🦓🦍", id="15 emoji"),
        pytest.param(
            "caf\u00e9 au lait, cr\u00e8me", "cafe\u0301 au lait, cre\u0300me", id="composed, typed decomposed"
        ),
        pytest.param(
            "cafe\u0301 au lait, cre\u0300me", "caf\u00e9 au lait, cr\u00e8me", id="decomposed, typed composed"
        ),
        pytest.param(
            "\u202b\u05e1\u05d9\u05e1\u05de\u05d4 \u05d0\u05e8\u05d5\u05db\u05d4 \u05de\u05d0\u05d5\u05d3\u202c",
            "\u202b\u05e1\u05d9\u05e1\u05de\u05d4 \u05d0\u05e8\u05d5\u05db\u05d4 \u05de\u05d0\u05d5\u05d3\u202c",
            id="right to left",
        ),
        pytest.param(" leading, trailing ", " leading, trailing ", id="spaces around"),
        pytest.param("🦊🐳🐘🐝🐙🦉🦆🐢" * 8, "🦊🐳🐘🐝🐙🦉🦆🐢" * 8, id="64 characters of four bytes"),
    ],
)
async def test_a_password_of_any_script_logs_in(client: AsyncClient, post: Post, chosen: str, typed: str) -> None:
    asked = await register(client, "ada@example.com", chosen)
    await client.post(f"{AUTH}/verify-email", json={"token": await post.link()})

    login = await log_in(client, "ada@example.com", typed)

    assert (asked.status_code, login.status_code) == (202, 200)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"email": ["v@example.com", "e@evil.co"], "password": PASSWORD}, "#/email"),
        ({"email": "v@example.com,e@evil.co", "password": PASSWORD}, "#/email"),
        ({"email": "v@example.com\nBcc: e@evil.co", "password": PASSWORD}, "#/email"),
        ({"email": "V <v@example.com>", "password": PASSWORD}, "#/email"),
        ({"email": None, "password": PASSWORD}, "#/email"),
        ({"email": "v@example.com"}, "#/password"),
        ({"email": "v@example.com", "password": PASSWORD, "role": "admin"}, "#/role"),
        ({"email": "v@example.com", "password": PASSWORD, "is_active": True}, "#/is_active"),
        ({"email": "v@example.com", "password": PASSWORD, "full_name": " "}, "#/full_name"),
        ({"email": "v@example.com", "password": PASSWORD, "full_name": "x" * 129}, "#/full_name"),
    ],
)
async def test_a_body_that_is_not_a_registration_is_refused(
    client: AsyncClient, session: WriteSession, body: dict[str, Any], pointer: str
) -> None:
    response = await client.post(REGISTER, json=body)

    assert_problem(response, 422, "validation_error", pointer)
    assert await jobs(session) == []


async def test_a_name_cannot_write_the_mail(client: AsyncClient, post: Post) -> None:
    await register(client, "ada@example.com", full_name='<a href="https://evil.co">click</a> {{7*7}} %s =cmd()')
    (mail,) = await post.collect()

    assert "{{7*7}} %s =cmd()" in mail.text
    assert "&lt;a href=" in (mail.html or "")
    assert '<a href="https://evil.co">' not in (mail.html or "")


async def test_the_queue_keeps_neither_password_nor_hash_nor_link(
    client: AsyncClient, session: WriteSession, post: Post
) -> None:
    await register(client, "ada@example.com")
    secret = await post.link()

    stored = json.dumps([list(row) for row in await jobs(session)])
    assert "jobs:register" in stored
    assert "bcrypt" not in stored
    assert PASSWORD not in stored
    assert secret not in stored


async def test_a_request_for_an_unknown_address_does_not_delay_its_registration_mail(
    client: AsyncClient, session: WriteSession, post: Post
) -> None:
    await client.post(f"{AUTH}/password/forgot", json={"email": "ada@example.com"})
    await post.collect()

    await register(client, "ada@example.com")

    assert await post.subjects() == [("ada@example.com", f"Verify your address for {product.NAME}")]
    assert len(await accounts(session)) == 1


async def test_a_known_address_gets_one_notice_a_minute(
    client: AsyncClient, session: WriteSession, hasher: PasswordHasher, post: Post
) -> None:
    known = await make_known(session, hasher, "verified")
    for _ in range(3):
        await register(client, known.email)
    first = await post.subjects()
    await end_windows(session, "mail-minute:%")
    await register(client, known.email)

    assert len(first) == 1
    assert len(await post.subjects()) == 1


async def test_fifty_registrations_of_one_address_at_once_make_one_account(clone_url: str) -> None:
    settings = make_settings(clone_url, auth={"hash_queue": 50}, rate_limit={"enabled": False}, database=PATIENT)
    database = Database(settings.database)
    async with running(create_app(settings)) as client:
        answers = await asyncio.gather(
            *(register(client, f"{'ada' if number % 2 else 'ADA'}@example.com") for number in range(50))
        )
    posts = [Post(database, settings) for _ in range(5)]
    mails = [mail for collected in await asyncio.gather(*(post.collect() for post in posts)) for mail in collected]

    async with database.sessions() as session:
        (account,) = await accounts(session)
        failed = await session.scalar(text("SELECT count(*) FROM procrastinate_jobs WHERE status <> 'succeeded'"))
    await database.dispose()
    assert {response.status_code for response in answers} == {202}
    assert [mail.to for mail in mails if "#token" in mail.text] == [account.email]
    assert len(mails) == 50
    assert failed == 0


@pytest.mark.parametrize("email", ["ada@corp.local", "ada@example.test", "Ada@app.LOCALHOST"])
async def test_outside_of_production_an_address_of_a_private_network_can_register_and_log_in(
    client: AsyncClient, post: Post, email: str
) -> None:
    accepted = await register(client, email)
    verified = await client.post(f"{AUTH}/verify-email", json={"token": await post.link()})

    assert (accepted.status_code, verified.status_code) == (202, 204)
    assert (await log_in(client, email)).status_code == 200
