"""Limits on logins, passwords and tokens: over HTTP, and over several server processes where they must be exact."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import bcrypt
import pytest
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient, Response
from sqlalchemy import text

from app.core.db.database import Database, WriteSession
from app.core.security.hashing import HashingBusyError, PasswordHasher, Verification
from app.main import create_app
from app.users.models import User
from tests.aftermath import assert_problem, events
from tests.auth.post import AUTH, ME, PATIENT, answer, bearer, end_windows, log_in, pair_of, refresh
from tests.auth.statements import statements
from tests.conftest import make_settings, running
from tests.factories import PASSWORD, make_user
from tests.servers import real_server

WRONG = "not the password, surely"
HERE = "127.0.0.1"
THERE = "192.0.2.7"


@pytest.fixture
async def ada(session: WriteSession, hasher: PasswordHasher) -> User:
    """An account with a password."""
    account = await make_user(session, hasher, email="ada@example.com")
    await session.commit()
    return account


@asynccontextmanager
async def from_address(client: AsyncClient, address: str) -> AsyncIterator[AsyncClient]:
    """Speak to the same application from another address."""
    transport: Any = client._transport  # The application with its state, which the client keeps to itself.
    app: FastAPI = transport.app
    async with AsyncClient(transport=ASGITransport(app, client=(address, 1)), base_url="http://test") as other:
        yield other


@asynccontextmanager
async def behind_a_proxy(database_url: str, database: Database) -> AsyncIterator[AsyncClient]:
    """Run the application where it trusts the address that requests come from."""
    settings = make_settings(database_url, server={"trusted_proxies": ["127.0.0.1/32", "10.0.0.0/8"]})
    async with running(create_app(settings, database)) as client:
        yield client


async def fail(client: AsyncClient, email: str, times: int, **headers: str) -> list[int]:
    """Log in with a wrong password, and give the statuses."""
    return [(await log_in(client, email, WRONG, **headers)).status_code for _ in range(times)]


async def test_after_ten_wrong_passwords_the_correct_one_is_refused_too(client: AsyncClient, ada: User) -> None:
    statuses = await fail(client, ada.email, 10)

    wrong, right = [await log_in(client, ada.email, word) for word in (WRONG, PASSWORD)]

    assert statuses == [400] * 10
    assert_problem(right, 429, "rate_limited")
    assert right.json()["error"] == "temporarily_unavailable"
    assert right.json()["error_description"] == right.json()["detail"]
    assert 895 <= int(right.headers["Retry-After"]) <= 900
    assert answer(wrong) == answer(right)


@pytest.mark.parametrize("word", ["x" * 257, "x" * 10_000, f"{PASSWORD}\0"])
async def test_an_impossible_password_counts_and_is_hashed_like_any_wrong_one(
    client: AsyncClient, ada: User, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    tried: list[str | None] = []
    verify = PasswordHasher.verify

    async def noted(hasher: PasswordHasher, password: str, stored: str | None) -> Verification:
        tried.append(stored)
        return await verify(hasher, password, stored)

    monkeypatch.setattr(PasswordHasher, "verify", noted)

    statuses = [(await log_in(client, ada.email, word)).status_code for _ in range(10)]
    right = await log_in(client, ada.email)

    assert statuses == [400] * 10
    assert tried == [ada.hashed_password] * 10
    assert right.status_code == 429


async def test_a_username_that_is_too_long_counts_like_any_unknown_one(client: AsyncClient) -> None:
    statuses = await fail(client, "x" * 10_000, 11)

    assert statuses == [400] * 10 + [429]


async def test_the_limit_does_not_reveal_whether_an_account_exists(client: AsyncClient, ada: User) -> None:
    for email in (ada.email, "nobody@example.com"):
        await fail(client, email, 10)

    answers = [answer(await log_in(client, email)) for email in (ada.email, "nobody@example.com")]

    assert answers[0][0] == 429
    assert answers[0] == answers[1]


async def test_successful_logins_do_not_count(client: AsyncClient, ada: User) -> None:
    await fail(client, ada.email, 9)

    statuses = [(await log_in(client, ada.email)).status_code for _ in range(12)]

    assert statuses == [200] * 12
    assert await fail(client, ada.email, 2) == [400, 429]


async def test_a_successful_login_removes_only_its_own_count(client: AsyncClient, ada: User) -> None:
    await fail(client, ada.email, 9)
    await log_in(client, ada.email)

    assert await fail(client, ada.email, 2) == [400, 429]


async def test_a_quarter_of_an_hour_later_it_works_again(client: AsyncClient, session: WriteSession, ada: User) -> None:
    await fail(client, ada.email, 11)
    await end_windows(session, "login-account-address:%")

    assert (await log_in(client, ada.email)).status_code == 200


SPELLINGS = [
    "ada@b\u00fccher.example",
    "ADA@XN--BCHER-KVA.example",
    "Ada@B\u00dcCHER.Example",
    "ada@bu\u0308cher.example",
]


async def test_spellings_of_one_address_are_counted_as_one(client: AsyncClient) -> None:
    statuses = [(await log_in(client, SPELLINGS[number % 4], WRONG)).status_code for number in range(12)]

    assert statuses == [400] * 10 + [429] * 2


async def test_an_invalid_address_is_counted_as_it_is(client: AsyncClient) -> None:
    assert await fail(client, "no address at all", 11) == [400] * 10 + [429]
    assert await fail(client, "another one", 1) == [400]


async def test_other_accounts_and_other_addresses_are_not_limited(client: AsyncClient, ada: User) -> None:
    await fail(client, ada.email, 11)

    async with from_address(client, THERE) as elsewhere:
        assert (await log_in(elsewhere, ada.email)).status_code == 200
    assert await fail(client, "eve@example.com", 1) == [400]


async def test_an_owner_with_a_live_session_is_not_limited(client: AsyncClient, ada: User) -> None:
    pair = await pair_of(client, ada.email)
    await fail(client, ada.email, 11)

    following = await refresh(client, pair)

    assert following.status_code == 200
    assert (await client.get(ME, headers=bearer(following.json()))).status_code == 200


@pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Real-IP", "Forwarded", "True-Client-IP", "CF-Connecting-IP"])
async def test_a_spoofed_header_does_not_change_the_address(client: AsyncClient, ada: User, header: str) -> None:
    lies = [{header: f"192.0.2.{number}" if header != "Forwarded" else f"for=192.0.2.{number}"} for number in range(11)]

    statuses = [(await log_in(client, ada.email, WRONG, **lie)).status_code for lie in lies]

    assert statuses == [400] * 10 + [429]


async def test_a_proxy_that_is_not_configured_is_logged(
    client: AsyncClient, ada: User, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        await log_in(client, ada.email, **{"X-Forwarded-For": f"192.0.2.{number}"})

    told = [record.getMessage() for record in caplog.records if "APP_SERVER__TRUSTED_PROXIES" in record.getMessage()]
    assert len(told) == 1
    assert HERE in told[0]


async def test_behind_a_trusted_proxy_the_header_tells_clients_apart(
    database_url: str, database: Database, ada: User
) -> None:
    async with behind_a_proxy(database_url, database) as client:
        first = await fail(client, ada.email, 11, **{"X-Forwarded-For": f"{THERE}, 10.0.0.2"})
        other = await log_in(client, ada.email, **{"X-Forwarded-For": "192.0.2.8, 10.0.0.2"})

    assert first == [400] * 10 + [429]
    assert other.status_code == 200


async def test_behind_a_trusted_proxy_a_header_of_the_client_is_ignored(
    database_url: str, database: Database, ada: User
) -> None:
    async with behind_a_proxy(database_url, database) as client:
        statuses = [
            (await log_in(client, ada.email, WRONG, **{"X-Forwarded-For": f"9.9.9.{number}, {THERE}"})).status_code
            for number in range(11)
        ]

    assert statuses == [400] * 10 + [429]


async def test_behind_a_trusted_proxy_repeated_headers_are_one_list(
    database_url: str, database: Database, ada: User
) -> None:
    form = {"grant_type": "password", "username": ada.email, "password": WRONG}
    async with behind_a_proxy(database_url, database) as client:
        statuses = [
            (
                await client.post(
                    f"{AUTH}/token",
                    data=form,
                    headers=[("X-Forwarded-For", f"9.9.9.{number}, {THERE}"), ("X-Forwarded-For", "10.0.0.2")],
                )
            ).status_code
            for number in range(11)
        ]
        other = await log_in(client, ada.email, **{"X-Forwarded-For": "127.0.0.1"})

    assert statuses == [400] * 10 + [429]
    assert other.status_code == 200


async def test_an_ipv6_network_counts_as_one_address(database_url: str, database: Database, ada: User) -> None:
    async with behind_a_proxy(database_url, database) as client:
        statuses = [
            (await log_in(client, ada.email, WRONG, **{"X-Forwarded-For": f"2001:db8:1:2::{number}"})).status_code
            for number in range(11)
        ]
        other = await log_in(client, ada.email, **{"X-Forwarded-For": "2001:db8:1:3::1"})

    assert statuses == [400] * 10 + [429]
    assert other.status_code == 200


async def set_hits(session: WriteSession, name: str, hits: int) -> None:
    statement = text("UPDATE rate_limits SET hits = :hits WHERE key LIKE :key")
    await session.execute(statement, {"hits": hits, "key": f"{name}:%"})
    await session.commit()


@pytest.mark.parametrize(
    ("name", "amount", "wait"),
    [
        ("login-account-address", 10, 900),
        ("login-account-address-day", 100, 86400),
        ("login-account", 100, 86400),
        ("login-address", 100, 900),
    ],
)
async def test_each_limit_of_the_login_has_its_amount_and_its_period(
    client: AsyncClient, session: WriteSession, ada: User, name: str, amount: int, wait: int
) -> None:
    await fail(client, ada.email, 1)
    await set_hits(session, name, amount - 1)

    last = await log_in(client, ada.email, WRONG)
    surplus = await log_in(client, ada.email, WRONG)

    assert (last.status_code, surplus.status_code) == (400, 429)
    assert wait - 5 <= int(surplus.headers["Retry-After"]) <= wait


async def test_an_account_is_counted_over_all_client_addresses(
    client: AsyncClient, session: WriteSession, ada: User
) -> None:
    await fail(client, ada.email, 1)
    await set_hits(session, "login-account", 100)

    async with from_address(client, THERE) as elsewhere:
        assert (await log_in(elsewhere, ada.email)).status_code == 429
        assert await fail(elsewhere, "eve@example.com", 1) == [400]


OWNERS = ["192.0.2.7", "::ffff:192.0.2.7", "2001:db8:0:ff::1"]


async def attack(client: AsyncClient, email: str) -> None:
    """Try a hundred wrong passwords from ten /64 networks of one /48."""
    for number in range(10):
        async with from_address(client, f"2001:db8:0:{number:x}::1") as attacker:
            assert set(await fail(attacker, email, 10)) == {400}


@pytest.mark.parametrize("owner", OWNERS)
async def test_an_owner_can_log_in_from_a_known_address_during_an_attack(
    client: AsyncClient, session: WriteSession, ada: User, owner: str
) -> None:
    async with from_address(client, owner) as home:
        before = await pair_of(home, ada.email)
        await client.post(f"{AUTH}/revoke", data={"token": before["refresh_token"]})
        await attack(client, ada.email)

        statuses = [(await log_in(home, ada.email)).status_code for _ in range(3)]

    assert statuses == [200] * 3
    # The owner's logins give the others nothing back.
    everywhere = await session.scalar(text("SELECT hits FROM rate_limits WHERE key LIKE 'login-account:%'"))
    assert everywhere == 100
    async with from_address(client, "2001:db8:0:aa::1") as attacker:
        assert (await log_in(attacker, ada.email)).status_code == 429


async def test_above_the_limit_of_an_account_every_refusal_is_the_same(
    client: AsyncClient, session: WriteSession, hasher: PasswordHasher, ada: User
) -> None:
    await make_user(session, hasher, email="off@example.com", is_active=False)
    await session.commit()
    answers = []
    async with from_address(client, "192.0.2.7") as home, from_address(client, "192.0.2.8") as neighbour:
        await pair_of(home, ada.email)
        for email in (ada.email, "off@example.com", "nobody@example.com"):
            await fail(client, email, 1)
        await set_hits(session, "login-account", 100)

        for caller in (home, neighbour):
            for email in (ada.email, "off@example.com", "nobody@example.com"):
                answers += [answer(await log_in(caller, email, WRONG)) for _ in range(2)]
        # The right password is worth nothing at an address that is not the owner's, and in the same network neither.
        answers.append(answer(await log_in(neighbour, ada.email)))

    assert {status for status, _, _ in answers} == {429}
    waits = [int(headers.pop("retry-after")) for _, _, headers in answers]
    assert max(waits) - min(waits) <= 5
    for _, document, headers in answers:
        assert (document, headers) == (answers[0][1], answers[0][2])
    reasons = [event.detail["reason"] for event in await events(session, "auth.login_failed")]
    assert "account_limit" in reasons


async def test_guesses_from_a_known_address_are_limited_per_day(
    client: AsyncClient, session: WriteSession, ada: User
) -> None:
    await pair_of(client, ada.email)
    await fail(client, ada.email, 1)
    await set_hits(session, "login-account", 100)
    await set_hits(session, "login-account-address-day", 99)

    assert (await log_in(client, ada.email)).status_code == 200
    assert await fail(client, ada.email, 1) == [429]
    assert (await log_in(client, ada.email)).status_code == 429


async def test_a_client_without_an_address_has_no_known_address(
    client: AsyncClient, session: WriteSession, ada: User
) -> None:
    transport: Any = client._transport  # As in `from_address`.
    async with AsyncClient(
        transport=ASGITransport(transport.app, client=("a socket", 0)), base_url="http://test"
    ) as local:
        await pair_of(local, ada.email)
        await fail(local, ada.email, 1)
        await set_hits(session, "login-account", 100)

        assert (await log_in(local, ada.email)).status_code == 429


async def test_above_the_limit_of_an_account_every_address_takes_the_same_work(
    client: AsyncClient,
    session: WriteSession,
    worker_database: Database,
    ada: User,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verified: list[bytes] = []
    verify = bcrypt.checkpw

    def counting(password: bytes, stored: bytes) -> bool:
        verified.append(stored)
        return verify(password, stored)

    monkeypatch.setattr("app.core.security.hashing.bcrypt.checkpw", counting)
    costs = []
    async with from_address(client, "192.0.2.7") as home, from_address(client, "192.0.2.8") as neighbour:
        await pair_of(home, ada.email)
        for email in (ada.email, "nobody@example.com"):
            await fail(client, email, 1)
        await set_hits(session, "login-account", 100)
        for caller, email, password in (
            (home, ada.email, WRONG),
            (neighbour, ada.email, WRONG),
            (neighbour, ada.email, PASSWORD),
            (neighbour, "nobody@example.com", WRONG),
        ):
            verified.clear()
            with statements(worker_database) as sent:
                await log_in(caller, email, password)
            costs.append((len(verified), sent))

    assert all(cost == costs[0] for cost in costs)
    assert costs[0][0] == 1


async def test_an_address_is_counted_over_all_accounts(client: AsyncClient, session: WriteSession, ada: User) -> None:
    await fail(client, "eve@example.com", 1)
    await set_hits(session, "login-address", 100)

    assert (await log_in(client, ada.email)).status_code == 429
    async with from_address(client, THERE) as elsewhere:
        assert (await log_in(elsewhere, ada.email)).status_code == 200


async def test_one_address_cannot_lock_an_account_for_all_others(
    client: AsyncClient, session: WriteSession, ada: User
) -> None:
    await fail(client, ada.email, 15)

    everywhere = await session.scalar(text("SELECT hits FROM rate_limits WHERE key LIKE 'login-account:%'"))
    assert everywhere == 10


@pytest.mark.parametrize(
    "state", ["is_active = false", "hashed_password = NULL", "email_verified_at = NULL", "is_active = true"]
)
async def test_every_kind_of_account_is_counted_the_same(
    client: AsyncClient, session: WriteSession, ada: User, state: str
) -> None:
    await session.execute(text(f"UPDATE users SET {state}"))  # noqa: S608  # The table above.
    await session.commit()

    assert await fail(client, ada.email, 11) == [400] * 10 + [429]


async def test_the_correct_password_of_an_unverified_account_counts(
    client: AsyncClient, session: WriteSession, ada: User
) -> None:
    await session.execute(text("UPDATE users SET email_verified_at = NULL"))
    await session.commit()

    statuses = [(await log_in(client, ada.email)).status_code for _ in range(11)]

    assert statuses == [403] * 10 + [429]
    reasons = {event.detail["reason"] for event in await events(session, "auth.login_failed")}
    assert reasons == {"email_not_verified"}


async def test_a_refused_attempt_is_neither_hashed_nor_recorded(
    client: AsyncClient, session: WriteSession, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fail(client, ada.email, 10)
    before = len(await events(session, "%"))

    def never(*_arguments: object) -> bool:
        raise AssertionError

    monkeypatch.setattr("app.core.security.hashing.bcrypt.checkpw", never)

    assert await fail(client, ada.email, 1) == [429]
    assert len(await events(session, "%")) == before


async def test_attempts_without_a_check_of_the_password_do_not_count(clone_url: str) -> None:
    settings = make_settings(clone_url, auth={"hash_threads": 1, "hash_queue": 0, "bcrypt_cost": 9}, database=PATIENT)
    async with running(create_app(settings)) as client:
        answers = await asyncio.gather(*(log_in(client, "ada@example.com", WRONG) for _ in range(8)))

    database = Database(settings.database)
    async with database.read_sessions() as session:
        counted = (await session.scalars(text("SELECT hits FROM rate_limits"))).all()
    await database.dispose()
    statuses = Counter(response.status_code for response in answers)
    assert statuses.keys() == {400, 503}
    assert set(counted) == {statuses[400]}


async def test_a_password_given_again_does_not_count_when_hashing_is_busy(
    client: AsyncClient, session: WriteSession, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = await pair_of(client, ada.email)

    async def busy(_hasher: PasswordHasher, _password: str, _stored: str | None) -> None:
        raise HashingBusyError

    monkeypatch.setattr(PasswordHasher, "verify", busy)
    statuses = [(await reauthenticate(client, pair)).status_code for _ in range(11)]

    assert statuses == [503] * 11
    assert await session.scalar(text("SELECT max(hits) FROM rate_limits WHERE key LIKE 'password%'")) == 0


async def test_without_limits_nothing_is_counted(
    database_url: str, database: Database, session: WriteSession, ada: User
) -> None:
    settings = make_settings(database_url, rate_limit={"enabled": False})
    async with running(create_app(settings, database)) as client:
        statuses = await fail(client, ada.email, 12)

    assert statuses == [400] * 12
    assert await session.scalar(text("SELECT count(*) FROM rate_limits")) == 0


async def test_nothing_personal_is_stored(client: AsyncClient, session: WriteSession, ada: User) -> None:
    await fail(client, ada.email, 1)

    stored = str((await session.execute(text("SELECT * FROM rate_limits"))).all())
    for personal in ("ada@", "example", HERE, str(ada.id), ada.id.hex):
        assert personal not in stored


Ask = Callable[[AsyncClient, dict[str, Any]], Awaitable[Response]]


def reauthenticate(client: AsyncClient, pair: dict[str, Any]) -> Awaitable[Response]:
    return client.post(f"{AUTH}/reauthenticate", json={"password": WRONG}, headers=bearer(pair))


def reauthenticate_at_length(client: AsyncClient, pair: dict[str, Any]) -> Awaitable[Response]:
    return client.post(f"{AUTH}/reauthenticate", json={"password": "x" * 5000}, headers=bearer(pair))


@pytest.mark.parametrize("ask", [reauthenticate, reauthenticate_at_length])
async def test_a_password_given_again_may_be_wrong_ten_times(client: AsyncClient, ada: User, ask: Ask) -> None:
    pair = await pair_of(client, ada.email)

    statuses = [(await ask(client, pair)).status_code for _ in range(11)]
    right = await client.post(f"{AUTH}/reauthenticate", json={"password": PASSWORD}, headers=bearer(pair))

    assert statuses == [403] * 10 + [429]
    assert right.status_code == 429
    assert (await client.get(ME, headers=bearer(pair))).status_code == 200
    assert (await refresh(client, pair)).status_code == 200


async def test_wrong_passwords_from_another_address_do_not_limit_the_owner(client: AsyncClient, ada: User) -> None:
    stolen, own = await pair_of(client, ada.email), await pair_of(client, ada.email)

    async with from_address(client, THERE) as elsewhere:
        statuses = [(await reauthenticate(elsewhere, stolen)).status_code for _ in range(11)]
    right = await client.post(f"{AUTH}/reauthenticate", json={"password": PASSWORD}, headers=bearer(own))

    assert statuses == [403] * 10 + [429]
    assert right.status_code == 200


async def test_wrong_passwords_of_one_account_do_not_limit_another_at_the_same_address(
    client: AsyncClient, session: WriteSession, hasher: PasswordHasher, ada: User
) -> None:
    grace = await make_user(session, hasher, email="grace@example.com")
    await session.commit()
    hers, other = await pair_of(client, ada.email), await pair_of(client, grace.email)

    statuses = [(await reauthenticate(client, hers)).status_code for _ in range(11)]
    right = await client.post(f"{AUTH}/reauthenticate", json={"password": PASSWORD}, headers=bearer(other))

    assert statuses == [403] * 10 + [429]
    assert right.status_code == 200


async def test_correct_passwords_given_again_do_not_count(client: AsyncClient, ada: User) -> None:
    pair = await pair_of(client, ada.email)
    path, body, headers = f"{AUTH}/reauthenticate", {"password": PASSWORD}, bearer(pair)

    statuses = [(await client.post(path, json=body, headers=headers)).status_code for _ in range(12)]

    assert statuses == [200] * 12


def refresh_junk(client: AsyncClient, _pair: dict[str, Any]) -> Awaitable[Response]:
    return refresh(client, {"refresh_token": "junk"})


def refresh_at_length(client: AsyncClient, _pair: dict[str, Any]) -> Awaitable[Response]:
    return refresh(client, {"refresh_token": "A" * 10_000})


@pytest.mark.parametrize("ask", [refresh_junk, refresh_at_length])
async def test_guessed_refresh_tokens_count_against_the_address(
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


async def test_two_hundred_concurrent_logins_over_two_processes_are_counted_exactly(clone_url: str) -> None:
    patience = {f"APP_DATABASE__{name.upper()}": wait for name, wait in PATIENT.items()}
    async with (
        real_server(clone_url, **patience) as one,
        real_server(clone_url, **patience) as other,
        AsyncClient(timeout=60) as client,
    ):
        answers = await asyncio.gather(*(log_in_at(client, server.base_url) for server in [one, other] * 100))

    database = Database(make_settings(clone_url).database)
    async with database.read_sessions() as session:
        tried = await events(session, "auth.login_failed")
        counted = (await session.scalars(text("SELECT hits FROM rate_limits"))).all()
    await database.dispose()
    assert Counter(response.status_code for response in answers) == {400: 10, 429: 190}
    assert len(tried) == 10
    assert set(counted) == {10}


async def log_in_at(client: AsyncClient, base_url: str) -> Response:
    form = {"grant_type": "password", "username": "ada@example.com", "password": WRONG}
    return await client.post(f"{base_url}{AUTH}/token", data=form)
