from httpx2 import AsyncClient

from tests.conftest import LoggedIn


async def test_your_own_account_is_returned_without_secrets(client: AsyncClient, user: LoggedIn) -> None:
    response = await client.get("/api/v1/users/me", headers=user.headers)

    assert response.status_code == 200
    body = response.json()
    assert body["id"] == user.user_id
    assert body["email"] == user.email
    assert set(body) == {
        "id",
        "email",
        "full_name",
        "role",
        "is_active",
        "email_verified_at",
        "created_at",
        "updated_at",
    }
