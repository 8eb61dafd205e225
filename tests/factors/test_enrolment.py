"""Setting up, removing and resetting second factors, over HTTP."""

import base64
from typing import Any

import pyotp
import pytest
from httpx2 import AsyncClient
from sqlalchemy import text

from app.core.db.database import WriteSession
from app.factors import recovery_codes
from tests.aftermath import assert_problem, events
from tests.auth.forge import Forge, signing_jwk
from tests.auth.post import Post, log_in
from tests.conftest import KEY_SET, LoggedIn
from tests.factors.phone import (
    CONFIRM,
    MFA,
    TOTP,
    Enrolled,
    begin,
    enrol,
    factor_of,
    live_sessions,
    unused_codes,
)

_EMPTY = {"totp": None, "recovery_codes_left": 0, "passkeys": 0, "is_required": False}


async def test_an_account_begins_without_a_second_factor(client: AsyncClient, user: LoggedIn) -> None:
    response = await client.get(MFA, headers=user.headers)

    assert (response.status_code, response.json()) == (200, _EMPTY)


async def test_a_setup_gives_a_secret_as_text_uri_and_image(
    client: AsyncClient, session: WriteSession, user: LoggedIn
) -> None:
    response = await client.post(TOTP, headers=user.headers)

    assert response.status_code == 201
    body = response.json()
    assert body.keys() == {"secret", "otpauth_uri", "qr_svg", "expires_at"}
    read = pyotp.parse_uri(body["otpauth_uri"])
    assert (read.secret, read.name) == (body["secret"], user.email)
    assert len(base64.b32decode(body["secret"])) == 20
    assert body["qr_svg"].startswith("<svg ")
    assert not {"<script", "style=", "http://www.w3.org/1999"} & set(body["qr_svg"].split())
    row = await factor_of(session, user.user_id)
    assert (row.confirmed_at, row.last_used_at, row.last_step) == (None, None, 0)
    assert base64.b32decode(body["secret"]) not in row.sealed


async def test_an_unconfirmed_setup_does_not_gate_the_login(client: AsyncClient, user: LoggedIn) -> None:
    await begin(client, user.headers)

    response = await log_in(client, user.email)
    status = await client.get(MFA, headers=user.headers)

    assert response.status_code == 200
    assert status.json() == _EMPTY


async def test_a_confirmation_gives_codes_and_stronger_tokens_and_ends_the_other_sessions(
    client: AsyncClient, session: WriteSession, user: LoggedIn
) -> None:
    await log_in(client, user.email)
    phone = await begin(client, user.headers)
    assert len(await live_sessions(session, user.user_id)) == 2

    response = await client.post(CONFIRM, json={"code": phone.code()}, headers=user.headers)

    assert response.status_code == 200
    body: dict[str, Any] = response.json()
    assert len({recovery_codes.digest(code) for code in body["recovery_codes"]}) == 10
    claims = Forge(body["access_token"], signing_jwk(KEY_SET)).claims
    assert (claims["acr"], claims["amr"]) == ("aal2", ["pwd", "otp", "mfa"])
    (live,) = await live_sessions(session, user.user_id)
    assert (str(live.id), live.acr) == (claims["sid"], "aal2")
    status = await client.get(MFA, headers={"Authorization": f"Bearer {body['access_token']}"})
    assert status.json()["totp"]["created_at"]
    assert status.json()["totp"]["last_used_at"]
    assert status.json()["recovery_codes_left"] == 10
    assert [event.detail for event in await events(session, "auth.mfa_enabled")] == [{}]


async def test_a_confirmation_can_keep_the_refresh_token_in_its_cookie(client: AsyncClient, user: LoggedIn) -> None:
    phone = await begin(client, user.headers)

    response = await client.post(
        CONFIRM,
        json={"code": phone.code()},
        headers=user.headers | {"Token-Transport": "cookie", "Origin": "http://127.0.0.1:8000"},
    )

    assert response.status_code == 200, response.text
    assert "refresh_token" not in response.json()
    assert response.headers["set-cookie"].startswith("__Host-refresh=rt1.")


async def test_a_wrong_code_confirms_nothing(client: AsyncClient, session: WriteSession, user: LoggedIn) -> None:
    phone = await begin(client, user.headers)

    response = await client.post(CONFIRM, json={"code": phone.wrong()}, headers=user.headers)

    assert_problem(response, 403, "wrong_code")
    assert (await factor_of(session, user.user_id)).confirmed_at is None
    assert await unused_codes(session, user.user_id) == 0
    assert [event.detail for event in await events(session, "auth.second_factor_failed")] == [{"reason": "wrong"}]


@pytest.mark.parametrize(
    "code", ["12345", "1234567", "12345a", "\u0661\u0662\u0663\u0664\u0665\u0666", "12 456", "", None, 123456]
)
async def test_a_malformed_code_is_refused(client: AsyncClient, user: LoggedIn, code: object) -> None:
    await begin(client, user.headers)

    response = await client.post(CONFIRM, json={"code": code}, headers=user.headers)

    assert_problem(response, 422, "validation_error", "#/code")


async def test_nothing_can_be_confirmed_without_a_setup(client: AsyncClient, user: LoggedIn) -> None:
    response = await client.post(CONFIRM, json={"code": "123456"}, headers=user.headers)

    assert_problem(response, 404, "totp_not_pending")


async def test_a_setup_expires_after_ten_minutes(client: AsyncClient, session: WriteSession, user: LoggedIn) -> None:
    phone = await begin(client, user.headers)
    await session.execute(text("UPDATE totp_secrets SET created_at = created_at - interval '10 minutes 1 second'"))
    await session.commit()

    response = await client.post(CONFIRM, json={"code": phone.code()}, headers=user.headers)

    assert_problem(response, 404, "totp_not_pending")
    assert (await factor_of(session, user.user_id)).confirmed_at is None


async def test_a_second_setup_replaces_the_first(client: AsyncClient, user: LoggedIn) -> None:
    first = await begin(client, user.headers)
    second = await begin(client, user.headers)

    refused = await client.post(CONFIRM, json={"code": first.code()}, headers=user.headers)
    accepted = await client.post(CONFIRM, json={"code": second.code()}, headers=user.headers)

    assert (refused.status_code, accepted.status_code) == (403, 200)


async def test_an_account_has_one_app(client: AsyncClient, session: WriteSession, owner: Enrolled) -> None:
    before = await factor_of(session, owner.user_id)

    begun = await client.post(TOTP, headers=owner.pair.headers)
    confirmed = await client.post(CONFIRM, json={"code": owner.phone.code(steps=1)}, headers=owner.pair.headers)

    assert_problem(begun, 409, "totp_enabled")
    assert_problem(confirmed, 404, "totp_not_pending")
    assert await factor_of(session, owner.user_id) == before


async def test_the_secret_of_another_account_is_refused(
    client: AsyncClient, session: WriteSession, user: LoggedIn, admin: LoggedIn
) -> None:
    """Two sealed rows that were exchanged in the database do not open: the owner is part of the associated data."""
    phones = [await begin(client, one.headers) for one in (user, admin)]
    await session.execute(
        text("""
            UPDATE totp_secrets SET sealed = other.sealed FROM totp_secrets AS other
            WHERE totp_secrets.user_id <> other.user_id
        """)
    )
    await session.commit()

    for phone in phones:
        response = await client.post(CONFIRM, json={"code": phone.code()}, headers=user.headers)
        assert_problem(response, 500, "internal_error")

    assert (await factor_of(session, user.user_id)).confirmed_at is None


async def test_the_owner_gets_a_mail_about_a_new_factor(client: AsyncClient, user: LoggedIn, post: Post) -> None:
    await post.collect()
    owner = await enrol(client, user)

    (mail,) = await post.collect()

    assert mail.to == user.email
    assert "authenticator app" in mail.text
    assert not [secret for secret in (owner.phone.secret, *owner.recovery_codes) if secret in mail.text]


async def test_a_deleted_account_leaves_nothing(client: AsyncClient, session: WriteSession, owner: Enrolled) -> None:
    response = await client.delete("/api/v1/users/me", headers=owner.pair.headers)

    assert response.status_code == 204
    assert await factor_of(session, owner.user_id) is None
    assert await session.scalar(text("SELECT count(*) FROM recovery_codes")) == 0
