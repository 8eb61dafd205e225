"""A client that knows nothing of second factors: Authlib shows an error that a person understands."""

import pytest
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from httpx2 import AsyncClient

from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from tests.auth.post import bearer, pair_of
from tests.conftest import LoggedIn, make_settings
from tests.factories import PASSWORD, make_user
from tests.factors.phone import SECOND_LEG, enrol
from tests.servers import real_server

EMAIL = "ada@example.com"


@pytest.mark.slow
async def test_authlib_reports_that_a_second_factor_is_needed(clone_url: str, hasher: PasswordHasher) -> None:
    database = Database(make_settings(clone_url).database)
    async with database.begin() as session:
        user = await make_user(session, hasher, email=EMAIL)
    await database.dispose()

    async with real_server(clone_url) as server, AsyncClient(base_url=server.base_url, timeout=60) as client:
        owner = await enrol(client, LoggedIn(str(user.id), EMAIL, bearer(await pair_of(client, EMAIL))))
        async with AsyncOAuth2Client(
            client_id="a-first-party-client",
            token_endpoint=f"{server.base_url}/api/v1/auth/token",
            token_endpoint_auth_method="none",
        ) as oauth:
            with pytest.raises(OAuthError) as raised:
                await oauth.fetch_token(username=EMAIL, password=PASSWORD, grant_type="password")
        # A client that knows the second leg logs in with two requests.
        form = {"grant_type": "password", "username": EMAIL, "password": PASSWORD}
        first = await client.post("/api/v1/auth/token", data=form)
        body = {"mfa_token": first.json()["mfa_token"], "code": owner.phone.code(steps=1)}
        second = await client.post(SECOND_LEG, json=body)

    assert raised.value.error == "mfa_required"
    assert "second" in raised.value.description
    assert second.status_code == 200
