"""The export of an account: it has the owner's data, and no data of others."""

import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from httpx2 import AsyncClient
from sqlalchemy import text

from app.account import service
from app.account.schemas import MAX_EXPORTED, export_schema
from app.audit import service as audit
from app.audit.service import Actor
from app.core.db.database import WriteSession
from app.core.security.hashing import PasswordHasher
from tests.aftermath import assert_problem
from tests.auth.post import AUTH, ME, Post, bearer, pair_of
from tests.auth.post import log_in as log_in_with
from tests.conftest import LoggedIn, log_in
from tests.factories import PASSWORD, make_user

USERS = "/api/v1/users"
SAFARI = "Mozilla/5.0 (iPhone; CPU iPhone OS 19_1 like Mac OS X) AppleWebKit/605.1.15 Version/19.1 Mobile Safari/604.1"
# Of the requests of others.
FOREIGN = "a-request-of-somebody-else"


async def export(client: AsyncClient, headers: dict[str, str]) -> Any:
    response = await client.get(f"{ME}/export", headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


async def test_the_export_does_not_name_the_administrator_who_changed_the_account(
    client: AsyncClient, session: WriteSession, hasher: PasswordHasher, admin: LoggedIn
) -> None:
    ada = await make_user(session, hasher, email="ada@example.com")
    await session.commit()
    by_admin = {**admin.headers, "X-Request-ID": FOREIGN}
    await log_in(client, ada.email)
    for change in (
        {"full_name": "Ada"},
        {"role": "admin"},
        {"is_active": False},
        {"is_active": True},
        {"role": "user"},
    ):
        response = await client.patch(f"{USERS}/{ada.id}", json=change, headers=by_admin)
        assert response.status_code == 200, response.text
    assert (await client.post(f"{USERS}/{ada.id}/password-reset", headers=by_admin)).status_code == 202
    assert (await client.delete(f"{USERS}/{ada.id}/sessions", headers=by_admin)).status_code == 204
    await client.post("/api/v1/auth/token", headers={"X-Request-ID": FOREIGN}, data={
        "grant_type": "password", "username": ada.email, "password": "not the password at all",
    })  # fmt: skip

    document = await export(client, await log_in(client, ada.email))

    stored = (await session.execute(text("SELECT * FROM audit_events WHERE subject_id = :id"), {"id": ada.id})).all()
    shown = document["audit_events"]
    assert {one["event"] for one in shown} == {row.event for row in stored} == {
        "auth.login_succeeded", "auth.login_failed", "users.renamed", "users.role_changed", "users.disabled", "users.enabled",
        "auth.password_reset_requested", "auth.all_sessions_ended",
    }  # fmt: skip
    by_owner = [one for one in shown if one["actor_id"] == str(ada.id)]
    assert {one["event"] for one in by_owner} == {"auth.login_succeeded"}
    assert all(one["session_id"] and one["ip_prefix"] and one["request_id"] for one in by_owner)
    theirs = {"actor_id": None, "session_id": None, "ip_prefix": None, "request_id": None}
    assert all(one | theirs == one for one in shown if one not in by_owner)
    # What happened to the account is the owner's.
    assert {"old": "user", "new": "admin"} in [one["detail"] for one in shown]
    of_admin = {str(row.session_id) for row in stored if row.actor_id == UUID(admin.user_id)}
    assert of_admin
    for foreign in (admin.user_id, admin.email, FOREIGN, *of_admin):
        assert foreign not in str(document)


async def test_the_export_of_an_administrator_does_not_name_other_accounts(
    client: AsyncClient, user: LoggedIn, admin: LoggedIn
) -> None:
    await client.patch(f"{USERS}/{user.user_id}", json={"role": "admin"}, headers=admin.headers)
    made = await client.post(USERS, json={"email": "made@example.com"}, headers=admin.headers)

    document = await export(client, admin.headers)

    (changed,) = [one for one in document["audit_events"] if one["event"] == "users.role_changed"]
    assert (changed["actor_id"], changed["subject_id"], changed["detail"]) == (admin.user_id, None, {})
    assert changed["session_id"]
    for foreign in (user.user_id, user.email, made.json()["id"], "made@example.com"):
        assert foreign not in str(document)


async def test_the_export_has_the_stolen_session_but_not_the_network_of_the_thief(
    client: AsyncClient, session: WriteSession, user: LoggedIn
) -> None:
    stolen = uuid4()
    thief = Actor(session_id=stolen, ip_prefix=None, request_id=FOREIGN)
    await audit.record(session, thief, "auth.refresh_reuse_detected", subject_id=UUID(user.user_id))
    await session.commit()

    document = await export(client, user.headers)

    (event,) = [one for one in document["audit_events"] if one["event"] == "auth.refresh_reuse_detected"]
    assert (event["session_id"], event["request_id"]) == (str(stolen), None)


@pytest.mark.parametrize("kind", ["audit_events", "sessions"])
async def test_a_truncated_export_has_the_newest_rows_and_says_so(
    client: AsyncClient, session: WriteSession, user: LoggedIn, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(service, "MAX_EXPORTED", 3)
    if kind == "sessions":
        add = text("""
            INSERT INTO sessions (id, user_id, nonce, pepper_id, scope, device_family, idle_expires_at, absolute_expires_at,
                                  last_seen_at, user_agent)
            SELECT gen_random_uuid(), :id, '', 1, '', '', now(), now(), now() - n * interval '1 h', n::text
            FROM generate_series(1, 5) AS n
        """)
    else:
        add = text("""
            INSERT INTO audit_events (id, event, occurred_at, actor_id, subject_id, detail)
            SELECT gen_random_uuid(), 'n.' || n, now() - n * interval '1 h', :id, :id, '{}' FROM generate_series(1, 5) AS n
        """)
    complete = await export(client, user.headers)
    await session.execute(add, {"id": user.user_id})
    await session.commit()

    document = await export(client, user.headers)

    assert (complete["is_complete"], document["is_complete"]) == (True, False)
    told = [one.get("user_agent") or one.get("event") for one in document[kind]]
    assert told[1:] == (["1", "2"] if kind == "sessions" else ["n.1", "n.2"])
    assert MAX_EXPORTED >= 1000


async def test_the_export_has_account_sessions_and_events_but_no_secret(
    client: AsyncClient, session: WriteSession, hasher: PasswordHasher, post: Post, user: LoggedIn
) -> None:
    ada = await make_user(session, hasher, email="ada@example.com", full_name="Ada Lovelace")
    await session.commit()
    await log_in_with(client, ada.email, **{"User-Agent": SAFARI})
    pair = await pair_of(client, ada.email)
    await client.post(f"{AUTH}/password/forgot", json={"email": ada.email})
    link = await post.link()
    await client.delete(f"{ME}/sessions", headers=bearer(pair))

    response = await client.get(f"{ME}/export", headers=bearer(pair))

    document: dict[str, Any] = response.json()
    assert response.status_code == 200
    assert document.keys() == export_schema().model_fields.keys()
    assert document["user"]["email"] == "ada@example.com"
    sessions = {one["user_agent"]: (one["revoke_reason"], one["ip_prefix"]) for one in document["sessions"]}
    assert len(sessions) == len(document["sessions"]) == 2
    assert sessions.pop(SAFARI) == ("user", "127.0.0.0/24")
    assert list(sessions.values()) == [(None, "127.0.0.0/24")]
    assert {event["event"] for event in document["audit_events"]} == {
        "auth.login_succeeded",
        "auth.password_reset_requested",
        "auth.other_sessions_ended",
    }
    row = (await session.execute(text("SELECT * FROM users WHERE id = :id"), {"id": ada.id})).one()
    nonces = (await session.scalars(text("SELECT nonce FROM sessions UNION SELECT nonce FROM account_links"))).all()
    exported = response.text
    for secret in (row.hashed_password, PASSWORD, link, pair["refresh_token"], pair["access_token"], "nonce", "hashed"):
        assert secret not in exported
    assert not any(nonce.hex() in exported for nonce in nonces)
    assert user.user_id not in exported
    assert json.dumps(document).count("127.0.0.1") == 0


async def test_an_export_needs_a_token(client: AsyncClient) -> None:
    assert_problem(await client.get(f"{ME}/export"), 401, "unauthorized")
