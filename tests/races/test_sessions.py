"""Login sessions with several server processes: many concurrent clients, a thief, and accounts that are disabled or deleted.

`make test` runs a small number of rounds. The full number:

    RACE_WORKERS=4 RACE_CLIENTS=10000 RACE_ROUNDS=500 python -m pytest -n0 tests/races/test_sessions.py
"""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import select

from app.auth.access.revocation import MAX_AGE
from app.core import product
from app.core.security.keys import parse_key_ring
from app.users import links
from app.users.models import Purpose, User
from tests.conftest import KEY_SET, cloned
from tests.factories import PASSWORD
from tests.proxy import Proxy, proxied
from tests.races.workers import REVOKE, Answer, Fleet, Worker, fleet, user_of

WORKERS = int(os.environ.get("RACE_WORKERS", "2"))
CLIENTS = int(os.environ.get("RACE_CLIENTS", "100"))
ROUNDS = int(os.environ.get("RACE_ROUNDS", "30"))
AT_ONCE = 24
KEYS = parse_key_ring(KEY_SET, source="the run")
BY_RESET, BY_CHANGE = "seven grey geese at noon", "five quiet herons at dawn"
REVOKED = "revoked_at = now(), revoke_reason = 'admin'"
# Seconds. A notification is faster than this; polling takes up to a second longer.
BY_NOTIFICATION = 0.9


@pytest.fixture(scope="module")
async def race_url(template_url: str) -> AsyncIterator[str]:
    """A database for all races."""
    async with cloned(template_url) as url:
        yield url


@pytest.fixture(scope="module")
async def proxy(race_url: str) -> AsyncIterator[Proxy]:
    """A proxy between the revocation listener of the first worker and the database."""
    async with proxied(race_url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
async def workers(race_url: str, proxy: Proxy) -> AsyncIterator[Fleet]:
    """The server processes."""
    environments = [{"APP_DATABASE__DIRECT_URL": proxy.url}, *[{} for _ in range(WORKERS - 1)]]
    async with fleet(race_url, *environments) as fleet_:
        yield fleet_


async def all_of(count: int, act: Callable[[int], Awaitable[None]]) -> None:
    """Call `act` with each number below `count`, with a limited concurrency."""
    allowed = asyncio.Semaphore(AT_ONCE)

    async def bounded(number: int) -> None:
        async with allowed:
            await act(number)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(bounded(number))


async def some_time(most: float = 0.01) -> None:
    await asyncio.sleep(random.uniform(0, most))  # noqa: S311  # A random interleaving.


async def dies(worker: Worker, access_token: str, *, within: float) -> float:
    """Wait until the worker rejects a token, and return the seconds that it took."""
    started = time.monotonic()
    async with asyncio.timeout(within):
        while await worker.accepts(access_token):  # noqa: ASYNC110  # Another process changes.
            await asyncio.sleep(0.001)
    return time.monotonic() - started


async def test_a_hundred_concurrent_refreshes_of_one_token_give_one_successor(workers: Fleet) -> None:
    (email,) = await workers.accounts(1)
    first = await workers.log_in(email)

    answers = await asyncio.gather(*(workers.workers[n % WORKERS].refresh(first["refresh_token"]) for n in range(100)))

    assert {answer.status for answer in answers} == {200}
    (successor,) = {answer.body["refresh_token"] for answer in answers}
    row = await workers.session_row(first["access_token"])
    assert row
    assert (row["generation"], row["replays"], row["revoked_at"]) == (1, 99, None)
    assert all([await worker.accepts(answers[0].body["access_token"]) for worker in workers.workers])
    assert (await workers.any.refresh(successor)).status == 200


class Browser:
    """Three tabs with shared storage, and a network that loses every fourth response."""

    def __init__(self, workers: Fleet, pair: dict[str, Any]) -> None:
        self._workers = workers
        self.stored = pair

    async def tab(self) -> None:
        """Refresh like a tab: with the token that is stored at the start, and again after a lost response."""
        token = self.stored["refresh_token"]
        await some_time()
        while True:
            answer = await self._workers.any.refresh(token)
            assert answer.status == 200, answer
            if random.random() >= 0.25:  # noqa: S311  # A simulated network.
                self.stored = answer.body
                return


async def test_three_tabs_and_lost_responses_do_not_end_the_session(workers: Fleet) -> None:
    # At most 20 browsers per account: the 26th login would end the session of the first.
    emails = await workers.accounts(-(-CLIENTS // 20))
    rounds = 1 if CLIENTS < 1000 else 2

    async def browse(number: int) -> None:
        browser = Browser(workers, await workers.log_in(emails[number // 20]))
        for _ in range(rounds):
            await asyncio.gather(*(browser.tab() for _ in range(3)))
        row = await workers.session_row(browser.stored["access_token"])
        assert row
        assert (row["generation"], row["revoked_at"]) == (rounds, None)

    await all_of(CLIENTS, browse)


@pytest.mark.parametrize("alternations", [1, 4])
@pytest.mark.parametrize("thief_first", [True, False])
async def test_a_thief_who_alternates_with_the_owner_is_detected(
    workers: Fleet, alternations: int, *, thief_first: bool
) -> None:
    (email,) = await workers.accounts(1)
    stolen = await workers.log_in(email)
    other = await workers.log_in(email)
    held = {"owner": stolen["refresh_token"], "thief": stolen["refresh_token"]}
    turns = ["thief", "owner"] if thief_first else ["owner", "thief"]
    seen = [stolen["access_token"]]
    answers: list[Answer] = []

    for _ in range(alternations):
        # Within the grace period, both get the same token, which is not a sign of theft.
        for who in turns:
            answer = await workers.any.refresh(held[who])
            assert answer.status == 200
            held[who] = answer.body["refresh_token"]
            seen.append(answer.body["access_token"])
    for who in turns:
        # As if the grace period had passed between the two requests.
        await workers.change("rotated_at = rotated_at - interval '31 s'", stolen["access_token"])
        answers.append(await workers.any.refresh(held[who]))

    assert [answer.status for answer in answers] == [200, 400]
    assert held["owner"] == held["thief"]
    assert (await workers.any.refresh(answers[0].body["refresh_token"])).status == 400
    for worker in workers.workers:
        for access_token in [*seen, answers[0].body["access_token"]]:
            await dies(worker, access_token, within=BY_NOTIFICATION)
        assert await worker.accepts(other["access_token"])
    assert (await workers.any.refresh(other["refresh_token"])).status == 200


# Accounts and sessions that end during their use


async def disable(workers: Fleet, admin: str, pair: dict[str, Any]) -> None:
    path = f"/api/v1/users/{user_of(pair['access_token'])}"
    answer = await workers.any.request("PATCH", path, token=admin, body={"is_active": False})
    assert answer.status == 200, answer


async def delete(workers: Fleet, admin: str, pair: dict[str, Any]) -> None:
    answer = await workers.any.request("DELETE", f"/api/v1/users/{user_of(pair['access_token'])}", token=admin)
    assert answer.status == 204, answer


async def log_out(workers: Fleet, _admin: str, pair: dict[str, Any]) -> None:
    token = random.choice([pair["refresh_token"], pair["access_token"]])  # noqa: S311  # Either token must work.
    answer = await workers.any.request("POST", REVOKE, form={"token": token})
    assert answer.status == 200, answer


async def refresh(workers: Fleet, _email: str, pair: dict[str, Any]) -> Answer:
    return await workers.any.refresh(pair["refresh_token"])


async def log_in(workers: Fleet, email: str, _pair: dict[str, Any]) -> Answer:
    return await workers.any.log_in(email)


@pytest.mark.parametrize(
    ("end", "use"),
    [
        pytest.param(disable, refresh, id="disable and refresh"),
        pytest.param(disable, log_in, id="disable and log in"),
        pytest.param(delete, refresh, id="delete and refresh"),
        pytest.param(log_out, refresh, id="log out and refresh"),
    ],
)
async def test_no_token_is_valid_after_the_end_of_an_account_or_session_during_its_use(
    workers: Fleet, end: Callable[..., Awaitable[None]], use: Callable[..., Awaitable[Answer]]
) -> None:
    admin = (await workers.log_in((await workers.accounts(1, role="admin"))[0]))["access_token"]
    emails = await workers.accounts(ROUNDS)
    outcomes: set[int] = set()

    async def meet(number: int) -> None:
        pair = await workers.log_in(emails[number])

        async def later(act: Callable[..., Awaitable[Any]], who: str, most: float = 0.01) -> Any:
            await some_time(most)
            return await act(workers, who, pair)

        # The duration of the end depends on the machine. The use starts before it, at the same time, or after it.
        _, used = await asyncio.gather(later(end, admin), later(use, emails[number], most=0.01 * 2 ** (number % 6)))
        outcomes.add(used.status)
        pairs = [pair, used.body] if used.status == 200 else [pair]
        for one in pairs:
            await dies(workers.any, one["access_token"], within=BY_NOTIFICATION)
            assert (await workers.any.refresh(one["refresh_token"])).status == 400

    await all_of(ROUNDS, meet)

    # Both outcomes must occur; otherwise there was no race.
    assert outcomes == {200, 400}


# Links that are used twice, or while the password changes


async def mailed(workers: Fleet, email: str, purpose: Purpose) -> str:
    """Return the secret of a new link, as in its mail."""
    async with workers.database.begin() as session:
        user_id = (await session.scalars(select(User.id).where(User.email == email))).one()
        link_id = await links.create(session, KEYS, user_id, purpose)
        link = await links.find_live(session, link_id)
        assert link
        return links.secret(KEYS, link)


async def test_one_of_two_concurrent_uses_of_a_link_succeeds(workers: Fleet) -> None:
    emails = await workers.accounts(ROUNDS)

    async def meet(number: int) -> None:
        body = {"token": await mailed(workers, emails[number], "reset_password"), "new_password": BY_RESET}

        async def follow() -> int:
            await some_time()
            return (await workers.any.request("POST", "/api/v1/auth/password/reset", body=body)).status

        assert sorted(await asyncio.gather(follow(), follow())) == [204, 400]
        assert await follow() == 400

    await all_of(ROUNDS, meet)


async def test_a_concurrent_reset_and_change_leave_one_password_and_no_earlier_token(workers: Fleet) -> None:
    emails = await workers.accounts(ROUNDS)
    outcomes: set[tuple[int, int]] = set()

    async def meet(number: int) -> None:
        pair = await workers.log_in(emails[number])
        secret = await mailed(workers, emails[number], "reset_password")

        async def reset() -> int:
            await some_time(0.03)
            body = {"token": secret, "new_password": BY_RESET}
            return (await workers.any.request("POST", "/api/v1/auth/password/reset", body=body)).status

        async def change() -> int:
            await some_time(0.03)
            body = {"current_password": PASSWORD, "new_password": BY_CHANGE}
            path = "/api/v1/users/me/password"
            return (await workers.any.request("PUT", path, token=pair["access_token"], body=body)).status

        ended, changed = await asyncio.gather(reset(), change())
        outcomes.add((ended, changed))
        assert 204 in {ended, changed}
        assert await reset() == 400
        logins = [(await workers.any.log_in(emails[number], word)).status for word in (PASSWORD, BY_RESET, BY_CHANGE)]
        assert sorted(logins) == [200, 400, 400]
        assert logins[0] == 400
        # After a reset, earlier tokens must be invalid, because somebody else may know the old password.
        if ended == 204:
            await dies(workers.any, pair["access_token"], within=BY_NOTIFICATION)
            assert (await workers.any.refresh(pair["refresh_token"])).status == 400

    await all_of(ROUNDS, meet)

    assert all(ended in {204, 400} and changed in {204, 401, 403} for ended, changed in outcomes)


# Revocations reach every process within three seconds


async def sever(workers: Fleet, _proxy: Proxy) -> None:
    await workers.watcher.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = $1 AND datname = current_database()",
        f"{product.SLUG}-revocations",
    )


async def stall(_workers: Fleet, proxy: Proxy) -> None:
    proxy.stall()


async def test_every_process_knows_a_revocation_at_once(workers: Fleet) -> None:
    (email,) = await workers.accounts(1)
    for _ in range(5):
        pair = await workers.log_in(email)
        assert all([await worker.accepts(pair["access_token"]) for worker in workers.workers])

        await log_out(workers, "", pair)

        await asyncio.gather(
            *(dies(worker, pair["access_token"], within=BY_NOTIFICATION) for worker in workers.workers)
        )


@pytest.mark.parametrize("failure", [sever, stall])
async def test_every_process_knows_a_revocation_within_the_fence_if_the_listener_fails(
    workers: Fleet, proxy: Proxy, failure: Callable[[Fleet, Proxy], Awaitable[None]]
) -> None:
    (email,) = await workers.accounts(1)
    revoked, good = await workers.log_in(email), await workers.log_in(email)
    await failure(workers, proxy)

    await workers.change(REVOKED, revoked["access_token"])
    await asyncio.gather(*(dies(worker, revoked["access_token"], within=MAX_AGE) for worker in workers.workers))

    assert all([await worker.accepts(good["access_token"]) for worker in workers.workers])
    proxy.resume()


async def test_a_paused_process_accepts_no_token_revoked_during_the_pause(workers: Fleet) -> None:
    (email,) = await workers.accounts(1)
    revoked, good = await workers.log_in(email), await workers.log_in(email)
    paused = workers.workers[-1]
    assert await paused.accepts(revoked["access_token"])
    paused.server.process.send_signal(signal.SIGSTOP)
    try:
        await workers.change(REVOKED, revoked["access_token"])
        await asyncio.sleep(MAX_AGE)
        first = [asyncio.create_task(paused.accepts(revoked["access_token"])) for _ in range(5)]
        await asyncio.sleep(0.1)
    finally:
        paused.server.process.send_signal(signal.SIGCONT)

    assert await asyncio.gather(*first) == [False] * 5
    assert await paused.accepts(good["access_token"])
