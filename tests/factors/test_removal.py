"""Removing and resetting second factors, and replacing recovery codes, with the attacks on each."""

import time
from collections.abc import Awaitable, Callable

import pytest
from fastapi import FastAPI
from httpx2 import AsyncClient, Response
from sqlalchemy import text

from app.core.db.database import Database, WriteSession
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from tests.aftermath import assert_problem, events
from tests.auth.conftest import forge_for
from tests.auth.login_sessions import ME, Pair, can_refresh, is_accepted, start
from tests.auth.post import Post, bearer, log_in, refresh
from tests.conftest import LoggedIn, make_settings, running
from tests.factories import PASSWORD, make_user
from tests.factors.phone import (
    CODES,
    MFA,
    REAUTHENTICATE,
    TOTP,
    Enrolled,
    begin,
    challenges_of,
    enrol,
    factor_of,
    first_leg,
    live_sessions,
    log_in_with_code,
    second_leg,
    sessions_of,
    unused_codes,
)

type Send = Callable[[AsyncClient, dict[str, str]], Awaitable[Response]]
# The operations that weaken an account. Each needs a second factor that was given within five minutes.
WEAKENING: dict[str, Send] = {
    "remove": lambda client, headers: client.delete(TOTP, headers=headers),
    "regenerate": lambda client, headers: client.post(CODES, headers=headers),
}


async def test_a_removal_ends_the_sessions_that_have_given_the_factor(
    client: AsyncClient, session: WriteSession, owner: Enrolled, post: Post
) -> None:
    await post.collect()

    response = await client.delete(TOTP, headers=owner.pair.headers)

    assert response.status_code == 204, response.text
    assert await factor_of(session, owner.user_id) is None
    assert await unused_codes(session, owner.user_id) == 0
    assert await live_sessions(session, owner.user_id) == []
    assert not await is_accepted(client, owner.pair)
    assert [str(event.subject_id) for event in await events(session, "auth.mfa_disabled")] == [owner.user_id]
    (mail,) = await post.collect()
    assert (mail.to, "removed" in mail.subject) == (owner.email, True)
    # The password is enough again.
    assert (await log_in(client, owner.email)).status_code == 200


async def test_a_removal_ends_the_logins_of_this_account_that_wait(
    client: AsyncClient, session: WriteSession, owner: Enrolled, admin: LoggedIn
) -> None:
    other = await enrol(client, admin)
    for one in (owner, other):
        await first_leg(client, one.email)

    await client.delete(TOTP, headers=owner.pair.headers)

    assert [len(await challenges_of(session, one.user_id)) for one in (owner, other)] == [0, 1]


async def test_a_session_with_the_password_alone_survives_the_removal(
    client: AsyncClient, session: WriteSession, owner: Enrolled
) -> None:
    """Such a session began before this feature was installed."""
    await session.execute(text("UPDATE sessions SET acr = 'aal1', amr = '{pwd}' WHERE revoked_at IS NULL"))
    await session.commit()
    strong = await log_in_with_code(client, owner)

    response = await client.delete(TOTP, headers=strong.headers)

    assert response.status_code == 204
    assert [one.acr for one in await live_sessions(session, owner.user_id)] == ["aal1"]


async def test_new_recovery_codes_replace_the_old_ones(
    client: AsyncClient, session: WriteSession, owner: Enrolled
) -> None:
    response = await client.post(CODES, headers=owner.pair.headers)

    codes = response.json()["recovery_codes"]
    assert (response.status_code, len(set(codes))) == (201, 10)
    assert not set(codes) & set(owner.recovery_codes)
    assert await unused_codes(session, owner.user_id) == 10
    old = await second_leg(client, await first_leg(client, owner.email), recovery_code=owner.recovery_codes[0])
    new = await second_leg(client, await first_leg(client, owner.email), recovery_code=codes[0])
    assert (old.status_code, new.status_code) == (400, 200)
    assert len(await events(session, "auth.recovery_codes_created")) == 1


@pytest.mark.parametrize("weaken", WEAKENING)
@pytest.mark.parametrize(
    "claims", [{"acr": "aal1"}, {"auth_time": int(time.time()) - 301}], ids=["password alone", "stale"]
)
async def test_a_weak_or_stale_login_weakens_nothing(
    client: AsyncClient, session: WriteSession, owner: Enrolled, weaken: str, claims: dict[str, object]
) -> None:
    before = await factor_of(session, owner.user_id)
    token = forge_for(owner.pair.headers).with_claims(**claims)

    response = await WEAKENING[weaken](client, {"Authorization": f"Bearer {token}"})

    assert_problem(response, 401, "insufficient_user_authentication")
    assert 'acr_values="aal2", max_age=300' in response.headers["www-authenticate"]
    assert await factor_of(session, owner.user_id) == before
    assert await unused_codes(session, owner.user_id) == 10
    second = await second_leg(client, await first_leg(client, owner.email), recovery_code=owner.recovery_codes[0])
    assert second.status_code == 200


@pytest.mark.parametrize("weaken", WEAKENING)
async def test_without_a_factor_there_is_nothing_to_weaken(
    client: AsyncClient, session: WriteSession, user: LoggedIn, weaken: str
) -> None:
    await begin(client, user.headers)
    token = forge_for(user.headers).with_claims(acr="aal2")

    response = await WEAKENING[weaken](client, {"Authorization": f"Bearer {token}"})

    assert_problem(response, 404, "totp_not_found")
    assert await factor_of(session, user.user_id) is not None


async def test_a_stale_login_sets_nothing_up(client: AsyncClient, session: WriteSession, user: LoggedIn) -> None:
    token = forge_for(user.headers).with_claims(auth_time=int(time.time()) - 301)

    response = await client.post(TOTP, headers={"Authorization": f"Bearer {token}"})

    assert_problem(response, 401, "insufficient_user_authentication")
    assert await factor_of(session, user.user_id) is None


# --- giving the factor again


async def test_a_code_renews_a_stale_login(client: AsyncClient, owner: Enrolled) -> None:
    body = {"code": owner.phone.code(steps=1)}

    response = await client.post(REAUTHENTICATE, json=body, headers=owner.pair.headers)
    repeated = await client.post(REAUTHENTICATE, json=body, headers=owner.pair.headers)

    assert response.status_code == 200, response.text
    assert Pair(response.json()).claims["acr"] == "aal2"
    assert_problem(repeated, 403, "wrong_code")


async def test_a_recovery_code_renews_a_login_once(client: AsyncClient, session: WriteSession, owner: Enrolled) -> None:
    body = {"recovery_code": owner.recovery_codes[0]}

    responses = [await client.post(REAUTHENTICATE, json=body, headers=owner.pair.headers) for _ in range(2)]

    assert [response.status_code for response in responses] == [200, 403]
    assert await unused_codes(session, owner.user_id) == 9
    assert len(await events(session, "auth.recovery_code_used")) == 1


async def test_the_password_alone_renews_no_login_of_an_account_with_a_factor(
    client: AsyncClient, session: WriteSession, owner: Enrolled
) -> None:
    before = (await session.execute(text("SELECT id, auth_time, acr FROM sessions"))).all()

    response = await client.post(REAUTHENTICATE, json={"password": PASSWORD}, headers=owner.pair.headers)

    assert_problem(response, 403, "code_required")
    assert (await session.execute(text("SELECT id, auth_time, acr FROM sessions"))).all() == before


async def test_guesses_in_a_session_count_with_those_of_logins(client: AsyncClient, owner: Enrolled) -> None:
    body = {"code": owner.phone.wrong()}

    statuses = [
        (await client.post(REAUTHENTICATE, json=body, headers=owner.pair.headers)).status_code for _ in range(11)
    ]
    login = await second_leg(client, await first_leg(client, owner.email), code=owner.phone.code(steps=1))

    assert statuses == [403] * 10 + [429]
    assert login.status_code == 429


async def test_a_code_of_an_account_without_a_factor_is_wrong(client: AsyncClient, user: LoggedIn) -> None:
    phone = await begin(client, user.headers)

    response = await client.post(REAUTHENTICATE, json={"code": phone.code()}, headers=user.headers)

    assert_problem(response, 403, "wrong_code")


# --- other ways into the account leave the factor in place


async def test_a_reset_password_leaves_the_factor_in_place_and_mints_nothing(
    client: AsyncClient, session: WriteSession, owner: Enrolled, post: Post
) -> None:
    await post.collect()
    await client.post("/api/v1/auth/password/forgot", json={"email": owner.email})
    body = {"token": await post.link(), "new_password": "seven calm otters at noon"}

    response = await client.post("/api/v1/auth/password/reset", json=body)

    assert (response.status_code, response.content) == (204, b"")
    assert (await factor_of(session, owner.user_id)).confirmed_at is not None
    assert await unused_codes(session, owner.user_id) == 10
    assert await live_sessions(session, owner.user_id) == []
    assert (await log_in(client, owner.email, "seven calm otters at noon")).status_code == 403


async def test_a_changed_password_leaves_the_factor_in_place(
    client: AsyncClient, session: WriteSession, owner: Enrolled
) -> None:
    body = {"current_password": PASSWORD, "new_password": "seven calm otters at noon"}

    response = await client.put(f"{ME}/password", json=body, headers=owner.pair.headers)

    assert response.status_code == 204
    assert (await factor_of(session, owner.user_id)).confirmed_at is not None
    assert (await log_in(client, owner.email, "seven calm otters at noon")).status_code == 403


# --- administrators


@pytest.fixture
async def strong_admin(client: AsyncClient, admin: LoggedIn) -> Enrolled:
    """An administrator who has just given a second factor."""
    return await enrol(client, admin)


async def test_an_administrator_resets_an_account(
    client: AsyncClient, session: WriteSession, owner: Enrolled, strong_admin: Enrolled, post: Post
) -> None:
    await post.collect()
    waiting = await first_leg(client, owner.email)

    response = await client.delete(f"/api/v1/users/{owner.user_id}/mfa", headers=strong_admin.pair.headers)

    assert response.status_code == 204, response.text
    assert await factor_of(session, owner.user_id) is None
    assert await unused_codes(session, owner.user_id) == 0
    assert [one.revoke_reason for one in await sessions_of(session, owner.user_id)][-1] == "admin"
    assert (await second_leg(client, waiting, recovery_code=owner.recovery_codes[0])).status_code == 400
    (event,) = await events(session, "auth.mfa_reset_by_admin")
    assert (str(event.subject_id), str(event.actor_id)) == (owner.user_id, strong_admin.user_id)
    (mail,) = await post.collect()
    assert (mail.to, "has been reset" in mail.subject) == (owner.email, True)
    assert await factor_of(session, strong_admin.user_id) is not None


async def test_an_administrator_with_the_password_alone_resets_nothing(
    client: AsyncClient, session: WriteSession, owner: Enrolled, admin: LoggedIn
) -> None:
    response = await client.delete(f"/api/v1/users/{owner.user_id}/mfa", headers=admin.headers)

    assert_problem(response, 401, "insufficient_user_authentication")
    assert await factor_of(session, owner.user_id) is not None
    assert await is_accepted(client, owner.pair)


async def test_an_ordinary_user_resets_nothing(
    client: AsyncClient, session: WriteSession, owner: Enrolled, admin: LoggedIn
) -> None:
    other = await enrol(client, admin)

    response = await client.delete(f"/api/v1/users/{other.user_id}/mfa", headers=owner.pair.headers)

    assert_problem(response, 403, "insufficient_scope")
    assert await factor_of(session, other.user_id) is not None


async def test_an_unknown_account_is_not_found(client: AsyncClient, strong_admin: Enrolled) -> None:
    path = "/api/v1/users/00000000-0000-7000-8000-000000000000/mfa"

    response = await client.delete(path, headers=strong_admin.pair.headers)

    assert_problem(response, 404, "user_not_found")


async def test_an_administrator_resets_their_own_account(
    client: AsyncClient, session: WriteSession, strong_admin: Enrolled
) -> None:
    path = f"/api/v1/users/{strong_admin.user_id}/mfa"

    response = await client.delete(path, headers=strong_admin.pair.headers)

    assert response.status_code == 204
    assert await factor_of(session, strong_admin.user_id) is None


async def test_a_thief_who_sets_an_app_up_is_mailed_and_loses_it_with_a_new_password_and_a_reset(
    client: AsyncClient, session: WriteSession, user: LoggedIn, strong_admin: Enrolled, post: Post
) -> None:
    """The thief has the access token of a login that is younger than five minutes."""
    await post.collect()
    thief = await enrol(client, user)
    subjects = await post.subjects()

    await client.post("/api/v1/auth/password/forgot", json={"email": user.email})
    body = {"token": await post.link(), "new_password": "seven calm otters at noon"}
    await client.post("/api/v1/auth/password/reset", json=body)
    is_thief_out = not await is_accepted(client, thief.pair) and not await can_refresh(client, thief.pair)
    between = await log_in(client, user.email, "seven calm otters at noon")
    await client.delete(f"/api/v1/users/{user.user_id}/mfa", headers=strong_admin.pair.headers)
    after = await log_in(client, user.email, "seven calm otters at noon")

    assert [(to, "has been added" in subject) for to, subject in subjects] == [(user.email, True)]
    assert is_thief_out
    assert (between.status_code, after.status_code) == (403, 200)
    assert [one.acr for one in await live_sessions(session, user.user_id)] == ["aal1"]


# --- roles that need a factor


@pytest.fixture
async def demanding(
    database_url: str, database: Database, session: WriteSession, hasher: PasswordHasher
) -> tuple[FastAPI, str]:
    """An application in which administrators need a second factor, and the address of an administrator."""
    settings = make_settings(database_url, auth={"mfa_required_roles": "admin"})
    account = await make_user(session, hasher, role="admin")
    await session.commit()
    return create_app(settings, database), account.email


async def test_a_role_gives_its_scopes_only_with_a_factor(
    demanding: tuple[FastAPI, str], session: WriteSession
) -> None:
    app, email = demanding
    async with running(app) as client:
        weak = await start(client, email)
        refused = await client.get("/api/v1/users", headers=weak.headers)
        refreshed = await refresh(client, weak.body)
        status = await client.get(MFA, headers=weak.headers)
        user_id = weak.claims["sub"]
        strong = await enrol(client, LoggedIn(user_id, email, bearer(refreshed.json())))
        accepted = await client.get("/api/v1/users", headers=strong.pair.headers)
        later = await log_in_with_code(client, strong)

    assert (weak.body["scope"], refreshed.json()["scope"]) == ("", "")
    assert_problem(refused, 401, "insufficient_user_authentication")
    assert 'acr_values="aal2"' in refused.headers["www-authenticate"]
    assert status.json()["is_required"] is True
    assert accepted.status_code == 200
    assert "users:read" in later.body["scope"]
    assert (await factor_of(session, user_id)).confirmed_at is not None


async def test_the_last_factor_of_a_role_that_needs_one_stays(
    demanding: tuple[FastAPI, str], session: WriteSession
) -> None:
    app, email = demanding
    async with running(app) as client:
        weak = await start(client, email)
        strong = await enrol(client, LoggedIn(weak.claims["sub"], email, weak.headers))
        by_owner = await client.delete(TOTP, headers=strong.pair.headers)
        as_admin = await client.delete(f"/api/v1/users/{strong.user_id}/mfa", headers=strong.pair.headers)

    assert_problem(by_owner, 409, "mfa_required_by_role")
    assert_problem(as_admin, 409, "mfa_required_by_role")
    assert (await factor_of(session, strong.user_id)).confirmed_at is not None
    assert await unused_codes(session, strong.user_id) == 10


async def test_a_role_given_later_takes_the_scopes_of_a_weak_session_away(
    demanding: tuple[FastAPI, str], session: WriteSession, hasher: PasswordHasher
) -> None:
    app, _ = demanding
    account = await make_user(session, hasher)
    await session.commit()
    async with running(app) as client:
        pair = await start(client, account.email)
        await session.execute(
            text("UPDATE users SET role = 'admin', authz_version = authz_version + 1 WHERE id = :id"),
            {"id": account.id},
        )
        await session.commit()
        refreshed = (await refresh(client, pair.body)).json()
        response = await client.get("/api/v1/users", headers=bearer(refreshed))

    assert refreshed["scope"] == ""
    assert_problem(response, 401, "insufficient_user_authentication")
