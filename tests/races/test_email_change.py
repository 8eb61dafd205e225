"""A change of address at the same time as the deletion of the account."""

import asyncio
from uuid import UUID

from tests.aftermath import assert_problem
from tests.factories import PASSWORD
from tests.races.site import Site


async def test_a_change_by_the_owner_of_an_account_that_is_being_deleted_gives_a_conflict(site: Site) -> None:
    owner = await site.account()
    body = {"new_email": "new@example.com", "password": PASSWORD}
    deletion = site.watcher.transaction()
    await deletion.start()
    await site.watcher.execute("DELETE FROM users WHERE id = $1", UUID(owner.user_id))

    # The request finds the account, because the deletion is not committed, and then waits for its lock.
    request = asyncio.create_task(site.client.post("/api/v1/users/me/email", json=body, headers=owner.headers))
    await site.until_waiting(request)
    await deletion.commit()

    response = await request
    assert_problem(response, 409, "gone_meanwhile")
    assert await site.fetch("SELECT * FROM account_links") == []
    assert await site.transactions_left_open() == 0
