from httpx2 import AsyncClient

from tests.conftest import LoggedIn


async def test_refresh(client: AsyncClient, user: LoggedIn) -> None:
    form = {"grant_type": "password", "username": user.email, "password": "correct horse battery staple"}
    pair = (await client.post("/api/v1/auth/token", data=form)).json()
    print(pair)
    r1 = await client.post("/api/v1/auth/token", data={"grant_type": "refresh_token", "refresh_token": pair["refresh_token"]})
    print(r1.json())
    r2 = await client.post("/api/v1/auth/token", data={"grant_type": "refresh_token", "refresh_token": pair["refresh_token"]})
    assert r1.json()["refresh_token"] == r2.json()["refresh_token"]
    r3 = await client.post("/api/v1/auth/token", data={"grant_type": "refresh_token", "refresh_token": r1.json()["refresh_token"]})
    r4 = await client.post("/api/v1/auth/token", data={"grant_type": "refresh_token", "refresh_token": pair["refresh_token"]})
    print(r4.json())
    me = await client.get("/api/v1/users/me", headers={"Authorization": "Bearer " + r3.json()["access_token"]})
    print(me.json())
    s = await client.get("/api/v1/users/me/sessions", headers=user.headers)
    print(s.json())
    assert 0
