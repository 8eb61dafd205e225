"""Registration and requests for a link at the same time as other changes of the account."""

import asyncio
import random
from collections import Counter

from httpx2 import Response

from tests.factories import PASSWORD, make_user
from tests.races.site import Site
from tests.races.test_users import ROUNDS, USERS


async def test_no_verification_link_is_created_for_an_account_that_is_being_deleted(site: Site) -> None:
    async with site.database.begin() as session:
        user = await make_user(session, email_verified_at=None)
    await site.client.post("/api/v1/auth/verify-email/resend", json={"email": user.email})
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


async def test_a_registration_and_a_creation_by_an_administrator_make_one_account(site: Site) -> None:
    admin = await site.account(role="admin")
    chance = random.Random(20261126)  # noqa: S311  # Reproducible pauses, no secret.
    outcomes: Counter[int] = Counter()

    async def register(email: str) -> None:
        response = await site.client.post("/api/v1/auth/register", json={"email": email, "password": PASSWORD})
        assert response.status_code == 202
        await site.post.collect()

    async def create(email: str) -> Response:
        await asyncio.sleep(chance.uniform(0, 0.04))
        return await site.client.post(USERS, json={"email": email}, headers=admin.headers)

    for number in range(ROUNDS):
        email = f"new{number}@example.com"
        _, created = await asyncio.gather(register(email), create(email.upper()))
        await site.post.collect()

        outcomes[created.status_code] += 1
        (account,) = await site.fetch("SELECT id, hashed_password FROM users WHERE email_key = $1", email)
        # Only one of the two creates the account. If it is the administrator, the password of the registration is dropped.
        assert (account["hashed_password"] is None) == (created.status_code == 201)
        purposes = await site.fetch("SELECT purpose FROM account_links WHERE user_id = $1", account["id"])
        assert [row["purpose"] for row in purposes] == [
            "set_password" if created.status_code == 201 else "verify_email"
        ]
    # Both outcomes must occur; otherwise there was no race.
    assert set(outcomes) == {201, 409}, outcomes
    assert await site.fetch("SELECT job_id FROM job_errors") == []
