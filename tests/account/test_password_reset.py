"""A forgotten password: a link to the stored address, and what using it ends."""

import asyncio
from typing import Any

import pytest
from httpx2 import AsyncClient, Response
from sqlalchemy import text

from app.core import product
from app.core.db.database import Database, WriteSession
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from app.users.models import User
from tests.aftermath import assert_problem, events, existing, jobs
from tests.auth.post import (
    AUTH,
    ME,
    NEW_PASSWORD,
    PATIENT,
    Post,
    answer,
    bearer,
    end_windows,
    link_in,
    log_in,
    pair_of,
    refresh,
    secret_in,
)
from tests.conftest import LoggedIn, make_settings, running
from tests.factories import PASSWORD, make_user

FORGOT = f"{AUTH}/password/forgot"
RESET = f"{AUTH}/password/reset"


@pytest.fixture
async def ada(session: WriteSession, hasher: PasswordHasher) -> User:
    """An account with a password."""
    account = await make_user(session, hasher, email="Ada@example.com", full_name="Ada Lovelace")
    await session.commit()
    return account


async def forgot(client: AsyncClient, email: str, **headers: str) -> Response:
    return await client.post(FORGOT, json={"email": email}, headers=headers)


async def reset(client: AsyncClient, secret: str, password: str = NEW_PASSWORD) -> Response:
    return await client.post(RESET, json={"token": secret, "new_password": password})


async def change(session: WriteSession, statement: str, **values: object) -> None:
    await session.execute(text(statement), values)
    await session.commit()


async def test_a_forgotten_password_can_be_replaced(client: AsyncClient, post: Post, ada: User) -> None:
    asked = await forgot(client, ada.email)
    (mail,) = await post.collect()
    done = await reset(client, secret_in(mail))

    assert (asked.status_code, asked.json()) == (202, {"detail": "If this can be done, a mail is on its way."})
    assert (mail.to, mail.subject) == ("Ada@example.com", f"Set a new password for {product.NAME}")
    assert "30 minutes" in mail.text
    assert (done.status_code, done.content) == (204, b"")
    assert (await log_in(client, ada.email, NEW_PASSWORD)).status_code == 200
    assert (await log_in(client, ada.email, PASSWORD)).status_code == 400


async def test_mail_goes_only_to_the_stored_spelling(client: AsyncClient, post: Post, ada: User) -> None:
    await forgot(client, "aDA@EXAMPLE.com")

    assert [mail.to for mail in await post.collect()] == [ada.email]


async def test_the_link_uses_the_configured_address_with_any_request_headers(
    database_url: str, database: Database, ada: User
) -> None:
    settings = make_settings(database_url, server={"public_url": "https://id.example.com"})
    lies = {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http"}
    async with running(create_app(settings, database)) as client:
        await forgot(client, ada.email, **lies)
    (mail,) = await Post(database, settings).collect()

    assert link_in(mail).startswith("https://id.example.com/account/set-password#token=lt1.")
    assert "evil" not in mail.text + (mail.html or "")


@pytest.mark.parametrize(
    "email",
    [
        ["ada@example.com", "eve@evil.co"],
        {"email": "ada@example.com"},
        "ada@example.com,eve@evil.co",
        "ada@example.com eve@evil.co",
        "ada@example.com\r\nBcc: eve@evil.co",
        "ada@example.com\0@evil.co",
        "Ada <ada@example.com>",
    ],
)
async def test_mail_cannot_be_directed_to_a_second_address(
    client: AsyncClient, session: WriteSession, ada: User, email: Any
) -> None:
    response = await client.post(FORGOT, json={"email": email})
    as_a_form = await client.post(FORGOT, data={"email": ["ada@example.com", "eve@evil.co"]})

    assert_problem(response, 422, "validation_error", "#/email")
    assert as_a_form.status_code == 415
    assert await jobs(session) == []
    assert ada.email_verified_at is not None


async def test_a_repeated_member_is_one_address_that_is_looked_up(client: AsyncClient, post: Post, ada: User) -> None:
    body = f'{{"email": "{ada.email}", "email": "eve@evil.co"}}'

    response = await client.post(FORGOT, content=body, headers={"Content-Type": "application/json"})

    assert response.status_code in {202, 400, 422}
    assert "eve@evil.co" not in [mail.to for mail in await post.collect()]


KINDS = {
    "unknown": "DELETE FROM users WHERE id = :id",
    "known": "SELECT CAST(:id AS uuid)",
    "disabled": "UPDATE users SET is_active = false WHERE id = :id",
    "unverified": "UPDATE users SET email_verified_at = NULL WHERE id = :id",
    "passwordless": "UPDATE users SET hashed_password = NULL WHERE id = :id",
}


@pytest.mark.parametrize("kind", KINDS)
async def test_every_address_gets_the_same_response(
    client: AsyncClient, session: WriteSession, post: Post, ada: User, kind: str
) -> None:
    await change(session, KINDS[kind], id=ada.id)

    asked, reference = await forgot(client, ada.email), await forgot(client, "nobody@example.com")

    assert asked.status_code == 202
    assert answer(asked) == answer(reference)
    mailed = [mail.to for mail in await post.collect()]
    assert mailed == ([] if kind in {"unknown", "disabled"} else [ada.email])


async def test_a_link_works_once(client: AsyncClient, post: Post, ada: User) -> None:
    await forgot(client, ada.email)
    secret = await post.link()
    await reset(client, secret)

    again = await reset(client, secret, "yet another sentence, longer")

    assert_problem(again, 400, "invalid_token")
    assert (await log_in(client, ada.email, NEW_PASSWORD)).status_code == 200


@pytest.mark.parametrize(("age", "status"), [("29 minutes 59 seconds", 204), ("30 minutes", 400)])
async def test_a_link_works_for_half_an_hour(
    client: AsyncClient, session: WriteSession, post: Post, ada: User, age: str, status: int
) -> None:
    await forgot(client, ada.email)
    secret = await post.link()
    await change(session, "UPDATE account_links SET expires_at = expires_at - CAST(:age AS text)::interval", age=age)

    assert (await reset(client, secret)).status_code == status


async def test_another_link_ends_the_one_before(
    client: AsyncClient, session: WriteSession, post: Post, ada: User
) -> None:
    await forgot(client, ada.email)
    old = await post.link()
    await end_windows(session)
    await forgot(client, ada.email)
    new = await post.link()

    assert [(await reset(client, secret)).status_code for secret in (old, new)] == [400, 204]


@pytest.mark.parametrize("kind", ["disabled", "unknown"])
async def test_a_link_of_a_disabled_or_deleted_account_is_refused_like_a_forged_one(
    client: AsyncClient, session: WriteSession, post: Post, ada: User, kind: str
) -> None:
    await forgot(client, ada.email)
    secret = await post.link()
    await change(session, KINDS[kind], id=ada.id)

    late, forged = await reset(client, secret), await reset(client, secret[:-4] + "AAAA")

    assert_problem(late, 400, "invalid_token")
    assert answer(late) == answer(forged)
    assert await events(session, "auth.password_reset") == []


@pytest.mark.parametrize(
    ("password", "code"),
    [
        ("too short", "password_too_short"),
        ("x7 " * 86, "password_too_long"),
        ("123456789012345", "password_too_common"),
        ("Ada Lovelace ada", "password_contextual"),
        ("ada@example.com!", "password_contextual"),
    ],
)
async def test_a_weak_password_leaves_the_link_usable(
    client: AsyncClient, post: Post, ada: User, password: str, code: str
) -> None:
    await forgot(client, ada.email)
    secret = await post.link()

    weak = await reset(client, secret, password)
    strong = await reset(client, secret)

    assert_problem(weak, 422, "validation_error", "#/new_password")
    assert [error["code"] for error in weak.json()["errors"]] == [code]
    assert strong.status_code == 204


async def test_every_session_ends_and_no_token_is_given(client: AsyncClient, post: Post, ada: User) -> None:
    pairs = [await pair_of(client, ada.email) for _ in range(2)]
    await forgot(client, ada.email)

    response = await reset(client, await post.link())

    assert response.content == b""
    assert "set-cookie" not in response.headers
    for pair in pairs:
        assert (await client.get(ME, headers=bearer(pair))).status_code == 401
        assert (await refresh(client, pair)).status_code == 400


async def test_the_sessions_of_other_accounts_continue(
    client: AsyncClient, post: Post, ada: User, user: LoggedIn
) -> None:
    await forgot(client, ada.email)
    await reset(client, await post.link())

    assert (await client.get(ME, headers=user.headers)).status_code == 200


async def test_the_ended_sessions_have_the_reason(
    client: AsyncClient, session: WriteSession, post: Post, ada: User
) -> None:
    await pair_of(client, ada.email)
    asked = await forgot(client, ada.email)
    done = await reset(client, await post.link())

    reasons = (await session.scalars(text("SELECT revoke_reason FROM sessions"))).all()
    requested, event = await events(session, "auth.password_reset%")
    assert reasons == ["password_reset"]
    assert (requested.event, requested.subject_id) == ("auth.password_reset_requested", ada.id)
    assert requested.request_id == asked.headers["x-request-id"]
    assert (event.event, event.subject_id, event.actor_id) == ("auth.password_reset", ada.id, None)
    assert event.request_id == done.headers["x-request-id"]


async def test_the_owner_gets_a_notice(client: AsyncClient, post: Post, ada: User) -> None:
    await forgot(client, ada.email)
    await reset(client, await post.link())

    assert await post.subjects() == [("Ada@example.com", f"Your password for {product.NAME} has been changed")]


async def test_a_reset_verifies_the_address(client: AsyncClient, session: WriteSession, post: Post, ada: User) -> None:
    await change(session, KINDS["unverified"], id=ada.id)
    await forgot(client, ada.email)
    await reset(client, await post.link())

    assert (await existing(session, ada.id)).email_verified_at is not None
    assert (await log_in(client, ada.email, NEW_PASSWORD)).status_code == 200


async def test_an_earlier_verification_keeps_its_time(
    client: AsyncClient, session: WriteSession, post: Post, ada: User
) -> None:
    await forgot(client, ada.email)
    await reset(client, await post.link())

    assert (await existing(session, ada.id)).email_verified_at == ada.email_verified_at


async def test_the_owner_of_an_account_made_by_an_administrator_sets_the_password(
    client: AsyncClient, session: WriteSession, post: Post, admin: LoggedIn
) -> None:
    made = await client.post("/api/v1/users", json={"email": "new@example.com"}, headers=admin.headers)
    (mail,) = await post.collect()
    before = await log_in(client, "new@example.com", NEW_PASSWORD)
    done = await reset(client, secret_in(mail))

    assert (mail.to, mail.subject) == ("new@example.com", f"Set your password for {product.NAME}")
    assert "3 days" in mail.text
    assert (before.status_code, done.status_code) == (400, 204)
    assert (await log_in(client, "new@example.com", NEW_PASSWORD)).status_code == 200
    assert (await existing(session, made.json()["id"])).email_verified_at is not None


async def test_an_administrator_sends_a_link_and_sees_no_secret(
    client: AsyncClient, session: WriteSession, post: Post, admin: LoggedIn, ada: User
) -> None:
    response = await client.post(f"/api/v1/users/{ada.id}/password-reset", headers=admin.headers)
    (mail,) = await post.collect()
    done = await reset(client, secret_in(mail))

    assert response.status_code == 202
    assert "lt1." not in response.text
    assert (mail.to, done.status_code) == (ada.email, 204)
    assert (await log_in(client, ada.email, NEW_PASSWORD)).status_code == 200
    requested, _ = await events(session, "auth.password_reset%")
    assert (str(requested.actor_id), requested.subject_id) == (admin.user_id, ada.id)


@pytest.mark.parametrize("kind", ["disabled", "passwordless", "unverified"])
async def test_a_link_of_an_administrator_works_only_for_an_active_account(
    client: AsyncClient, session: WriteSession, post: Post, admin: LoggedIn, ada: User, kind: str
) -> None:
    await change(session, KINDS[kind], id=ada.id)
    await client.post(f"/api/v1/users/{ada.id}/password-reset", headers=admin.headers)

    done = await reset(client, await post.link())

    assert done.status_code == (400 if kind == "disabled" else 204)


async def test_only_an_administrator_sends_links_for_others(
    client: AsyncClient, session: WriteSession, user: LoggedIn, admin: LoggedIn, ada: User
) -> None:
    path = f"/api/v1/users/{ada.id}/password-reset"

    assert_problem(await client.post(path), 401, "unauthorized")
    assert_problem(await client.post(path, headers=user.headers), 403, "insufficient_scope")
    missing = await client.post(
        f"/api/v1/users/{'0' * 8}-0000-7000-8000-{'0' * 12}/password-reset", headers=admin.headers
    )
    assert_problem(missing, 404, "user_not_found")
    assert await jobs(session) == []


async def test_of_twenty_resets_with_one_link_exactly_one_wins(clone_url: str) -> None:
    settings = make_settings(clone_url, auth={"hash_queue": 50}, database=PATIENT)
    database = Database(settings.database)
    post = Post(database, settings)
    words = [f"{NEW_PASSWORD} number {number}" for number in range(20)]
    async with running(create_app(settings)) as client:
        async with database.begin() as session:
            await make_user(session, email="ada@example.com")
        await forgot(client, "ada@example.com")
        secret = await post.link()

        answers = await asyncio.gather(*(reset(client, secret, word) for word in words))
        await forget_limits(database)
        logins = [await log_in(client, "ada@example.com", word) for word in words[:9]]
        await forget_limits(database)
        logins += [await log_in(client, "ada@example.com", word) for word in words[9:18]]
        await forget_limits(database)
        logins += [await log_in(client, "ada@example.com", word) for word in words[18:]]

    await database.dispose()
    assert sorted(response.status_code for response in answers) == [204] + [400] * 19
    assert [login.status_code == 200 for login in logins] == [response.status_code == 204 for response in answers]


async def forget_limits(database: Database) -> None:
    async with database.sessions() as session:
        await end_windows(session)
