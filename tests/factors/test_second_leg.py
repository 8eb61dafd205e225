"""The second leg of a login, and attacks on it. The state is read through a second session."""

import time
from typing import Any
from uuid import UUID

import pytest
from httpx2 import AsyncClient
from sqlalchemy import text

from app.core import product
from app.core.db.database import WriteSession
from app.factors.login.limits import GUESSES_PER_LOGIN
from tests.aftermath import assert_problem, events
from tests.auth.forge import Forge, signing_jwk
from tests.auth.login_sessions import ME, Pair, can_refresh, is_accepted, send_refresh
from tests.auth.post import Post, end_windows, log_in
from tests.conftest import KEY_SET, LoggedIn
from tests.factors.phone import (
    NOBODYS_CODE,
    SECOND_LEG,
    Enrolled,
    challenges_of,
    enrol,
    factor_of,
    first_leg,
    forget_used_codes,
    live_sessions,
    log_in_with_code,
    second_leg,
    unused_codes,
)


async def test_the_first_leg_gives_no_tokens_and_no_session(
    client: AsyncClient, session: WriteSession, owner: Enrolled
) -> None:
    before = await live_sessions(session, owner.user_id)

    response = await log_in(client, owner.email)

    assert_problem(response, 403, "mfa_required")
    body: dict[str, Any] = response.json()
    assert (body["error"], body["expires_in"], body["methods"]) == ("mfa_required", 300, ["totp", "recovery_code"])
    assert not {"access_token", "refresh_token"} & body.keys()
    assert "set-cookie" not in response.headers
    assert await live_sessions(session, owner.user_id) == before
    (asked,) = await events(session, "auth.second_factor_asked")
    assert (asked.subject_id, asked.detail) == (UUID(owner.user_id), {})


async def test_a_code_completes_the_login(client: AsyncClient, session: WriteSession, owner: Enrolled) -> None:
    token = await first_leg(client, owner.email)

    response = await second_leg(client, token, code=owner.phone.code(steps=1))

    assert response.status_code == 200
    assert (response.headers["cache-control"], response.headers["pragma"]) == ("no-store", "no-cache")
    pair = Pair(response.json())
    assert (pair.claims["acr"], pair.claims["amr"]) == ("aal2", ["pwd", "otp", "mfa"])
    assert await is_accepted(client, pair)
    assert await can_refresh(client, pair)
    assert await challenges_of(session, owner.user_id) == []
    factor = await factor_of(session, owner.user_id)
    assert factor.last_step == int(time.time()) // 30 + 1


async def test_a_recovery_code_completes_the_login_and_is_used_up(
    client: AsyncClient, session: WriteSession, owner: Enrolled, post: Post
) -> None:
    await post.collect()
    typed = owner.recovery_codes[3].lower().replace("-", " ").replace("0", "o")

    response = await second_leg(client, await first_leg(client, owner.email), recovery_code=typed)

    assert response.status_code == 200
    assert Pair(response.json()).claims["amr"] == ["pwd", "rc", "mfa"]
    assert await unused_codes(session, owner.user_id) == 9
    assert [event.detail for event in await events(session, "auth.recovery_code_used")] == [{"left": 9}]
    (mail,) = [mail for mail in await post.collect() if "recovery code" in mail.subject]
    assert mail.to == owner.email
    assert "9 codes are left" in mail.text


async def test_the_second_leg_can_keep_the_refresh_token_in_its_cookie(client: AsyncClient, owner: Enrolled) -> None:
    body = {"mfa_token": await first_leg(client, owner.email), "code": owner.phone.code(steps=1)}
    headers = {"Token-Transport": "cookie", "Origin": "http://127.0.0.1:8000"}

    response = await client.post(SECOND_LEG, json=body, headers=headers)

    assert response.status_code == 200, response.text
    assert "refresh_token" not in response.json()
    assert response.headers["set-cookie"].startswith("__Host-refresh=rt1.")


async def test_a_refused_second_leg_sets_no_cookie(client: AsyncClient, owner: Enrolled) -> None:
    body = {"mfa_token": await first_leg(client, owner.email), "code": owner.phone.wrong()}
    headers = {"Token-Transport": "cookie", "Origin": "http://127.0.0.1:8000"}

    response = await client.post(SECOND_LEG, json=body, headers=headers)

    assert_problem(response, 400, "invalid_grant")
    assert "set-cookie" not in response.headers


async def test_the_second_leg_grants_the_scopes_that_the_first_has_requested(
    client: AsyncClient, session: WriteSession, admin: LoggedIn
) -> None:
    owner = await enrol(client, admin)
    form = {"grant_type": "password", "username": owner.email, "password": "correct horse battery staple"}
    first = await client.post("/api/v1/auth/token", data={**form, "scope": "users:read"})

    response = await second_leg(client, first.json()["mfa_token"], code=owner.phone.code(steps=1))

    assert response.json()["scope"] == "users:read"
    assert (await live_sessions(session, owner.user_id))[-1].scope == "users:read"


async def test_a_wrong_code_is_an_oauth_error(client: AsyncClient, session: WriteSession, owner: Enrolled) -> None:
    before = await live_sessions(session, owner.user_id)
    token = await first_leg(client, owner.email)

    response = await second_leg(client, token, code=owner.phone.wrong())

    assert_problem(response, 400, "invalid_grant")
    assert response.json()["error"] == "invalid_grant"
    assert response.headers["pragma"] == "no-cache"
    assert await live_sessions(session, owner.user_id) == before
    assert [one.failures for one in await challenges_of(session, owner.user_id)] == [1]
    (failed,) = await events(session, "auth.second_factor_failed")
    assert (failed.subject_id, failed.detail) == (UUID(owner.user_id), {"reason": "wrong"})


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"code": "12345a"}, "#/code"),
        ({"code": "1234567"}, "#/code"),
        ({"code": None}, "#/code"),
        ({"recovery_code": None}, "#/recovery_code"),
        ({"recovery_code": ""}, "#/recovery_code"),
        ({}, "#/"),
        ({"code": "123456", "recovery_code": NOBODYS_CODE}, "#/"),
        ({"code": "123456", "password": "x"}, "#/password"),
        ({"code": "123456", "mfa_token": ""}, "#/mfa_token"),
    ],
)
async def test_a_malformed_body_is_refused_before_it_counts(
    client: AsyncClient, session: WriteSession, owner: Enrolled, body: dict[str, object], pointer: str
) -> None:
    token = await first_leg(client, owner.email)

    response = await client.post(SECOND_LEG, json={"mfa_token": token, **body})

    assert_problem(response, 422, "validation_error", pointer)
    assert [one.failures for one in await challenges_of(session, owner.user_id)] == [0]


# --- single use


async def test_a_code_works_once(client: AsyncClient, session: WriteSession, owner: Enrolled) -> None:
    code = owner.phone.code(steps=1)
    tokens = [await first_leg(client, owner.email) for _ in range(2)]

    responses = [await second_leg(client, token, code=code) for token in tokens]

    assert [response.status_code for response in responses] == [200, 400]
    assert len(await live_sessions(session, owner.user_id)) == 2
    assert [event.detail for event in await events(session, "auth.second_factor_failed")] == [{"reason": "used"}]


async def test_the_code_of_the_setup_does_not_log_in(client: AsyncClient, owner: Enrolled) -> None:
    response = await second_leg(client, await first_leg(client, owner.email), code=owner.phone.code())

    assert_problem(response, 400, "invalid_grant")


async def test_a_code_of_a_step_before_the_last_accepted_one_is_refused(
    client: AsyncClient, session: WriteSession, owner: Enrolled
) -> None:
    await forget_used_codes(session)
    await log_in_with_code(client, owner, steps=1)

    for steps in (0, -1):
        response = await second_leg(client, await first_leg(client, owner.email), code=owner.phone.code(steps=steps))
        assert_problem(response, 400, "invalid_grant")


async def test_a_recovery_code_works_once(client: AsyncClient, session: WriteSession, owner: Enrolled) -> None:
    code = owner.recovery_codes[0]

    responses = [await second_leg(client, await first_leg(client, owner.email), recovery_code=code) for _ in range(2)]

    assert [response.status_code for response in responses] == [200, 400]
    assert await unused_codes(session, owner.user_id) == 9


async def test_a_recovery_code_of_another_account_is_refused(
    client: AsyncClient, session: WriteSession, owner: Enrolled, admin: LoggedIn
) -> None:
    other = await enrol(client, admin)

    response = await second_leg(client, await first_leg(client, owner.email), recovery_code=other.recovery_codes[0])

    assert_problem(response, 400, "invalid_grant")
    assert await unused_codes(session, other.user_id) == 10


@pytest.mark.parametrize("typed", [NOBODYS_CODE, "x", "0000", "\N{SNOWMAN}" * 24])
async def test_a_text_that_is_no_recovery_code_is_a_wrong_code(
    client: AsyncClient, owner: Enrolled, typed: str
) -> None:
    response = await second_leg(client, await first_leg(client, owner.email), recovery_code=typed)

    assert_problem(response, 400, "invalid_grant")


# --- the token of the first leg


async def test_a_token_works_once(client: AsyncClient, session: WriteSession, owner: Enrolled) -> None:
    token = await first_leg(client, owner.email)

    first = await second_leg(client, token, code=owner.phone.code(steps=1))
    second = await second_leg(client, token, recovery_code=owner.recovery_codes[0])

    assert (first.status_code, second.status_code) == (200, 400)
    assert await unused_codes(session, owner.user_id) == 10


async def test_a_token_is_no_access_token_and_no_refresh_token(client: AsyncClient, owner: Enrolled) -> None:
    token = await first_leg(client, owner.email)

    as_bearer = await client.get(ME, headers={"Authorization": f"Bearer {token}"})
    as_refresh = await send_refresh(client, token)
    as_link = await client.post("/api/v1/auth/password/reset", json={"token": token, "new_password": "x" * 30})

    assert_problem(as_bearer, 401, "invalid_token")
    assert_problem(as_refresh, 400, "invalid_grant")
    assert_problem(as_link, 400, "invalid_token")


async def test_tokens_of_a_session_complete_no_login(client: AsyncClient, owner: Enrolled) -> None:
    for token in (owner.pair.access, owner.pair.refresh):
        response = await second_leg(client, token, code=owner.phone.code(steps=1))
        assert_problem(response, 400, "invalid_grant")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE users SET authz_version = authz_version + 1 WHERE id = :id",
        "UPDATE users SET is_active = false WHERE id = :id",
        "UPDATE login_challenges SET expires_at = now() WHERE user_id = :id",
        "DELETE FROM login_challenges WHERE user_id = :id",
        "DELETE FROM totp_secrets WHERE user_id = :id",
    ],
    ids=["changed password or role", "disabled", "expired", "lost in a crash or a restore", "factor removed"],
)
async def test_a_token_ends_with_what_it_stands_for(
    client: AsyncClient, session: WriteSession, owner: Enrolled, change: str
) -> None:
    token = await first_leg(client, owner.email)
    await session.execute(text(change), {"id": owner.user_id})
    await session.commit()
    before = await live_sessions(session, owner.user_id)

    response = await second_leg(client, token, code=owner.phone.code(steps=1))

    assert_problem(response, 400, "invalid_grant")
    assert await live_sessions(session, owner.user_id) == before


async def test_a_changed_password_ends_a_login_that_waits(client: AsyncClient, owner: Enrolled) -> None:
    token = await first_leg(client, owner.email)
    body = {"current_password": "correct horse battery staple", "new_password": "seven calm otters at noon"}
    changed = await client.put(f"{ME}/password", json=body, headers=owner.pair.headers)

    response = await second_leg(client, token, code=owner.phone.code(steps=1))

    assert changed.status_code == 204, changed.text
    assert_problem(response, 400, "invalid_grant")


async def test_ending_all_sessions_leaves_a_login_that_waits_alone(client: AsyncClient, owner: Enrolled) -> None:
    token = await first_leg(client, owner.email)
    await client.delete(f"{ME}/sessions", headers=owner.pair.headers)
    await client.post("/api/v1/auth/revoke", data={"token": owner.pair.refresh})

    response = await second_leg(client, token, code=owner.phone.code(steps=1))

    assert response.status_code == 200


@pytest.mark.parametrize("position", [4, 10, 26, 30, 68])
async def test_a_forged_token_is_refused_and_uses_up_no_guess(
    client: AsyncClient, session: WriteSession, owner: Enrolled, position: int
) -> None:
    token = await first_leg(client, owner.email)
    replaced = "A" if token[position] != "A" else "Q"
    forged = token[:position] + replaced + token[position + 1 :]

    response = await second_leg(client, forged, code=owner.phone.code(steps=1))

    assert_problem(response, 400, "invalid_grant")
    assert [one.failures for one in await challenges_of(session, owner.user_id)] == [0]


async def test_the_token_of_a_removed_pepper_is_refused(
    client: AsyncClient, session: WriteSession, owner: Enrolled
) -> None:
    token = await first_leg(client, owner.email)
    await session.execute(text("UPDATE login_challenges SET pepper_id = 200"))
    await session.commit()

    response = await second_leg(client, token, code=owner.phone.code(steps=1))

    assert_problem(response, 400, "invalid_grant")


async def test_the_token_of_one_account_takes_no_code_of_another(
    client: AsyncClient, session: WriteSession, owner: Enrolled, admin: LoggedIn
) -> None:
    other = await enrol(client, admin)
    before = [await factor_of(session, one.user_id) for one in (owner, other)]

    response = await second_leg(client, await first_leg(client, owner.email), code=other.phone.code(steps=1))

    assert_problem(response, 400, "invalid_grant")
    assert [await factor_of(session, one.user_id) for one in (owner, other)] == before


# --- limits


async def test_a_login_has_five_guesses_and_its_owner_gets_a_mail(
    client: AsyncClient, owner: Enrolled, post: Post
) -> None:
    await post.collect()
    token = await first_leg(client, owner.email)

    wrong = [await second_leg(client, token, code=owner.phone.wrong()) for _ in range(GUESSES_PER_LOGIN)]
    right = await second_leg(client, token, code=owner.phone.code(steps=1))

    assert {response.status_code for response in (*wrong, right)} == {400}
    (mail,) = await post.collect()
    assert (mail.to, mail.subject) == (
        owner.email,
        f"Somebody has entered wrong codes for your account at {product.NAME}",
    )


async def test_a_right_code_on_the_fifth_guess_completes_the_login(client: AsyncClient, owner: Enrolled) -> None:
    token = await first_leg(client, owner.email)
    for _ in range(GUESSES_PER_LOGIN - 1):
        await second_leg(client, token, code=owner.phone.wrong())

    assert (await second_leg(client, token, code=owner.phone.code(steps=1))).status_code == 200


async def guess(client: AsyncClient, owner: Enrolled, times: int) -> list[int]:
    """Guess over several logins, at most four times each."""
    statuses: list[int] = []
    while len(statuses) < times:
        token = await first_leg(client, owner.email)
        some = min(GUESSES_PER_LOGIN - 1, times - len(statuses))
        statuses += [(await second_leg(client, token, code=owner.phone.wrong())).status_code for _ in range(some)]
    return statuses


async def test_guesses_over_many_logins_are_mailed_too_once_a_day(
    client: AsyncClient, session: WriteSession, owner: Enrolled, post: Post
) -> None:
    await post.collect()
    await guess(client, owner, 4)
    before = await post.subjects()

    await guess(client, owner, 1)
    fifth = await post.subjects()
    for _ in range(2):
        await end_windows(session, "mfa-account:%")
        await guess(client, owner, 8)
    later = await post.subjects()

    assert (before, later) == ([], [])
    assert fifth == [(owner.email, f"Somebody has entered wrong codes for your account at {product.NAME}")]


async def test_an_account_has_ten_guesses_that_a_right_password_does_not_reset(
    client: AsyncClient, session: WriteSession, owner: Enrolled
) -> None:
    statuses = await guess(client, owner, 11)
    right = await second_leg(client, await first_leg(client, owner.email), code=owner.phone.code(steps=1))
    await end_windows(session, "mfa-account:%")
    later = await second_leg(client, await first_leg(client, owner.email), code=owner.phone.code(steps=1))

    assert statuses == [400] * 10 + [429]
    assert_problem(right, 429, "rate_limited")
    assert 0 < int(right.headers["retry-after"]) <= 900
    assert later.status_code == 200


async def test_a_recovery_code_counts_against_the_same_limit(client: AsyncClient, owner: Enrolled) -> None:
    await guess(client, owner, 10)

    response = await second_leg(client, await first_leg(client, owner.email), recovery_code=owner.recovery_codes[0])

    assert_problem(response, 429, "rate_limited")


async def test_an_account_has_a_hundred_guesses_a_day(
    client: AsyncClient, session: WriteSession, owner: Enrolled
) -> None:
    await guess(client, owner, 1)
    await session.execute(text("UPDATE rate_limits SET hits = 100 WHERE key LIKE 'mfa-account-day:%'"))
    await session.commit()
    await end_windows(session, "mfa-account:%")

    assert await guess(client, owner, 1) == [429]


async def test_right_codes_do_not_count(client: AsyncClient, session: WriteSession, owner: Enrolled) -> None:
    for _ in range(11):
        await forget_used_codes(session)
        await log_in_with_code(client, owner)

    statement = text("SELECT max(hits) FROM rate_limits WHERE key LIKE 'mfa-%'")
    assert await session.scalar(statement) == 0


async def test_a_guess_for_a_login_that_does_not_wait_counts_for_the_address_only(
    client: AsyncClient, session: WriteSession, owner: Enrolled
) -> None:
    token = await first_leg(client, owner.email)
    await session.execute(text("UPDATE login_challenges SET expires_at = now()"))
    await session.execute(text("DELETE FROM rate_limits"))
    await session.commit()

    for unknown in (token, "mt1.x", "nonsense"):
        assert_problem(await second_leg(client, unknown, code="123456"), 400, "invalid_grant")

    rows = (await session.execute(text("SELECT split_part(key, ':', 1) AS name, hits FROM rate_limits"))).all()
    assert [(row.name, row.hits) for row in rows] == [("mfa-address", 3)]


async def test_an_address_has_a_hundred_guesses(client: AsyncClient, session: WriteSession, owner: Enrolled) -> None:
    await second_leg(client, "nonsense", code="123456")
    await session.execute(text("UPDATE rate_limits SET hits = 100 WHERE key LIKE 'mfa-address:%'"))
    await session.commit()
    token = await first_leg(client, owner.email)

    known = await second_leg(client, token, code=owner.phone.code(steps=1))
    unknown = await second_leg(client, "nonsense", code="123456")

    assert (known.status_code, unknown.status_code) == (429, 429)
    # A refused guess counts against nothing.
    assert [one.failures for one in await challenges_of(session, owner.user_id)] == [0]


async def test_the_tokens_of_the_second_leg_are_signed_like_all_others(client: AsyncClient, owner: Enrolled) -> None:
    pair = await log_in_with_code(client, owner)

    assert Forge(pair.access, signing_jwk(KEY_SET)).claims["sub"] == owner.user_id
