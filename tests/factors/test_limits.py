"""Attacks that use up the guesses of an account to keep its owner out, and what gives the owner new ones."""

from collections.abc import Sequence

from httpx2 import AsyncClient, Response
from sqlalchemy import text

from app.core import product
from app.core.db.database import WriteSession
from tests.aftermath import assert_problem, events
from tests.auth.login_sessions import ME
from tests.auth.post import AUTH, Post, end_windows, pair_of
from tests.conftest import LoggedIn
from tests.factories import PASSWORD
from tests.factors.phone import (
    CONFIRM,
    REAUTHENTICATE,
    TOTP,
    Enrolled,
    begin,
    enrol,
    factor_of,
    first_leg,
    second_leg,
)

SUBJECT = f"Somebody has entered wrong codes for your account at {product.NAME}"
PASSWORDS = ("seven calm otters at noon", "eight loud parrots at dusk", "nine slow turtles at dawn")


async def guess_in_a_session(client: AsyncClient, owner: Enrolled, times: int) -> list[int]:
    """Give wrong codes with an access token of the account."""
    body = {"code": owner.phone.wrong()}
    return [
        (await client.post(REAUTHENTICATE, json=body, headers=owner.pair.headers)).status_code for _ in range(times)
    ]


async def use_up(client: AsyncClient, session: WriteSession, owner: Enrolled) -> None:
    """Use the guesses of a day up."""
    for _ in range(10):
        assert await guess_in_a_session(client, owner, 10) == [403] * 10
        await end_windows(session, "mfa-account:%")
        await end_windows(session, "mfa-address:%")
    assert await guess_in_a_session(client, owner, 1) == [429]


async def guess_as_thief(client: AsyncClient, owner: Enrolled, password: str = PASSWORD) -> list[int]:
    """Give wrong codes at second legs until no guess is left in this quarter of an hour."""
    statuses: list[int] = []
    while 429 not in statuses:
        token = await first_leg(client, owner.email, password)
        statuses += [(await second_leg(client, token, code=owner.phone.wrong())).status_code for _ in range(4)]
    return statuses


async def log_in_as_owner(client: AsyncClient, owner: Enrolled, password: str = PASSWORD) -> Response:
    """Complete a login with a recovery code, which has not been used."""
    token = await first_leg(client, owner.email, password)
    return await second_leg(client, token, recovery_code=owner.recovery_codes.pop())


async def reset_password(client: AsyncClient, session: WriteSession, post: Post, email: str, password: str) -> None:
    await end_windows(session, "mail-%")
    await post.collect()
    await client.post(f"{AUTH}/password/forgot", json={"email": email})
    body = {"token": await post.link(), "new_password": password}
    response = await client.post(f"{AUTH}/password/reset", json=body)
    assert response.status_code == 204, response.text


async def change_password(client: AsyncClient, owner: Enrolled, current: str, new: str) -> None:
    """Change the password; the session continues with the same refresh token."""
    body = {"current_password": current, "new_password": new}
    response = await client.put(f"{ME}/password", json=body, headers=owner.pair.headers)
    assert response.status_code == 204, response.text
    form = {"grant_type": "refresh_token", "refresh_token": owner.pair.refresh}
    owner.pair = type(owner.pair)((await client.post(f"{AUTH}/token", data=form)).json())


async def counts_of_account(session: WriteSession) -> dict[str, int]:
    """Read the counters of codes that belong to accounts."""
    statement = text("""
        SELECT split_part(key, ':', 1) AS name, hits FROM rate_limits WHERE key LIKE 'mfa-%account%' AND hits > 0
    """)
    return {row.name: row.hits for row in (await session.execute(statement)).all()}


# --- a new password


async def test_after_a_hundred_wrong_codes_a_reset_password_lets_the_owner_in(
    client: AsyncClient, session: WriteSession, owner: Enrolled, post: Post
) -> None:
    await use_up(client, session, owner)
    assert (await log_in_as_owner(client, owner)).status_code == 429

    await reset_password(client, session, post, owner.email, PASSWORDS[0])

    assert await counts_of_account(session) == {}
    assert (await log_in_as_owner(client, owner, PASSWORDS[0])).status_code == 200


async def test_after_a_hundred_wrong_codes_a_changed_password_lets_the_owner_in(
    client: AsyncClient, session: WriteSession, owner: Enrolled
) -> None:
    await use_up(client, session, owner)
    assert (await log_in_as_owner(client, owner)).status_code == 429

    await change_password(client, owner, PASSWORD, PASSWORDS[0])

    assert (await log_in_as_owner(client, owner, PASSWORDS[0])).status_code == 200


async def test_resets_give_new_guesses_twice_a_day(
    client: AsyncClient, session: WriteSession, owner: Enrolled, post: Post
) -> None:
    """Otherwise a thief of the mailbox could guess without an end."""
    statuses = []
    for password in PASSWORDS:
        await reset_password(client, session, post, owner.email, password)
        statuses.append((await guess_as_thief(client, owner, password)).count(400))

    assert statuses == [10, 10, 0]
    await end_windows(session, "code-restart-%")
    await reset_password(client, session, post, owner.email, PASSWORD)
    assert (await guess_as_thief(client, owner)).count(400) == 10


async def test_changes_give_new_guesses_twice_a_day_and_leave_the_owner_the_resets(
    client: AsyncClient, session: WriteSession, owner: Enrolled, post: Post
) -> None:
    """A thief of the password and of a session changes the password as often as they like."""
    statuses = []
    for current, new in zip((PASSWORD, *PASSWORDS), PASSWORDS, strict=False):
        await change_password(client, owner, current, new)
        statuses.append(await guess_in_a_session(client, owner, 11))

    assert statuses == [[403] * 10 + [429], [403] * 10 + [429], [429] * 11]
    await reset_password(client, session, post, owner.email, PASSWORD)
    assert (await log_in_as_owner(client, owner)).status_code == 200


async def test_a_new_password_of_another_account_gives_no_guesses(
    client: AsyncClient, owner: Enrolled, admin: LoggedIn
) -> None:
    await guess_as_thief(client, owner)
    other = await enrol(client, admin)

    await change_password(client, other, PASSWORD, PASSWORDS[0])

    assert (await log_in_as_owner(client, owner)).status_code == 429


async def test_new_recovery_codes_give_no_guesses(client: AsyncClient, session: WriteSession, owner: Enrolled) -> None:
    await guess_as_thief(client, owner)
    before = await counts_of_account(session)

    response = await client.post("/api/v1/users/me/mfa/recovery-codes", headers=owner.pair.headers)

    assert response.status_code == 201
    assert await counts_of_account(session) == before


# --- the limit of logins


async def logins_counted(session: WriteSession) -> int:
    hits = await session.scalar(text("SELECT hits FROM rate_limits WHERE key LIKE 'login-account:%'"))
    return int(hits or 0)


async def test_a_login_above_the_limit_of_the_account_gives_nobody_an_attempt(
    client: AsyncClient, session: WriteSession, owner: Enrolled
) -> None:
    """The owner logs in from a known address during an attack. This attempt was not counted, so none is taken back."""
    await first_leg(client, owner.email)
    await session.execute(text("UPDATE rate_limits SET hits = 100 WHERE key LIKE 'login-account:%'"))
    await session.commit()

    statuses = [(await log_in_as_owner(client, owner)).status_code for _ in range(3)]

    assert statuses == [200] * 3
    assert await logins_counted(session) == 100


async def test_a_login_below_the_limit_of_the_account_takes_its_attempt_back(
    client: AsyncClient, session: WriteSession, owner: Enrolled
) -> None:
    await first_leg(client, owner.email)
    before = await logins_counted(session)

    token = await first_leg(client, owner.email)
    between = await logins_counted(session)
    await second_leg(client, token, recovery_code=owner.recovery_codes[0])

    assert (before, between, await logins_counted(session)) == (1, 2, 1)


# --- another factor


async def test_after_a_reset_by_an_administrator_the_owner_can_set_an_app_up(
    client: AsyncClient, session: WriteSession, owner: Enrolled, admin: LoggedIn
) -> None:
    strong = await enrol(client, admin)
    await use_up(client, session, owner)

    response = await client.delete(f"/api/v1/users/{owner.user_id}/mfa", headers=strong.pair.headers)

    assert response.status_code == 204, response.text
    headers = {"Authorization": f"Bearer {(await pair_of(client, owner.email))['access_token']}"}
    again = await enrol(client, LoggedIn(owner.user_id, owner.email, headers))
    assert (await log_in_as_owner(client, again)).status_code == 200


async def test_after_a_removal_by_the_owner_another_app_has_all_guesses(
    client: AsyncClient, session: WriteSession, owner: Enrolled
) -> None:
    await guess_as_thief(client, owner)

    response = await client.delete(TOTP, headers=owner.pair.headers)

    assert response.status_code == 204, response.text
    assert await counts_of_account(session) == {}


async def test_a_setup_that_does_not_wait_costs_no_guess(client: AsyncClient, owner: Enrolled) -> None:
    """The holder of an access token confirms nothing, again and again."""
    body = {"code": owner.phone.wrong()}

    responses = [await client.post(CONFIRM, json=body, headers=owner.pair.headers) for _ in range(12)]

    assert {response.status_code for response in responses} == {404}
    assert (await log_in_as_owner(client, owner)).status_code == 200


async def test_wrong_codes_of_a_setup_do_not_count_after_it(
    client: AsyncClient, session: WriteSession, user: LoggedIn
) -> None:
    phone = await begin(client, user.headers)
    wrong = [await client.post(CONFIRM, json={"code": phone.wrong()}, headers=user.headers) for _ in range(9)]

    right = await client.post(CONFIRM, json={"code": phone.code()}, headers=user.headers)

    assert [response.status_code for response in (*wrong, right)] == [403] * 9 + [200]
    assert await counts_of_account(session) == {}


async def test_a_setup_has_ten_guesses(client: AsyncClient, session: WriteSession, user: LoggedIn) -> None:
    phone = await begin(client, user.headers)

    wrong = [await client.post(CONFIRM, json={"code": phone.wrong()}, headers=user.headers) for _ in range(11)]
    right = await client.post(CONFIRM, json={"code": phone.code()}, headers=user.headers)

    assert [response.status_code for response in wrong] == [403] * 10 + [429]
    assert_problem(right, 429, "rate_limited")
    assert (await factor_of(session, user.user_id)).confirmed_at is None


# --- the mail to the owner


async def mails_about_codes(post: Post) -> list[tuple[str, str]]:
    return [(to, subject) for to, subject in await post.subjects() if subject == SUBJECT]


async def test_wrong_codes_in_a_session_are_mailed_once_a_day(
    client: AsyncClient, session: WriteSession, owner: Enrolled, post: Post
) -> None:
    await post.collect()
    await guess_in_a_session(client, owner, 4)
    before = await post.subjects()

    await guess_in_a_session(client, owner, 1)
    fifth = await post.subjects()
    for _ in range(2):
        await end_windows(session, "mfa-account:%")
        await guess_in_a_session(client, owner, 8)
    later = await post.subjects()

    assert (before, later) == ([], [])
    assert fifth == [(owner.email, SUBJECT)]


async def test_wrong_codes_in_sessions_and_logins_are_mailed_together(
    client: AsyncClient, owner: Enrolled, post: Post
) -> None:
    await post.collect()
    token = await first_leg(client, owner.email)
    for _ in range(2):
        await second_leg(client, token, code=owner.phone.wrong())

    await guess_in_a_session(client, owner, 3)

    assert await post.subjects() == [(owner.email, SUBJECT)]


async def test_a_used_code_in_a_session_counts_like_a_wrong_one(
    client: AsyncClient, session: WriteSession, owner: Enrolled, post: Post
) -> None:
    await post.collect()
    body = {"code": owner.phone.code()}

    responses = [await client.post(REAUTHENTICATE, json=body, headers=owner.pair.headers) for _ in range(5)]

    assert [response.status_code for response in responses] == [403] * 5
    assert await post.subjects() == [(owner.email, SUBJECT)]
    failed: Sequence[object] = [event.detail for event in await events(session, "auth.second_factor_failed")]
    assert failed == [{"reason": "used"}] * 5


async def test_wrong_codes_after_a_reset_password_are_mailed_again(
    client: AsyncClient, session: WriteSession, owner: Enrolled, post: Post
) -> None:
    await guess_as_thief(client, owner)
    await reset_password(client, session, post, owner.email, PASSWORDS[0])
    await post.collect()

    await guess_as_thief(client, owner, PASSWORDS[0])

    assert await mails_about_codes(post) == [(owner.email, SUBJECT)]
