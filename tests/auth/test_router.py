"""The token endpoint: logins, and every way in which they are refused."""

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

import bcrypt
import pytest
from httpx2 import AsyncClient, Response
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import select, update

from app.core import product
from app.core.config import DatabaseSettings, Settings
from app.core.db.database import Database, WriteSession
from app.core.security.hashing import BcryptSha256Hasher, PasswordHasher
from app.main import create_app
from app.users.models import User
from tests.auth.conftest import Target
from tests.auth.forge import read_part
from tests.conftest import LoggedIn, make_settings, running
from tests.factories import ADMINISTRATION, PASSWORD, make_user

TOKEN = "/api/v1/auth/token"
REVOKE = "/api/v1/auth/revoke"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


async def log_in(client: AsyncClient, username: str, password: str = PASSWORD, **more: str) -> Response:
    form = {"grant_type": "password", "username": username, "password": password, **more}
    return await client.post(TOKEN, data=form)


def assert_oauth_error(response: Response, status: int, error: str) -> None:
    """What OAuth client libraries read (RFC 6749, 5.2), and what all our errors look like."""
    document = response.json()
    assert (response.status_code, document["error"]) == (status, error), document
    assert document["error_description"] == document["detail"]
    assert document["status"] == status
    assert document["request_id"] == response.headers["X-Request-ID"]
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Pragma"] == "no-cache"


def without_request_id(response: Response) -> tuple[int, dict[str, Any], dict[str, str]]:
    document = response.json()
    del document["request_id"]
    headers = {name: value for name, value in response.headers.items() if name.lower() != "x-request-id"}
    return response.status_code, document, headers


async def stored_hash(session: WriteSession, email: str) -> str | None:
    return await session.scalar(select(User.hashed_password).where(User.email == email))


async def store_hash(session: WriteSession, email: str, hashed_password: str | None) -> None:
    await session.execute(update(User).where(User.email == email).values(hashed_password=hashed_password))
    await session.commit()


async def test_the_response_to_a_login_has_exactly_the_contract(client: AsyncClient, user: LoggedIn) -> None:
    response = await log_in(client, user.email)

    assert response.status_code == 200
    body = response.json()
    token = body.pop("access_token")
    assert re.fullmatch(r"rt1\.[A-Za-z0-9_-]{76}", body.pop("refresh_token"))
    # The database's clock and ours may be a moment apart.
    assert abs(body.pop("refresh_expires_in") - 14 * 86_400) <= 5
    assert body == {"token_type": "Bearer", "expires_in": 600, "scope": ""}
    assert read_part(token, 1)["sub"] == user.user_id
    assert response.headers["Content-Type"] == "application/json"


async def test_a_login_is_never_cached(client: AsyncClient, user: LoggedIn) -> None:
    response = await log_in(client, user.email)

    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Pragma"] == "no-cache"


async def test_each_login_starts_its_own_session(client: AsyncClient, user: LoggedIn) -> None:
    first, second = [read_part((await log_in(client, user.email)).json()["access_token"], 1) for _ in range(2)]

    assert first["sid"] != second["sid"]
    assert first["jti"] != second["jti"]


async def test_the_lifetime_of_a_token_is_a_setting(
    database_url: str, database: Database, session: WriteSession, hasher: PasswordHasher
) -> None:
    account = await make_user(session, hasher)
    await session.commit()
    settings = make_settings(database_url, auth={"access_token_ttl": "90s"})

    async with running(create_app(settings, database)) as client:
        body = (await log_in(client, account.email)).json()

    claims = read_part(body["access_token"], 1)
    assert body["expires_in"] == 90
    assert claims["exp"] - claims["iat"] == 90


@pytest.fixture
async def admin_email(session: WriteSession, hasher: PasswordHasher) -> str:
    """The address of an administrator."""
    account = await make_user(session, hasher, role="admin")
    await session.commit()
    return account.email


@pytest.mark.parametrize(
    ("requested", "granted"),
    [
        pytest.param(None, ADMINISTRATION, id="not asked for"),
        pytest.param("", ADMINISTRATION, id="empty"),
        pytest.param(" ", ADMINISTRATION, id="blank"),
        pytest.param("users:read", "users:read", id="one"),
        pytest.param("users:write  users:read", "users:read users:write", id="two, in another order"),
        pytest.param("users:read users:read", "users:read", id="one twice"),
    ],
)
async def test_a_login_gets_the_requested_scopes(
    client: AsyncClient, admin_email: str, requested: str | None, granted: str
) -> None:
    response = await log_in(client, admin_email, **({} if requested is None else {"scope": requested}))

    assert response.json()["scope"] == granted
    assert read_part(response.json()["access_token"], 1)["scope"] == granted


@pytest.mark.parametrize("scope", ["unknown", "users:read unknown", "USERS:READ", "*", "users:*"])
async def test_an_unknown_scope_is_refused(client: AsyncClient, admin_email: str, scope: str) -> None:
    response = await log_in(client, admin_email, scope=scope)

    assert_oauth_error(response, 400, "invalid_scope")


async def test_a_scope_that_the_role_does_not_grant_is_refused(client: AsyncClient, user: LoggedIn) -> None:
    response = await log_in(client, user.email, scope="users:read")

    assert_oauth_error(response, 400, "invalid_scope")


async def test_scopes_are_checked_after_the_password(client: AsyncClient, user: LoggedIn) -> None:
    response = await log_in(client, user.email, "wrong password", scope="unknown")

    assert_oauth_error(response, 400, "invalid_grant")


@pytest.mark.parametrize("password", [PASSWORD, "wrong password"])
@pytest.mark.parametrize("scope", ['"', "\\", "\0", "\n", "\x7f", "é", "users:read\u00a0x", "a" * 513, "a" * 10_000])
async def test_a_malformed_scope_is_invalid(client: AsyncClient, user: LoggedIn, scope: str, password: str) -> None:
    response = await log_in(client, user.email, password, scope=scope)

    assert_oauth_error(response, 400, "invalid_scope")


async def test_every_refused_login_looks_the_same(
    client: AsyncClient, session: WriteSession, hasher: PasswordHasher, user: LoggedIn
) -> None:
    disabled = await make_user(session, hasher, is_active=False)
    passwordless = await make_user(session)
    unverified = await make_user(session, hasher, email_verified_at=None)
    damaged = await make_user(session, hashed_password="not a hash")
    await session.commit()

    answers = [
        without_request_id(await log_in(client, username, password))
        for username, password in (
            (user.email, "wrong password"),
            ("nobody@example.com", PASSWORD),
            ("no address at all", PASSWORD),
            (disabled.email, PASSWORD),
            (disabled.email, "wrong password"),
            (passwordless.email, PASSWORD),
            (unverified.email, "wrong password"),
            (damaged.email, PASSWORD),
        )
    ]

    status, document, _ = answers[0]
    assert (status, document["error"], document["code"]) == (400, "invalid_grant", "invalid_grant")
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize("who", ["wrong", "unknown", "disabled", "passwordless"])
async def test_every_refused_login_hashes_once(
    client: AsyncClient,
    session: WriteSession,
    hasher: PasswordHasher,
    user: LoggedIn,
    monkeypatch: pytest.MonkeyPatch,
    who: str,
) -> None:
    disabled = await make_user(session, hasher, is_active=False)
    passwordless = await make_user(session)
    await session.commit()
    names = {"wrong": user.email, "disabled": disabled.email, "passwordless": passwordless.email}
    hashed: list[int] = []
    checkpw = bcrypt.checkpw

    def counted(password: bytes, hashed_password: bytes) -> bool:
        hashed.append(int(hashed_password[4:6]))
        return checkpw(password, hashed_password)

    monkeypatch.setattr("app.core.security.hashing.bcrypt.checkpw", counted)

    await log_in(client, names.get(who, "nobody@example.com"), "wrong password")

    assert hashed == [4]


async def test_an_unverified_account_gets_its_own_error_for_the_correct_password(
    client: AsyncClient, session: WriteSession, hasher: PasswordHasher
) -> None:
    account = await make_user(session, hasher, email_verified_at=None)
    await session.commit()

    response = await log_in(client, account.email)

    assert_oauth_error(response, 403, "invalid_grant")
    assert response.json()["code"] == "email_not_verified"


async def test_an_unverified_account_logs_in_if_the_setting_allows_it(
    database_url: str, database: Database, session: WriteSession, hasher: PasswordHasher
) -> None:
    account = await make_user(session, hasher, email_verified_at=None)
    await session.commit()
    settings = make_settings(database_url, auth={"require_verified_email": False})

    async with running(create_app(settings, database)) as client:
        right = await log_in(client, account.email)
        wrong = await log_in(client, account.email, "wrong password")

    assert right.status_code == 200
    assert_oauth_error(wrong, 400, "invalid_grant")


def foreign_hash(scheme: str) -> str:
    """Hash `PASSWORD` as another system, or we in other times, would have."""
    if scheme == "bcrypt":
        return bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    if scheme == "argon2id":
        return Argon2Hasher(time_cost=1, memory_cost=64, parallelism=1).hash(PASSWORD)
    return BcryptSha256Hasher(int(scheme)).hash(PASSWORD)


@pytest.mark.parametrize(
    ("stored", "settings_now", "prefix"),
    [
        pytest.param("bcrypt", {}, "$bcrypt-sha256$v=2,t=2b,r=4$", id="plain bcrypt"),
        pytest.param("argon2id", {}, "$bcrypt-sha256$v=2,t=2b,r=4$", id="argon2id, no longer preferred"),
        pytest.param("4", {"bcrypt_cost": 5}, "$bcrypt-sha256$v=2,t=2b,r=5$", id="a lower cost"),
        pytest.param("5", {"bcrypt_cost": 4}, "$bcrypt-sha256$v=2,t=2b,r=4$", id="a higher cost"),
        pytest.param("4", {"password_hash": "argon2id"}, "$argon2id$v=19$", id="argon2id, now preferred"),
    ],
)
async def test_a_login_replaces_a_hash_of_an_older_kind(
    database_url: str,
    database: Database,
    session: WriteSession,
    stored: str,
    settings_now: Mapping[str, Any],
    prefix: str,
) -> None:
    account = await make_user(session, hashed_password=foreign_hash(stored))
    await session.commit()
    settings = make_settings(database_url, auth=dict(settings_now))

    async with running(create_app(settings, database)) as client:
        first = await log_in(client, account.email)
        replaced = await stored_hash(session, account.email)
        second = await log_in(client, account.email)
        wrong = await log_in(client, account.email, "wrong password")

    assert (first.status_code, second.status_code, wrong.status_code) == (200, 200, 400)
    assert replaced is not None
    assert replaced.startswith(prefix)
    assert await stored_hash(session, account.email) == replaced


async def test_a_wrong_password_replaces_no_hash(client: AsyncClient, session: WriteSession, user: LoggedIn) -> None:
    old = foreign_hash("bcrypt")
    await store_hash(session, user.email, old)

    await log_in(client, user.email, "wrong password")

    assert await stored_hash(session, user.email) == old


async def test_a_current_hash_is_not_replaced(client: AsyncClient, session: WriteSession, user: LoggedIn) -> None:
    before = await stored_hash(session, user.email)

    await log_in(client, user.email)

    assert await stored_hash(session, user.email) == before


async def test_a_form_may_contain_unescaped_utf8(
    client: AsyncClient, session: WriteSession, hasher: PasswordHasher
) -> None:
    account = await make_user(session, hasher, password="é 🐘 is not Latin-1")
    await session.commit()
    body = f"grant_type=password&username={account.email}&password=é+🐘 is%20not Latin-1".encode()

    response = await client.post(TOKEN, content=body, headers=FORM)

    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    "password",
    [
        pytest.param("é" * 15, id="two bytes each"),
        pytest.param("🐘" * 64, id="emoji"),
        pytest.param(" leading and trailing ", id="spaces around"),
        pytest.param("x" * 255 + "y", id="256 characters"),
        pytest.param("+%26&=;\r\n\t", id="what forms escape"),
    ],
)
async def test_all_of_a_password_counts(
    client: AsyncClient, session: WriteSession, hasher: PasswordHasher, password: str
) -> None:
    account = await make_user(session, hasher, password=password)
    await session.commit()

    right = await log_in(client, account.email, password)
    wrong = await log_in(client, account.email, password[:-1])

    assert right.status_code == 200
    assert_oauth_error(wrong, 400, "invalid_grant")


@pytest.mark.parametrize(
    ("stored", "typed"),
    [
        pytest.param("Ada@example.com", "ada@EXAMPLE.com", id="case"),
        pytest.param("ada@bücher.example", "ada@xn--bcher-kva.example", id="domain in IDNA"),
        pytest.param("ada@xn--bcher-kva.example", "ada@BÜCHER.example", id="domain in Unicode, upper case"),
        pytest.param("zo\u00eb@example.com", "zoe\u0308@example.com", id="decomposed"),
        pytest.param("ZO\u00cb@example.com", "zo\u00eb@example.com", id="case beyond ASCII"),
        pytest.param("straße@example.com", "STRASSE@example.com", id="folding that changes the length"),
    ],
)
async def test_all_spellings_of_an_address_log_in(
    client: AsyncClient, session: WriteSession, hasher: PasswordHasher, stored: str, typed: str
) -> None:
    account = await make_user(session, hasher, email=stored)
    await session.commit()

    response = await log_in(client, typed)

    assert response.status_code == 200, response.text
    assert read_part(response.json()["access_token"], 1)["sub"] == str(account.id)


@pytest.mark.parametrize(
    "typed",
    [
        pytest.param("ada+1@gmail.com", id="a plus tag"),
        pytest.param("a.da@gmail.com", id="a dot"),
        pytest.param("\u0430da@gmail.com", id="a Cyrillic letter"),
        pytest.param("ada@gmail.com ", id="a space behind"),
        pytest.param(" ada@gmail.com", id="a space before"),
        pytest.param("ada@gmail.com.", id="a dot behind"),
        pytest.param("Ada <ada@gmail.com>", id="a name"),
        pytest.param("ada@gmail.com,eve@gmail.com", id="two addresses"),
        pytest.param("ada%", id="a pattern"),
    ],
)
async def test_another_address_is_another_account(
    client: AsyncClient, session: WriteSession, hasher: PasswordHasher, typed: str
) -> None:
    await make_user(session, hasher, email="ada@gmail.com")
    await session.commit()

    response = await log_in(client, typed)

    assert_oauth_error(response, 400, "invalid_grant")


GOOD = "grant_type=password&username=ada%40example.com&password=correct+horse+battery+staple"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        pytest.param("", "invalid_request", id="nothing"),
        pytest.param("username=a%40b.co&password=x", "invalid_request", id="grant_type missing"),
        pytest.param("grant_type=&username=a%40b.co&password=x", "invalid_request", id="grant_type empty"),
        pytest.param(f"{GOOD}&grant_type=password", "invalid_request", id="grant_type twice"),
        pytest.param(f"{GOOD}&grant_type=refresh_token", "invalid_request", id="two grant types"),
        pytest.param(GOOD.replace("=password&", "=PASSWORD&"), "unsupported_grant_type", id="in upper case"),
        pytest.param(GOOD.replace("=password&", "=client_credentials&"), "unsupported_grant_type", id="of a client"),
        pytest.param("grant_type=authorization_code&code=x", "unsupported_grant_type", id="a code"),
        pytest.param("grant_type=%00", "unsupported_grant_type", id="grant_type NUL"),
        pytest.param("grant_type=password&password=x", "invalid_request", id="username missing"),
        pytest.param("grant_type=password&username=&password=x", "invalid_request", id="username empty"),
        pytest.param(f"{GOOD}&username=eve%40example.com", "invalid_request", id="username twice"),
        pytest.param(GOOD.replace("username=", "username[]="), "invalid_request", id="username an array"),
        pytest.param("grant_type=password&username=a%40b.co", "invalid_request", id="password missing"),
        pytest.param("grant_type=password&username=a%40b.co&password=", "invalid_request", id="password empty"),
        pytest.param(f"{GOOD}&password=x", "invalid_request", id="password twice"),
        pytest.param(f"{GOOD}&scope=a&scope=b", "invalid_request", id="scope twice"),
        pytest.param(f"{GOOD}&audience=a&audience=b", "invalid_request", id="an unknown member twice"),
        pytest.param(f"{GOOD}&scope=%22&client_id=%00", "invalid_request", id="more than the scope malformed"),
        pytest.param(GOOD.replace("ada", "a%00da"), "invalid_request", id="username with NUL"),
        pytest.param(GOOD.replace("ada", "a%0ada"), "invalid_request", id="username with a newline"),
        pytest.param(GOOD.replace("ada", "a%EF%BF%BEda"), "invalid_request", id="username with a non-character"),
        pytest.param(GOOD.replace("ada", "%ED%A0%80"), "invalid_request", id="username a surrogate"),
        pytest.param(GOOD.replace("ada", "%FF"), "invalid_request", id="username not UTF-8"),
        pytest.param(GOOD.replace("ada", "a" * 10_000), "invalid_grant", id="username of 10 KB"),
        pytest.param(f"{GOOD}{'x' * 257}", "invalid_grant", id="password too long"),
        pytest.param(f"{GOOD}{'x' * 10_000}", "invalid_grant", id="password of 10 KB"),
        pytest.param(f"{GOOD}\udcff", "invalid_request", id="bytes that are not UTF-8"),
        pytest.param(f"{GOOD}%FF", "invalid_request", id="password not UTF-8"),
        pytest.param(f"{GOOD}%ED%A0%80", "invalid_request", id="password a surrogate"),
        pytest.param(f"{GOOD}&client_id={'x' * 256}", "invalid_request", id="client_id too long"),
        pytest.param("&" * 1000, "invalid_request", id="only separators"),
        pytest.param("&".join(f"a{n}=1" for n in range(2000)), "invalid_request", id="2000 members"),
        pytest.param("=" * 100, "invalid_request", id="only equals signs"),
        pytest.param('{"grant_type": "password"}', "invalid_request", id="JSON called a form"),
    ],
)
async def test_a_malformed_form_is_refused(target: Target, body: str, error: str) -> None:
    response = await target.client.post(TOKEN, content=body.encode(errors="surrogateescape"), headers=FORM)

    assert_oauth_error(response, 400, error)


async def test_a_password_with_nul_is_a_wrong_password(client: AsyncClient, user: LoggedIn) -> None:
    response = await log_in(client, user.email, "correct\0horse")

    assert response.status_code == 400
    assert response.json()["error"] in {"invalid_grant", "invalid_request"}


async def test_an_error_never_repeats_the_request(client: AsyncClient) -> None:
    response = await client.post(TOKEN, content="grant_type=canary1&username=canary2&password=canary3", headers=FORM)

    assert "canary" not in response.text


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        pytest.param("application/json", b'{"grant_type": "password"}', id="JSON"),
        pytest.param("multipart/form-data; boundary=x", b"--x--", id="multipart"),
        pytest.param("multipart/form-data", b"", id="multipart without a boundary"),
        pytest.param(f"multipart/form-data; boundary={'x' * 10_000}", b"", id="multipart with a long boundary"),
        pytest.param("text/plain", GOOD.encode(), id="text"),
        pytest.param("", GOOD.encode(), id="an empty type"),
        pytest.param("application/x-www-form-urlencoded; charset=utf-16", GOOD.encode("utf-16"), id="another charset"),
    ],
)
async def test_only_forms_are_read(target: Target, content_type: str, body: bytes) -> None:
    response = await target.client.post(TOKEN, content=body, headers={"Content-Type": content_type})

    assert_oauth_error(response, 415, "invalid_request")


async def test_a_body_without_a_media_type_is_refused(client: AsyncClient) -> None:
    response = await client.post(TOKEN, content=GOOD.encode())

    assert_oauth_error(response, 415, "invalid_request")


async def test_a_compressed_form_is_refused(client: AsyncClient) -> None:
    response = await client.post(TOKEN, content=GOOD, headers={**FORM, "Content-Encoding": "gzip"})

    assert_oauth_error(response, 415, "invalid_request")


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "FOO"])
async def test_a_login_needs_a_post(target: Target, method: str) -> None:
    response = await target.client.request(method, TOKEN)

    assert response.status_code == 405
    assert response.headers["Allow"] == "POST"


async def test_a_wrong_method_is_an_oauth_error(client: AsyncClient) -> None:
    response = await client.get(TOKEN)

    assert_oauth_error(response, 405, "invalid_request")


async def test_a_body_that_is_too_large_is_an_oauth_error(client: AsyncClient) -> None:
    response = await client.post(TOKEN, content=b"x" * 1_048_577, headers=FORM)

    assert_oauth_error(response, 413, "invalid_request")


async def test_a_body_of_unknown_length_that_is_too_large_is_an_oauth_error(client: AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(17):
            yield b"x" * 65_536

    response = await client.post(TOKEN, content=chunks(), headers=FORM)

    assert_oauth_error(response, 413, "invalid_request")


@pytest.mark.parametrize("body", ["", GOOD])
async def test_credentials_in_the_address_are_refused(client: AsyncClient, user: LoggedIn, body: str) -> None:
    address = f"{TOKEN}?grant_type=password&username={quote(user.email)}&password={quote(PASSWORD)}"

    response = await client.post(address, content=body, headers=FORM)

    assert_oauth_error(response, 400, "invalid_request")
    assert response.json()["code"] == "secret_in_url"


async def test_any_parameter_in_the_address_is_refused(client: AsyncClient, user: LoggedIn) -> None:
    form = {"grant_type": "password", "username": user.email, "password": PASSWORD}

    response = await client.post(f"{TOKEN}?scope=users:read", data=form)

    assert_oauth_error(response, 400, "invalid_request")


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("Basic Y2xpZW50OnNlY3JldA==", id="credentials"),
        pytest.param("Basic Og==", id="empty credentials"),
        pytest.param("Basic", id="nothing"),
        pytest.param("Basic ===", id="no base64"),
        pytest.param("Basic AAAA", id="NUL"),
        pytest.param("Basic //8=", id="not UTF-8"),
        pytest.param(f"Basic {'A' * 65_000}", id="65 KB"),
        pytest.param("bASIC Og==", id="in another case"),
    ],
)
async def test_client_credentials_in_the_header_are_refused(client: AsyncClient, user: LoggedIn, value: str) -> None:
    form = {"grant_type": "password", "username": user.email, "password": PASSWORD}

    response = await client.post(TOKEN, data=form, headers={"Authorization": value})

    assert_oauth_error(response, 401, "invalid_client")
    assert response.headers.get_list("WWW-Authenticate") == [f'Basic realm="{product.SLUG}"']


@pytest.mark.parametrize("values", [["Bearer x"], ["Bearer"], [""], ["Digest x"], ["Bearer x", "Bearer y"]])
async def test_other_credentials_in_the_header_are_ignored(
    client: AsyncClient, user: LoggedIn, values: list[str]
) -> None:
    form = {"grant_type": "password", "username": user.email, "password": PASSWORD}
    headers = [("Authorization", value) for value in values]

    login = await client.post(TOKEN, data=form, headers=headers)
    refresh_form = {"grant_type": "refresh_token", "refresh_token": login.json()["refresh_token"]}
    refresh = await client.post(TOKEN, data=refresh_form, headers=headers)
    logout = await client.post(REVOKE, data={"token": refresh.json()["refresh_token"]}, headers=headers)
    again = await client.post(TOKEN, data=refresh_form, headers=headers)

    assert [response.status_code for response in (login, refresh, logout)] == [200, 200, 200]
    assert_oauth_error(again, 400, "invalid_grant")


async def test_unknown_members_are_ignored(client: AsyncClient, user: LoggedIn) -> None:
    more = {"audience": "x", "resource": "\0\n", "is_superuser": "true", "": ""}

    login = await log_in(client, user.email, **more)
    logout = await client.post(REVOKE, data={"token": login.json()["refresh_token"], **more})

    assert (login.status_code, logout.status_code) == (200, 200)
    assert read_part(login.json()["access_token"], 1)["sub"] == user.user_id
    refresh_form = {"grant_type": "refresh_token", "refresh_token": login.json()["refresh_token"]}
    assert_oauth_error(await client.post(TOKEN, data=refresh_form), 400, "invalid_grant")


async def test_a_client_secret_in_the_form_is_refused(client: AsyncClient, user: LoggedIn) -> None:
    response = await log_in(client, user.email, client_id="app", client_secret="secret")

    assert_oauth_error(response, 401, "invalid_client")


@pytest.mark.parametrize("more", [{"client_id": "any"}, {"client_id": "any", "client_secret": ""}, {"client_id": ""}])
async def test_a_client_id_alone_is_ignored(client: AsyncClient, user: LoggedIn, more: dict[str, str]) -> None:
    response = await log_in(client, user.email, **more)

    assert response.status_code == 200


class Gate:
    """Holds every password check until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._reached = threading.Event()
        self._open = threading.Event()
        original = PasswordHasher._verify

        def held(hasher: PasswordHasher, password: str, stored: str | None) -> Any:
            self._reached.set()
            assert self._open.wait(10)
            return original(hasher, password, stored)

        monkeypatch.setattr(PasswordHasher, "_verify", held)

    async def reached(self) -> None:
        """Wait until a password is being checked."""
        assert await asyncio.to_thread(self._reached.wait, 10)

    def open(self) -> None:
        self._open.set()


async def test_no_connection_is_held_while_a_password_is_hashed(
    clone_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(clone_url)
    database = Database(settings.database)
    gate = Gate(monkeypatch)

    async with running(create_app(settings, database)) as client:
        login = asyncio.create_task(log_in(client, "nobody@example.com"))
        await gate.reached()
        pools: list[Any] = [database.engine.pool, database.read_engine.pool]
        held = [pool.checkedout() for pool in pools]
        used = database.read_engine.pool.status()
        gate.open()
        response = await login
    await database.dispose()

    assert held == [0, 0]
    # The connection had been taken, or this would prove nothing.
    assert "Connections in pool: 1" in used
    assert_oauth_error(response, 400, "invalid_grant")


async def test_when_hashing_is_busy_the_client_is_told_to_retry(
    clone_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(clone_url, auth={"hash_threads": 1, "hash_queue": 0})
    database = Database(settings.database)
    gate = Gate(monkeypatch)

    async with running(create_app(settings, database)) as client:
        first = asyncio.create_task(log_in(client, "nobody@example.com"))
        await gate.reached()
        second = await log_in(client, "somebody@example.com")
        gate.open()
        await first
        third = await log_in(client, "somebody@example.com")
    await database.dispose()

    assert_oauth_error(second, 503, "temporarily_unavailable")
    assert second.json()["code"] == "hashing_busy"
    assert int(second.headers["Retry-After"]) >= 1
    assert_oauth_error(third, 400, "invalid_grant")


async def test_a_login_without_a_database_is_told_to_retry(settings: Settings) -> None:
    nowhere = DatabaseSettings.model_validate({"url": "postgresql://nobody@127.0.0.1:1/nothing"})
    database = Database(nowhere)

    async with running(create_app(settings, database)) as client:
        response = await log_in(client, "nobody@example.com")
    await database.dispose()

    assert_oauth_error(response, 503, "temporarily_unavailable")
    assert int(response.headers["Retry-After"]) >= 1
