"""Limits on the password that is given again to change the address, and on guessed links."""

from httpx2 import AsyncClient

from app.core.db.database import WriteSession
from app.core.security.hashing import PasswordHasher
from tests.auth.post import AUTH, ME, bearer, pair_of, refresh
from tests.auth.test_limits import THERE, WRONG, from_address, set_hits
from tests.factories import make_user


async def test_the_password_may_be_wrong_ten_times(
    client: AsyncClient, session: WriteSession, hasher: PasswordHasher
) -> None:
    ada = await make_user(session, hasher)
    await session.commit()
    pair = await pair_of(client, ada.email)
    body = {"new_email": "new@example.com", "password": WRONG}

    responses = [await client.post(f"{ME}/email", json=body, headers=bearer(pair)) for _ in range(11)]

    assert [response.status_code for response in responses] == [403] * 10 + [429]
    assert (await refresh(client, pair)).status_code == 200


async def test_guessed_links_count_against_the_client_address(client: AsyncClient, session: WriteSession) -> None:
    path, body = f"{AUTH}/email/confirm", {"token": "junk"}
    first = await client.post(path, json=body)
    await set_hits(session, "token-misuse-address", 99)

    last, surplus = await client.post(path, json=body), await client.post(path, json=body)

    assert [first.status_code, last.status_code, surplus.status_code] == [400, 400, 429]
    async with from_address(client, THERE) as elsewhere:
        assert (await elsewhere.post(path, json=body)).status_code == 400
