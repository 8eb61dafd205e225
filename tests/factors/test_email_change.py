"""A change of address leaves the second factor in place, and mints nothing."""

from httpx2 import AsyncClient

from app.core.db.database import WriteSession
from tests.auth.login_sessions import ME
from tests.auth.post import Post, log_in
from tests.factories import PASSWORD
from tests.factors.phone import Enrolled, factor_of, unused_codes


async def test_a_changed_address_leaves_the_factor_in_place(
    client: AsyncClient, session: WriteSession, owner: Enrolled, post: Post
) -> None:
    await post.collect()
    body = {"new_email": "new@example.com", "password": PASSWORD}
    requested = await client.post(f"{ME}/email", json=body, headers=owner.pair.headers)

    response = await client.post("/api/v1/auth/email/confirm", json={"token": await post.link()})

    assert (requested.status_code, response.status_code, response.content) == (202, 204, b"")
    assert (await factor_of(session, owner.user_id)).confirmed_at is not None
    assert await unused_codes(session, owner.user_id) == 10
    assert (await log_in(client, "new@example.com")).status_code == 403
