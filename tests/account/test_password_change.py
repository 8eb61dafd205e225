"""Changing a password: what it needs, what it ends, and what continues."""

import asyncio
import unicodedata
from typing import Any

import pytest
from httpx2 import AsyncClient, Response
from sqlalchemy import text

from app.auth.settings import AuthSettings
from app.core import product
from app.core.db.database import Database, WriteSession
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from app.users.models import User
from tests.aftermath import assert_problem, events, existing, jobs
from tests.auth.post import AUTH, ME, NEW_PASSWORD, PATIENT, Post, bearer, log_in, pair_of, refresh
from tests.conftest import LoggedIn, make_settings, running
from tests.factories import PASSWORD, make_user

PATH = f"{ME}/password"


@pytest.fixture
async def ada(session: WriteSession, hasher: PasswordHasher) -> User:
    """An account with a password."""
    account = await make_user(session, hasher, email="ada@example.com", full_name="Ada Lovelace")
    await session.commit()
    return account


async def change(
    client: AsyncClient, pair: dict[str, Any], current: str = PASSWORD, new: str = NEW_PASSWORD
) -> Response:
    return await client.put(PATH, json={"current_password": current, "new_password": new}, headers=bearer(pair))


async def test_the_new_password_logs_in_and_the_old_does_not(client: AsyncClient, ada: User) -> None:
    response = await change(client, await pair_of(client, ada.email))

    assert (response.status_code, response.content) == (204, b"")
    assert (await log_in(client, ada.email, NEW_PASSWORD)).status_code == 200
    assert (await log_in(client, ada.email, PASSWORD)).status_code == 400


async def test_the_other_sessions_end_and_this_one_continues_with_its_refresh_token(
    client: AsyncClient, ada: User
) -> None:
    this, other = [await pair_of(client, ada.email) for _ in range(2)]

    await change(client, this)

    assert (await client.get(ME, headers=bearer(this))).status_code == 401
    assert (await client.get(ME, headers=bearer(other))).status_code == 401
    assert (await refresh(client, other)).status_code == 400
    following = await refresh(client, this)
    assert following.status_code == 200
    assert (await client.get(ME, headers=bearer(following.json()))).status_code == 200


async def test_the_sessions_of_other_accounts_continue(client: AsyncClient, ada: User, user: LoggedIn) -> None:
    await change(client, await pair_of(client, ada.email))

    assert (await client.get(ME, headers=user.headers)).status_code == 200


async def test_the_owner_gets_a_notice_and_the_audit_log_an_event(
    client: AsyncClient, session: WriteSession, post: Post, ada: User
) -> None:
    pair = await pair_of(client, ada.email)
    await pair_of(client, ada.email)

    response = await change(client, pair)

    assert await post.subjects() == [("ada@example.com", f"Your password for {product.NAME} has been changed")]
    (event,) = await events(session, "auth.password_changed")
    assert (event.actor_id, event.subject_id) == (ada.id, ada.id)
    assert event.session_id is not None
    assert event.request_id == response.headers["x-request-id"]
    reasons = (await session.scalars(text("SELECT revoke_reason FROM sessions ORDER BY created_at, id"))).all()
    assert reasons == [None, "password_changed"]


async def test_a_wrong_current_password_changes_nothing(
    client: AsyncClient, session: WriteSession, post: Post, ada: User
) -> None:
    this, other = [await pair_of(client, ada.email) for _ in range(2)]
    before = await existing(session, ada.id)

    response = await change(client, this, current="not the password, surely")

    assert_problem(response, 403, "wrong_password")
    assert await existing(session, ada.id) == before
    assert (await client.get(ME, headers=bearer(other))).status_code == 200
    assert await post.collect() == []
    (event,) = await events(session, "auth.password%")
    assert event.event == "auth.password_confirmation_failed"
    assert (event.actor_id, event.subject_id) == (ada.id, ada.id)


@pytest.mark.parametrize(
    ("password", "code"),
    [
        ("too short", "password_too_short"),
        ("x7 " * 86, "password_too_long"),
        ("abcabcabcabcabcabc", "password_too_common"),
        ("Ada Lovelace ada", "password_contextual"),
        ("ada@example.com!", "password_contextual"),
    ],
)
async def test_a_weak_password_is_refused(
    client: AsyncClient, session: WriteSession, ada: User, password: str, code: str
) -> None:
    pair = await pair_of(client, ada.email)
    before = await existing(session, ada.id)

    response = await change(client, pair, new=password)

    assert_problem(response, 422, "validation_error", "#/new_password")
    assert [error["code"] for error in response.json()["errors"]] == [code]
    assert await existing(session, ada.id) == before


async def test_a_weak_password_reveals_nothing_about_the_current_one(client: AsyncClient, ada: User) -> None:
    response = await change(client, await pair_of(client, ada.email), current="not the password, surely", new="short")

    assert_problem(response, 403, "wrong_password")


async def test_pending_links_stop_working(client: AsyncClient, post: Post, ada: User) -> None:
    pair = await pair_of(client, ada.email)
    await client.post(f"{AUTH}/password/forgot", json={"email": ada.email})
    reset = await post.link()

    await change(client, pair)

    late = await client.post(f"{AUTH}/password/reset", json={"token": reset, "new_password": "x" + NEW_PASSWORD})
    assert_problem(late, 400, "invalid_token")
    assert (await log_in(client, ada.email, NEW_PASSWORD)).status_code == 200


@pytest.mark.parametrize(
    "end",
    [
        "UPDATE sessions SET revoked_at = now(), revoke_reason = 'user' WHERE user_id = :id",
        "UPDATE users SET is_active = false, authz_version = authz_version + 1 WHERE id = :id",
    ],
)
async def test_a_client_that_is_logged_out_during_hashing_changes_nothing(
    client: AsyncClient, session: WriteSession, ada: User, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    pair, verify = await pair_of(client, ada.email), PasswordHasher.verify
    before = await existing(session, ada.id)

    async def overtaken(hasher: PasswordHasher, password: str, stored: str | None) -> Any:
        await session.execute(text(end), {"id": ada.id})
        await session.commit()
        return await verify(hasher, password, stored)

    monkeypatch.setattr(PasswordHasher, "verify", overtaken)

    assert_problem(await change(client, pair), 401, "invalid_token")
    assert (await existing(session, ada.id)).hashed_password == before.hashed_password
    assert not await events(session, "auth.password_changed")


async def test_a_change_needs_a_token(client: AsyncClient, session: WriteSession) -> None:
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}

    assert_problem(await client.put(PATH, json=body), 401, "unauthorized")
    assert await jobs(session) == []


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"new_password": NEW_PASSWORD}, "#/current_password"),
        ({"current_password": PASSWORD}, "#/new_password"),
        ({"current_password": "", "new_password": NEW_PASSWORD}, "#/current_password"),
        ({"current_password": PASSWORD, "new_password": "bell\7 in the middle"}, "#/new_password"),
        ({"current_password": PASSWORD, "new_password": NEW_PASSWORD, "user_id": 1}, "#/user_id"),
    ],
)
async def test_an_invalid_change_is_refused(client: AsyncClient, user: LoggedIn, body: Any, pointer: str) -> None:
    assert_problem(await client.put(PATH, json=body, headers=user.headers), 422, "validation_error", pointer)


async def test_the_current_password_is_refused_as_the_new_one(
    client: AsyncClient, session: WriteSession, ada: User
) -> None:
    pair = await pair_of(client, ada.email)
    stored = (await existing(session, ada.id)).hashed_password

    response = await change(client, pair, new=PASSWORD)

    assert_problem(response, 422, "validation_error", "#/new_password")
    assert [error["code"] for error in response.json()["errors"]] == ["password_unchanged"]
    assert (await existing(session, ada.id)).hashed_password == stored
    assert (await client.get(ME, headers=bearer(pair))).status_code == 200
    assert not await events(session, "auth.password_changed")


async def test_a_wrong_password_given_as_both_is_wrong(client: AsyncClient, ada: User) -> None:
    response = await change(client, await pair_of(client, ada.email), NEW_PASSWORD, NEW_PASSWORD)

    assert_problem(response, 403, "wrong_password")


async def test_another_spelling_of_the_current_password_is_refused(
    client: AsyncClient, session: WriteSession, hasher: PasswordHasher
) -> None:
    password = "caf\u00e9 au lait at noon"
    account = await make_user(session, hasher, hashed_password=await hasher.hash(password))
    await session.commit()
    pair = (await log_in(client, account.email, password)).json()

    response = await change(client, pair, password, unicodedata.normalize("NFD", password))

    assert [error["code"] for error in response.json()["errors"]] == ["password_unchanged"]
    assert (await change(client, pair, password, password.upper())).status_code == 204


async def test_an_account_without_a_password_cannot_confirm_one(
    client: AsyncClient, session: WriteSession, ada: User
) -> None:
    pair = await pair_of(client, ada.email)
    await session.execute(text("UPDATE users SET hashed_password = NULL WHERE id = :id"), {"id": ada.id})
    await session.commit()

    assert_problem(await change(client, pair), 403, "wrong_password")


async def test_of_two_concurrent_changes_one_wins_and_the_other_gets_wrong_password(clone_url: str) -> None:
    settings = make_settings(clone_url, database=PATIENT)
    database = Database(settings.database)
    hasher = PasswordHasher(settings.of(AuthSettings))
    async with database.sessions() as session:
        await make_user(session, hasher, email="ada@example.com")
        await session.commit()
    hasher.close()
    words = [f"{NEW_PASSWORD} number {number}" for number in range(4)]
    async with running(create_app(settings)) as client:
        pair = await pair_of(client, "ada@example.com")

        answers = await asyncio.gather(*(change(client, pair, new=word) for word in words))
        logins = [await log_in(client, "ada@example.com", word) for word in words]

    await database.dispose()
    statuses = [response.status_code for response in answers]
    # Requests after the first commit are refused, because their tokens are older than the change.
    assert statuses.count(204) == 1
    assert set(statuses) <= {204, 401, 403}
    assert [login.status_code == 200 for login in logins] == [status == 204 for status in statuses]


async def test_no_mail_event_or_job_contains_a_password(
    client: AsyncClient, session: WriteSession, post: Post, ada: User
) -> None:
    pair = await pair_of(client, ada.email)
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    await client.put(f"{ME}/password", json=body, headers=bearer(pair))
    mails = await post.collect()

    said = str([mail.text for mail in mails]) + str(await events(session, "%"))
    stored = str((await session.execute(text("SELECT * FROM procrastinate_jobs"))).all())
    for password in (PASSWORD, NEW_PASSWORD):
        assert password not in said + stored
