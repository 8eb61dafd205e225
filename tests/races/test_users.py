"""Concurrent requests for the same accounts, over real connections."""

import asyncio
import os
import random
from collections import Counter
from uuid import UUID

import pytest
from httpx2 import Response

from app.auth.access import token_status
from app.auth.sessions.cutoff import end_every_session
from app.auth.settings import AuthSettings
from app.users.roles import GRANTS, Role
from tests.aftermath import assert_problem
from tests.conftest import LoggedIn, log_in
from tests.factories import make_user
from tests.races.site import Site

USERS = "/api/v1/users"
ROUNDS = int(os.environ.get("RACE_ROUNDS", "50"))
SPELLINGS = [
    "ada@b\u00fccher.example",
    "ADA@B\u00dcCHER.example",
    "Ada@xn--bcher-kva.example",
    "aDa@XN--BCHER-KVA.EXAMPLE",
    "ada@bu\u0308cher.example",
]


def url(user: LoggedIn) -> str:
    return f"{USERS}/{user.user_id}"


async def test_fifty_concurrent_creations_with_one_address_make_one_account(site: Site) -> None:
    admin = await site.account(role="admin")

    responses = await asyncio.gather(
        *(
            site.client.post(USERS, json={"email": SPELLINGS[number % len(SPELLINGS)]}, headers=admin.headers)
            for number in range(50)
        )
    )

    assert Counter(response.status_code for response in responses) == {201: 1, 409: 49}
    assert {response.json()["code"] for response in responses if response.status_code == 409} == {"email_taken"}
    (created,) = [response.json()["id"] for response in responses if response.status_code == 201]
    rows = await site.fetch("SELECT id FROM users WHERE email_key = 'ada@xn--bcher-kva.example'")
    assert [str(row["id"]) for row in rows] == [created]
    recorded = await site.fetch("SELECT subject_id FROM audit_events WHERE event = 'users.created'")
    assert [str(row["subject_id"]) for row in recorded] == [created]
    assert len(await site.fetch("SELECT id FROM account_links")) == 1
    assert len(await site.fetch("SELECT id FROM procrastinate_jobs")) == 1
    assert await site.transactions_left_open() == 0


async def test_one_of_two_concurrent_changes_of_one_version_is_rejected(site: Site) -> None:
    admin = await site.account(role="admin")
    user = await site.account()

    for version in range(1, ROUNDS // 2):
        headers = admin.headers | {"If-Match": f'"{version}"'}
        names = [f"first {version}", f"second {version}"]
        responses = await asyncio.gather(
            *(site.client.patch(url(user), json={"full_name": name}, headers=headers) for name in names)
        )

        assert sorted(response.status_code for response in responses) == [200, 412]
        (winner,) = [name for name, response in zip(names, responses, strict=True) if response.status_code == 200]
        (row,) = await site.fetch("SELECT full_name, version FROM users WHERE id = $1", UUID(user.user_id))
        assert (row["full_name"], row["version"]) == (winner, version + 1)
    assert len(await site.fetch("SELECT id FROM audit_events WHERE event = 'users.renamed'")) == ROUNDS // 2 - 1


async def test_concurrent_unconditional_changes_are_all_made(site: Site) -> None:
    admin = await site.account(role="admin")
    user = await site.account()

    responses = await asyncio.gather(
        *(site.client.patch(url(user), json={"full_name": f"n{number}"}, headers=admin.headers) for number in range(20))
    )

    assert {response.status_code for response in responses} == {200}
    assert sorted(int(response.headers["etag"].strip('"')) for response in responses) == list(range(2, 22))
    last = max(responses, key=lambda response: int(response.headers["etag"].strip('"')))
    (row,) = await site.fetch("SELECT full_name, version FROM users WHERE id = $1", UUID(user.user_id))
    assert (row["full_name"], row["version"]) == (last.json()["full_name"], 21)


async def remove_admin(site: Site, actor: LoggedIn, victim: LoggedIn, way: str) -> Response:
    if way == "delete":
        return await site.client.delete(url(victim), headers=actor.headers)
    body = {"role": "user"} if way == "demote" else {"is_active": False}
    return await site.client.patch(url(victim), json=body, headers=actor.headers)


@pytest.mark.parametrize("whom", ["each other", "themselves"])
async def test_one_of_two_administrators_who_remove_each_other_stays(site: Site, whom: str) -> None:
    chance = random.Random(20261123)  # noqa: S311  # Reproducible rounds, no secret.
    ways = ["demote", "disable", "delete"]
    outcomes: Counter[tuple[int, ...]] = Counter()
    first = await site.account(role="admin")

    for _ in range(ROUNDS):
        second = await site.account(role="admin")
        pairs = [(first, second), (second, first)] if whom == "each other" else [(first, first), (second, second)]
        chance.shuffle(pairs)
        responses = await asyncio.gather(
            *(remove_admin(site, actor, victim, chance.choice(ways)) for actor, victim in pairs)
        )

        remaining = await site.fetch("SELECT id, email FROM users WHERE role = 'admin' AND is_active")
        assert len(remaining) == 1
        outcomes[tuple(sorted(response.status_code for response in responses))] += 1
        assert not {response.status_code for response in responses} - {200, 204, 401, 409}
        # A request whose response is a success has made its change.
        assert sum(response.status_code in {200, 204} for response in responses) == 1
        (email,) = [row["email"] for row in remaining]
        first = LoggedIn(str(remaining[0]["id"]), email, await log_in(site.client, email))
    # If both remove each other, the second one is no longer an administrator (401). If both remove themselves, the second one is
    # the last administrator (409).
    assert any((401 if whom == "each other" else 409) in outcome for outcome in outcomes), outcomes
    assert await site.transactions_left_open() == 0


async def test_an_account_that_is_concurrently_deleted_and_changed_is_deleted(site: Site) -> None:
    admin = await site.account(role="admin")
    chance = random.Random(20261123)  # noqa: S311  # As above.
    outcomes: Counter[tuple[int, int]] = Counter()

    for number in range(ROUNDS // 2):
        user = await site.account(email=f"victim{number}@example.com")
        calls = [
            site.client.delete(url(user), headers=admin.headers),
            site.client.patch(url(user), json={"full_name": "Ada", "is_active": False}, headers=admin.headers),
        ]
        order = [0, 1] if chance.random() < 0.5 else [1, 0]
        results = dict(zip(order, await asyncio.gather(*(calls[index] for index in order)), strict=True))

        assert results[0].status_code == 204
        assert results[1].status_code in {200, 404}
        assert await site.fetch("SELECT id FROM users WHERE id = $1", UUID(user.user_id)) == []
        recorded = await site.fetch(
            "SELECT event FROM audit_events WHERE subject_id = $1 AND event LIKE 'users.%' ORDER BY occurred_at, id",
            UUID(user.user_id),
        )
        changed = {"users.renamed", "users.disabled"} if results[1].status_code == 200 else set()
        assert {row["event"] for row in recorded} == changed | {"users.deleted"}
        outcomes[results[0].status_code, results[1].status_code] += 1
    assert await site.transactions_left_open() == 0


@pytest.mark.parametrize("way", ["demote", "disable", "delete"])
async def test_an_account_that_becomes_the_only_administrator_during_its_removal_stays_one(
    site: Site, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = await site.account(role="admin")
    user = await site.account()
    candidate = UUID(user.user_id)
    # There is no administrator: the caller may write because of another role.
    monkeypatch.setitem(GRANTS, Role.USER, GRANTS[Role.ADMIN])
    await site.watcher.execute("UPDATE users SET role = 'user' WHERE id = $1", UUID(admin.user_id))
    promotion = site.watcher.transaction()
    await promotion.start()
    await site.watcher.execute("UPDATE users SET role = 'admin' WHERE id = $1", candidate)

    removing = asyncio.create_task(remove_admin(site, admin, user, way))
    await site.until_waiting(removing)
    await promotion.commit()
    response = await removing

    assert response.status_code == 409
    assert response.json()["code"] == "last_admin"
    (row,) = await site.fetch("SELECT role, is_active FROM users WHERE id = $1", candidate)
    assert (row["role"], row["is_active"]) == ("admin", True)


async def test_one_of_several_concurrent_deletions_succeeds(site: Site) -> None:
    admin = await site.account(role="admin")
    user = await site.account()

    responses = await asyncio.gather(*(site.client.delete(url(user), headers=admin.headers) for _ in range(10)))

    assert Counter(response.status_code for response in responses) == {204: 1, 404: 9}
    assert len(await site.fetch("SELECT id FROM audit_events WHERE event = 'users.deleted'")) == 1


async def test_concurrent_deletion_and_change_by_the_owner_give_declared_responses(site: Site) -> None:
    schema = {"PATCH": {200, 401, 404}, "DELETE": {204, 401, 404}}
    for number in range(ROUNDS // 5):
        user = await site.account(email=f"owner{number}@example.com")

        responses = await asyncio.gather(
            *(site.client.delete(f"{USERS}/me", headers=user.headers) for _ in range(3)),
            *(site.client.patch(f"{USERS}/me", json={"full_name": f"n{n}"}, headers=user.headers) for n in range(3)),
        )

        assert all(response.status_code in schema[response.request.method] for response in responses)
        assert [response.status_code for response in responses].count(204) == 1
        assert await site.fetch("SELECT id FROM users WHERE id = $1", UUID(user.user_id)) == []


async def test_a_password_reset_for_an_account_that_is_being_deleted_gives_a_404(site: Site) -> None:
    admin, target = await site.account(role="admin"), await site.account()
    deletion = site.watcher.transaction()
    await deletion.start()
    await site.watcher.execute("DELETE FROM users WHERE id = $1", UUID(target.user_id))

    request = asyncio.create_task(write(site, admin, target, "reset password"))
    await site.until_waiting(request)
    await deletion.commit()

    # The request waits for the lock on the account, which then no longer exists.
    assert_problem(await request, 404, "user_not_found")
    assert await site.fetch("SELECT * FROM account_links") == []
    assert await site.transactions_left_open() == 0


async def test_no_link_is_created_for_an_account_that_is_being_deleted(site: Site) -> None:
    async with site.database.begin() as session:
        user = await make_user(session)
    await site.client.post("/api/v1/auth/password/forgot", json={"email": user.email})
    deletion = site.watcher.transaction()
    await deletion.start()
    await site.watcher.execute("DELETE FROM users WHERE id = $1", user.id)

    # The job finds the account, because the deletion is not committed, and then waits for its lock.
    job = asyncio.create_task(site.post.collect())
    await site.until_waiting(job)
    is_waiting = not job.done()
    await deletion.commit()

    assert is_waiting
    assert await job == []
    assert await site.fetch("SELECT * FROM account_links") == []
    assert await site.fetch("SELECT * FROM audit_events") == []


# Statements that lock rows, so that the write starts and then waits.
_ACCOUNT = "SELECT FROM users WHERE id = $1 FOR UPDATE"
LOCKS = {
    "rename": _ACCOUNT,
    "promote": _ACCOUNT,
    "disable": _ACCOUNT,
    "delete": _ACCOUNT,
    "reset password": _ACCOUNT,
    "end sessions": "SELECT FROM sessions WHERE user_id = $1 FOR UPDATE",
    "create": "WITH other AS (SELECT $1::uuid) INSERT INTO users (id, email, email_key) "
    "VALUES (gen_random_uuid(), 'new@example.com', 'new@example.com')",
}


async def write(site: Site, actor: LoggedIn, target: LoggedIn, what: str) -> Response:
    method, path, body = {
        "rename": ("PATCH", url(target), {"full_name": "Eve"}),
        "promote": ("PATCH", url(target), {"role": "admin"}),
        "disable": ("PATCH", url(target), {"is_active": False}),
        "delete": ("DELETE", url(target), None),
        "create": ("POST", USERS, {"email": "new@example.com"}),
        "end sessions": ("DELETE", f"{url(target)}/sessions", None),
        "reset password": ("POST", f"{url(target)}/password-reset", None),
    }[what]
    return await site.client.request(method, path, json=body, headers=actor.headers)


@pytest.mark.parametrize("what", LOCKS)
async def test_nothing_is_written_for_an_administrator_after_the_response_to_the_demotion(
    site: Site, what: str
) -> None:
    boss, admin, target = await site.account(role="admin"), await site.account(role="admin"), await site.account()
    blocking = site.watcher.transaction()
    await blocking.start()
    await site.watcher.execute(LOCKS[what], UUID(target.user_id))

    writing = asyncio.create_task(write(site, admin, target, what))
    await site.until_waiting(writing)
    demoting = asyncio.create_task(remove_admin(site, boss, admin, "demote"))
    # The demotion either ends at once, or waits for the write.
    await site.until_waiting(demoting, count=2)
    is_demoted_first = demoting.done()
    await blocking.rollback()
    written, demoted = await writing, await demoting

    assert demoted.status_code == 200
    assert written.status_code == 401 if is_demoted_first else written.is_success
    events = await site.fetch(
        "SELECT event FROM audit_events WHERE actor_id = $1 AND event NOT LIKE 'auth.login%'", UUID(admin.user_id)
    )
    assert len(events) == (0 if is_demoted_first else 1)


async def test_a_demoted_administrator_cannot_promote_themselves(site: Site) -> None:
    boss = await site.account(role="admin")
    chance = random.Random(20261126)  # noqa: S311  # Reproducible pauses, no secret.

    for _ in range(ROUNDS):
        admin = await site.account(role="admin")

        async def demote(admin: LoggedIn = admin) -> Response:
            await asyncio.sleep(chance.uniform(0, 0.01))
            return await remove_admin(site, boss, admin, "demote")

        demoted, promoted = await asyncio.gather(demote(), write(site, admin, admin, "promote"))

        assert demoted.status_code == 200
        assert promoted.status_code in {200, 401}
        (row,) = await site.fetch("SELECT role FROM users WHERE id = $1", UUID(admin.user_id))
        assert row["role"] == "user"


async def test_an_administrator_with_continuous_writes_can_log_in_and_be_changed(site: Site) -> None:
    boss, admin = await site.account(role="admin"), await site.account(role="admin")
    (kept,) = await site.fetch("SELECT id FROM sessions WHERE user_id = $1", UUID(admin.user_id))
    is_over = asyncio.Event()

    async def write_on() -> None:
        while not is_over.is_set():
            async with site.database.begin() as session:
                await token_status.lock(
                    session, user_id=UUID(admin.user_id), session_id=kept["id"], version=1, settings=AuthSettings()
                )
                await asyncio.sleep(0.03)

    async with asyncio.TaskGroup() as group:
        # At any time, at least one transaction has locked the row. With shared locks, the others would wait forever.
        for _ in range(4):
            group.create_task(write_on())
            await asyncio.sleep(0.008)
        try:
            await log_in(site.client, admin.email)
            response = await site.client.patch(url(admin), json={"full_name": "Eve"}, headers=boss.headers)
        finally:
            is_over.set()

    assert response.status_code == 200, response.text


async def test_a_locked_session_is_ended_after_its_release_when_all_are_logged_out(site: Site) -> None:
    users = [await site.account() for _ in range(3)]
    locking = site.watcher.transaction()
    await locking.start()
    await site.watcher.execute("SELECT FROM sessions WHERE user_id = $1 FOR UPDATE", UUID(users[0].user_id))

    ending = asyncio.create_task(end_every_session(site.database))
    await site.until_waiting(ending)
    ended = await site.fetch("SELECT user_id FROM sessions WHERE revoked_at IS NOT NULL")
    await locking.rollback()

    # The other sessions ended without waiting for the locked one.
    assert {str(row["user_id"]) for row in ended} == {user.user_id for user in users[1:]}
    assert await ending == len(users)
    assert await site.fetch("SELECT FROM sessions WHERE revoked_at IS NULL") == []
