"""Change of address: requested with the password, confirmed at the new address, with a notice to the old one."""

from typing import Any

import pytest
from httpx2 import AsyncClient, Response
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from app.core import product
from app.core.db.database import Database, WriteSession
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from app.users import crud
from app.users.models import User
from tests.aftermath import assert_problem, events, existing, jobs, snapshot
from tests.auth.post import (
    AUTH,
    ME,
    NEW_PASSWORD,
    Post,
    answer,
    bearer,
    end_windows,
    link_in,
    log_in,
    pair_of,
    refresh,
)
from tests.conftest import LoggedIn, make_settings, running
from tests.factories import PASSWORD, make_user

PATH = f"{ME}/email"
CONFIRM = f"{AUTH}/email/confirm"
NEW = "lovelace@example.org"

type Pair = dict[str, Any]


@pytest.fixture
async def ada(session: WriteSession, hasher: PasswordHasher) -> User:
    """An account with a password."""
    account = await make_user(session, hasher, email="ada@example.com", full_name="Ada")
    await session.commit()
    return account


@pytest.fixture
async def pair(client: AsyncClient, ada: User) -> Pair:
    """Ada's login."""
    return await pair_of(client, ada.email)


async def ask(client: AsyncClient, pair: Pair, new_email: str = NEW, password: str = PASSWORD) -> Response:
    return await client.post(PATH, json={"new_email": new_email, "password": password}, headers=bearer(pair))


async def confirm(client: AsyncClient, secret: str) -> Response:
    return await client.post(CONFIRM, json={"token": secret})


async def test_the_new_address_confirms_and_the_old_one_gets_a_notice(
    client: AsyncClient, post: Post, pair: Pair
) -> None:
    asked = await ask(client, pair, "Lovelace@EXAMPLE.org")
    first = {mail.to: mail for mail in await post.collect()}
    confirmed = await confirm(client, link_in(first["Lovelace@example.org"]).partition("#token=")[2])

    assert (asked.status_code, asked.json()) == (202, {"detail": "If this can be done, a mail is on its way."})
    assert first["Lovelace@example.org"].subject == f"Confirm your new address for {product.NAME}"
    assert first["ada@example.com"].subject == f"Your email address for {product.NAME} is about to change"
    assert "token" not in first["ada@example.com"].text
    assert (confirmed.status_code, confirmed.content) == (204, b"")
    assert await post.subjects() == [("ada@example.com", f"Your email address for {product.NAME} has been changed")]


async def test_the_address_does_not_change_before_it_is_confirmed(
    client: AsyncClient, session: WriteSession, post: Post, ada: User, pair: Pair
) -> None:
    before = await existing(session, ada.id)

    await ask(client, pair)
    await post.collect()

    assert await existing(session, ada.id) == before
    assert (await log_in(client, NEW)).status_code == 400


async def test_the_new_address_logs_in_and_the_old_does_not(
    client: AsyncClient, session: WriteSession, post: Post, ada: User, pair: Pair
) -> None:
    await ask(client, pair, "Lovelace@EXAMPLE.org")

    await confirm(client, await post.link())

    assert (await log_in(client, NEW)).status_code == 200
    assert (await log_in(client, "ada@example.com")).status_code == 400
    row = await existing(session, ada.id)
    assert (row.email, row.email_key) == ("Lovelace@example.org", NEW)
    assert row.email_verified_at > ada.email_verified_at
    assert row.version == ada.version + 1


async def test_the_other_sessions_end_and_the_requesting_one_continues(
    client: AsyncClient, session: WriteSession, post: Post, ada: User, pair: Pair, user: LoggedIn
) -> None:
    other = await pair_of(client, ada.email)
    await ask(client, pair)

    await confirm(client, await post.link())

    assert (await client.get(ME, headers=bearer(pair))).json()["email"] == NEW
    assert (await client.get(ME, headers=bearer(other))).status_code == 401
    assert (await refresh(client, other)).status_code == 400
    assert (await refresh(client, pair)).status_code == 200
    assert (await client.get(ME, headers=user.headers)).status_code == 200
    statement = text("SELECT revoke_reason FROM sessions WHERE user_id = :id AND revoked_at IS NOT NULL")
    assert (await session.scalars(statement, {"id": ada.id})).all() == ["email_changed"]


async def test_a_change_can_be_confirmed_after_the_requesting_session_has_ended(
    client: AsyncClient, session: WriteSession, post: Post, ada: User, pair: Pair
) -> None:
    await ask(client, pair)
    await client.post(f"{AUTH}/revoke", data={"token": pair["refresh_token"]})

    response = await confirm(client, await post.link())

    assert response.status_code == 204
    assert (await existing(session, ada.id)).email == NEW


async def test_the_audit_log_has_the_request_and_the_change(
    client: AsyncClient, session: WriteSession, post: Post, ada: User, pair: Pair
) -> None:
    await ask(client, pair)
    await confirm(client, await post.link())

    asked, moved = await events(session, "auth.email%")
    assert (asked.event, asked.actor_id, asked.subject_id) == ("auth.email_change_requested", ada.id, ada.id)
    assert (moved.event, moved.actor_id, moved.subject_id) == ("auth.email_changed", None, ada.id)
    assert NEW not in str((asked.detail, moved.detail))


async def test_a_link_works_once(client: AsyncClient, post: Post, pair: Pair) -> None:
    await ask(client, pair)
    secret = await post.link()

    first, second = await confirm(client, secret), await confirm(client, secret)

    assert first.status_code == 204
    assert_problem(second, 400, "invalid_token")


@pytest.mark.parametrize(("age", "status"), [("23 hours 59 minutes", 204), ("24 hours", 400)])
async def test_a_link_works_for_a_day(
    client: AsyncClient, session: WriteSession, post: Post, pair: Pair, age: str, status: int
) -> None:
    await ask(client, pair)
    secret = await post.link()
    statement = text("UPDATE account_links SET expires_at = expires_at - CAST(:age AS text)::interval")
    await session.execute(statement, {"age": age})
    await session.commit()

    assert (await confirm(client, secret)).status_code == status


async def test_of_two_pending_changes_the_last_wins(
    client: AsyncClient, session: WriteSession, post: Post, ada: User, pair: Pair
) -> None:
    await ask(client, pair, "first@example.org")
    first = await post.link()
    await ask(client, pair, "second@example.org")
    second = await post.link()

    answers = [await confirm(client, secret) for secret in (first, second)]

    assert [response.status_code for response in answers] == [400, 204]
    assert (await existing(session, ada.id)).email == "second@example.org"


async def test_an_address_that_was_taken_since_is_refused_like_a_forged_link(
    client: AsyncClient, session: WriteSession, post: Post, ada: User, pair: Pair
) -> None:
    await ask(client, pair)
    secret = await post.link()
    await make_user(session, email=NEW.upper())
    await session.commit()

    late, forged = await confirm(client, secret), await confirm(client, secret[:-4] + "AAAA")

    assert_problem(late, 400, "invalid_token")
    assert answer(late) == answer(forged)
    assert (await existing(session, ada.id)).email == "ada@example.com"
    assert (await client.get(ME, headers=bearer(pair))).status_code == 200
    assert await post.collect() == []


async def test_another_violated_constraint_raises(session: WriteSession, ada: User) -> None:
    with pytest.raises(IntegrityError, match="ck_users_role"):
        await crud.change_email(session, ada.id, {"role": "king"})


async def test_an_address_that_became_free_again_can_be_confirmed(
    client: AsyncClient, session: WriteSession, post: Post, pair: Pair
) -> None:
    other = await make_user(session, email=NEW)
    await session.commit()
    await ask(client, pair)
    secret = await post.link()
    taken = await confirm(client, secret)
    await session.execute(text("DELETE FROM users WHERE id = :id"), {"id": other.id})
    await session.commit()

    assert [taken.status_code, (await confirm(client, secret)).status_code] == [400, 204]


@pytest.mark.parametrize("new_email", ["ada@example.com", "ADA@Example.com", "other@example.com", "free@example.com"])
async def test_a_requested_change_reveals_nothing_about_the_address(
    client: AsyncClient, session: WriteSession, pair: Pair, new_email: str
) -> None:
    await make_user(session, email="other@example.com", email_verified_at=None)
    await session.commit()

    asked, reference = await ask(client, pair, new_email), await ask(client, pair, "nobody@example.com")

    assert asked.status_code == 202
    assert answer(asked) == answer(reference)


async def test_another_spelling_of_one_s_own_address_is_a_change(
    client: AsyncClient, session: WriteSession, post: Post, ada: User, pair: Pair
) -> None:
    await ask(client, pair, "ADA@example.com")

    response = await confirm(client, await post.link())

    assert response.status_code == 204
    assert (await existing(session, ada.id)).email == "ADA@example.com"


async def test_a_wrong_password_requests_no_change(client: AsyncClient, session: WriteSession, pair: Pair) -> None:
    before = (await snapshot(session))["account_links"]

    response = await ask(client, pair, password="not the password, surely")

    assert_problem(response, 403, "wrong_password")
    assert (await snapshot(session))["account_links"] == before
    assert await jobs(session) == []


async def test_a_password_reset_during_hashing_leaves_no_link(
    client: AsyncClient, session: WriteSession, post: Post, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.post(f"{AUTH}/password/forgot", json={"email": "ada@example.com"})
    secret = link_in((await post.collect())[-1]).partition("#token=")[2]
    verify = PasswordHasher.verify

    async def overtaken(hasher: PasswordHasher, password: str, stored: str | None) -> Any:
        verification = await verify(hasher, password, stored)
        # The owner is quicker than the thief of the password, whose request has come this far.
        reset = await client.post(f"{AUTH}/password/reset", json={"token": secret, "new_password": NEW_PASSWORD})
        assert reset.status_code == 204
        return verification

    monkeypatch.setattr(PasswordHasher, "verify", overtaken)

    response = await ask(client, pair)

    assert_problem(response, 401, "invalid_token")
    assert await session.scalar(text("SELECT count(*) FROM account_links")) == 0
    assert not await events(session, "auth.email_change_requested")
    assert {mail.to for mail in await post.collect()} == {"ada@example.com"}


@pytest.mark.parametrize("state", ["is_active = false", "hashed_password = NULL"])
async def test_a_link_of_a_disabled_account_is_refused(
    client: AsyncClient, session: WriteSession, post: Post, ada: User, pair: Pair, state: str
) -> None:
    await ask(client, pair)
    secret = await post.link()
    await session.execute(text(f"UPDATE users SET {state} WHERE id = :id"), {"id": ada.id})  # noqa: S608  # The table above.
    await session.commit()

    response = await confirm(client, secret)

    assert response.status_code == (400 if "is_active" in state else 204)


async def test_links_mailed_to_the_old_address_stop_working(
    client: AsyncClient, session: WriteSession, post: Post, ada: User, pair: Pair
) -> None:
    await client.post(f"{AUTH}/password/forgot", json={"email": ada.email})
    old = await post.link()
    await ask(client, pair)
    await confirm(client, await post.link())

    late = await client.post(f"{AUTH}/password/reset", json={"token": old, "new_password": NEW_PASSWORD})

    assert_problem(late, 400, "invalid_token")
    assert (await snapshot(session))["account_links"] == []


async def test_after_the_change_mail_goes_to_the_new_address(
    client: AsyncClient, session: WriteSession, post: Post, pair: Pair
) -> None:
    await ask(client, pair)
    await confirm(client, await post.link())
    await post.collect()
    await end_windows(session)

    await client.post(f"{AUTH}/password/forgot", json={"email": "ada@example.com"})
    await client.post(f"{AUTH}/password/forgot", json={"email": "LOVELACE@example.org"})

    assert [mail.to for mail in await post.collect()] == [NEW]


async def test_mail_to_a_new_address_counts_against_its_mail_limit(
    client: AsyncClient, session: WriteSession, post: Post, pair: Pair
) -> None:
    answers = [(await ask(client, pair)).status_code for _ in range(2)]
    await end_windows(session, "mail-minute:%")
    answers.append((await ask(client, pair)).status_code)

    assert answers == [202, 429, 202]
    assert [mail.to for mail in await post.collect() if "#token" in mail.text] == [NEW]


async def test_changes_of_address_are_limited_per_account(client: AsyncClient, post: Post, pair: Pair) -> None:
    answers = [await ask(client, pair, f"victim{number}@example.org") for number in range(6)]

    assert [response.status_code for response in answers] == [202] * 5 + [429]
    assert_problem(answers[-1], 429, "rate_limited")
    assert "victim5@example.org" not in [mail.to for mail in await post.collect()]


async def test_changes_of_address_of_one_account_do_not_limit_another(
    client: AsyncClient, session: WriteSession, hasher: PasswordHasher, pair: Pair
) -> None:
    other = await make_user(session, hasher)
    await session.commit()
    for number in range(6):
        await ask(client, pair, f"new{number}@example.org")

    response = await ask(client, await pair_of(client, other.email), "elsewhere@example.org")

    assert response.status_code == 202


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"password": PASSWORD}, "#/new_email"),
        ({"new_email": NEW}, "#/password"),
        ({"new_email": [NEW, "eve@evil.co"], "password": PASSWORD}, "#/new_email"),
        ({"new_email": "no address", "password": PASSWORD}, "#/new_email"),
        ({"new_email": NEW, "password": PASSWORD, "email": NEW}, "#/email"),
    ],
)
async def test_an_invalid_change_is_refused(client: AsyncClient, user: LoggedIn, body: Any, pointer: str) -> None:
    assert_problem(await client.post(PATH, json=body, headers=user.headers), 422, "validation_error", pointer)


async def test_the_link_leads_to_the_configured_address(database_url: str, database: Database, ada: User) -> None:
    settings = make_settings(database_url, server={"public_url": "https://id.example.com"})
    async with running(create_app(settings, database)) as client:
        pair = await pair_of(client, ada.email)
        await client.post(
            PATH,
            json={"new_email": NEW, "password": PASSWORD},
            headers={**bearer(pair), "Host": "evil.example", "X-Forwarded-Host": "evil.example"},
        )
    (mail,) = [mail for mail in await Post(database, settings).collect() if mail.to == NEW]

    assert link_in(mail).startswith("https://id.example.com/account/confirm-email#token=lt1.")


async def test_a_changed_password_cancels_a_pending_change(client: AsyncClient, post: Post, pair: Pair) -> None:
    await ask(client, pair)
    confirmation = await post.link()
    passwords = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    changed = await client.put(f"{ME}/password", json=passwords, headers=bearer(pair))

    late = await confirm(client, confirmation)

    assert changed.status_code == 204
    assert_problem(late, 400, "invalid_token")


async def test_a_reset_password_cancels_a_pending_change(
    client: AsyncClient, post: Post, ada: User, pair: Pair
) -> None:
    await ask(client, pair)
    confirmation = await post.link()
    await client.post(f"{AUTH}/password/forgot", json={"email": ada.email})
    body = {"token": await post.link(), "new_password": NEW_PASSWORD}
    reset = await client.post(f"{AUTH}/password/reset", json=body)

    late = await confirm(client, confirmation)

    assert reset.status_code == 204
    assert_problem(late, 400, "invalid_token")


async def test_the_mailed_link_leads_to_a_page_that_changes_nothing(
    client: AsyncClient, session: WriteSession, post: Post, pair: Pair
) -> None:
    await ask(client, pair)
    path = next(link_in(mail) for mail in await post.collect() if mail.to == NEW).partition("#")[0]
    before = await snapshot(session)

    page = await client.get(path.removeprefix("http://127.0.0.1:8000"))

    assert page.status_code == 200
    assert 'data-endpoint="../api/v1/auth/email/confirm"' in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert await snapshot(session) == before


async def test_production_refuses_an_address_of_a_special_use_domain(
    client: AsyncClient, database_url: str, database: Database, session: WriteSession, pair: Pair
) -> None:
    accepted = await ask(client, pair, "ada@corp.local")
    before = await snapshot(session)

    async with running(
        create_app(make_settings(database_url, mail={"special_use_domains": False}), database)
    ) as strict:
        refused = await ask(strict, pair, "eve@corp.local")

    assert accepted.status_code == 202
    assert_problem(refused, 422, "validation_error", "#/new_email")
    assert await snapshot(session) == before
