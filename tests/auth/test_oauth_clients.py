"""OAuth libraries of others against a running server: they understand our endpoints as the standards say."""

import asyncio
from collections.abc import AsyncIterator

import jwt
import pytest
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from jwt import PyJWKClient

from app.auth.settings import AuthSettings
from app.core import product
from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from tests.conftest import cloned, make_settings
from tests.factories import PASSWORD, make_user
from tests.servers import Server, real_server

ISSUER = "https://api.example.com"


@pytest.fixture(scope="module")
async def email() -> str:
    """The address of the administrator who logs in."""
    return "ada@example.com"


@pytest.fixture(scope="module")
async def server(template_url: str, email: str) -> AsyncIterator[Server]:
    """A running server whose access tokens are short-lived enough for a client to refresh them by itself."""
    async with cloned(template_url) as url:
        database = Database(make_settings(url).database)
        hasher = PasswordHasher(AuthSettings(bcrypt_cost=4))
        async with database.begin() as session:
            await make_user(session, hasher, email=email, role="admin")
        hasher.close()
        await database.dispose()
        async with real_server(url, APP_AUTH__ISSUER=ISSUER, APP_AUTH__ACCESS_TOKEN_TTL="30s") as server:
            yield server


@pytest.fixture
async def oauth(server: Server) -> AsyncIterator[AsyncOAuth2Client]:
    """Authlib's client; it refreshes a token that ends within a minute, which all of ours do here."""
    async with AsyncOAuth2Client(
        client_id="a-first-party-client",
        token_endpoint=f"{server.base_url}/api/v1/auth/token",
        token_endpoint_auth_method="none",
        base_url=server.base_url,
    ) as client:
        yield client


async def test_authlib_logs_in_refreshes_by_itself_and_revokes(oauth: AsyncOAuth2Client, email: str) -> None:
    first = dict(await oauth.fetch_token(username=email, password=PASSWORD, grant_type="password"))

    response = await oauth.get("/api/v1/users/me")
    second = dict(oauth.token)
    revoked = await oauth.revoke_token(
        f"{oauth.base_url}/api/v1/auth/revoke", token=second["refresh_token"], token_type_hint="refresh_token"
    )

    assert (response.status_code, response.json()["email"]) == (200, email)
    assert second["refresh_token"] != first["refresh_token"]
    assert revoked.status_code == 200
    with pytest.raises(OAuthError) as refused:
        await oauth.refresh_token()
    assert refused.value.error == "invalid_grant"


async def test_authlib_gets_the_scope_that_it_requests(oauth: AsyncOAuth2Client, email: str) -> None:
    token = await oauth.fetch_token(username=email, password=PASSWORD, grant_type="password", scope="users:read")

    assert token["scope"] == "users:read"


async def test_authlib_understands_a_refused_login(oauth: AsyncOAuth2Client, email: str) -> None:
    with pytest.raises(OAuthError) as refused:
        await oauth.fetch_token(username=email, password="a wrong password", grant_type="password")

    assert refused.value.error == "invalid_grant"
    assert refused.value.description


async def test_pyjwt_verifies_an_access_token_by_the_published_key_set(
    server: Server, oauth: AsyncOAuth2Client, email: str
) -> None:
    token = (await oauth.fetch_token(username=email, password=PASSWORD, grant_type="password"))["access_token"]
    published = PyJWKClient(f"{server.base_url}/.well-known/jwks.json")

    key = await asyncio.to_thread(published.get_signing_key_from_jwt, token)
    claims = jwt.decode(
        token,
        key,
        algorithms=["ES256"],
        audience=product.SLUG,
        issuer=ISSUER,
        options={"require": ["exp", "iat", "sub"]},
    )

    assert jwt.get_unverified_header(token)["typ"] == "at+jwt"
    assert claims["client_id"] == "first-party"
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(f"{token[:-8]}AAAAAAAA", key, algorithms=["ES256"], audience=product.SLUG, issuer=ISSUER)
