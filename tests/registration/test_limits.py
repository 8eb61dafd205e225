"""Limit on guessed links. tests/account/test_limits.py tests that of requests for mail."""

import pytest
from httpx2 import AsyncClient

from app.core.db.database import WriteSession
from tests.auth.post import AUTH
from tests.auth.test_limits import THERE, from_address, set_hits


@pytest.mark.parametrize("token", ["lt1." + "A" * 66, "A" * 10_000], ids=["a secret", "10 KB"])
async def test_guessed_links_count_against_the_client_address(
    client: AsyncClient, session: WriteSession, token: str
) -> None:
    path, body = f"{AUTH}/verify-email", {"token": token}
    first = await client.post(path, json=body)
    await set_hits(session, "token-misuse-address", 99)

    last, surplus = await client.post(path, json=body), await client.post(path, json=body)

    assert [first.status_code, last.status_code, surplus.status_code] == [400, 400, 429]
    assert 895 <= int(surplus.headers["Retry-After"]) <= 900
    async with from_address(client, THERE) as elsewhere:
        assert (await elsewhere.post(path, json=body)).status_code == 400
