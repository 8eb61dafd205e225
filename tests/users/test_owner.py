from typing import Any
from uuid import UUID

import pytest
from httpx2 import AsyncClient
from sqlalchemy import delete

from app.account.schemas import export_schema
from app.core.db.database import WriteSession
from app.users.models import User
from tests.aftermath import assert_problem, events, existing, snapshot, stale, stored
from tests.conftest import LoggedIn
from tests.factories import make_user

ME = "/api/v1/users/me"
REQUEST_ID = "test-request-0002"


# Update


async def test_owners_can_change_their_name(client: AsyncClient, session: WriteSession, user: LoggedIn) -> None:
    headers = user.headers | {"X-Request-ID": REQUEST_ID}

    response = await client.patch(ME, json={"full_name": "Ada Lovelace"}, headers=headers)

    shown = await client.get(ME, headers=user.headers)
    assert response.status_code == 200
    assert response.json() == shown.json()
    assert response.json()["full_name"] == "Ada Lovelace"
    assert response.headers["etag"] == shown.headers["etag"] == '"2"'
    row = await existing(session, user.user_id)
    assert (row.full_name, row.name_key, row.version, row.authz_version) == ("Ada Lovelace", "ada lovelace", 2, 1)
    (event,) = await events(session)
    assert (event.event, event.request_id, event.detail) == ("users.renamed", REQUEST_ID, {})
    assert event.actor_id == event.subject_id == UUID(user.user_id)


async def test_owners_can_remove_their_name(client: AsyncClient, session: WriteSession, user: LoggedIn) -> None:
    await client.patch(ME, json={"full_name": "Ada Lovelace"}, headers=user.headers)

    response = await client.patch(ME, json={"full_name": None}, headers=user.headers)

    assert response.json()["full_name"] is None
    assert (await existing(session, user.user_id)).name_key is None


@pytest.mark.parametrize("body", [{}, {"full_name": None}])
async def test_an_update_by_the_owner_without_a_change_writes_nothing(
    client: AsyncClient, session: WriteSession, user: LoggedIn, body: dict[str, Any]
) -> None:
    before = await snapshot(session)

    response = await client.patch(ME, json=body, headers=user.headers)

    assert response.status_code == 200
    assert response.headers["etag"] == '"1"'
    assert await snapshot(session) == before


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"full_name": ""}, "#/full_name"),
        ({"full_name": "\t"}, "#/full_name"),
        ({"full_name": "x" * 129}, "#/full_name"),
        ({"full_name": 1}, "#/full_name"),
        ({"full_name": True}, "#/full_name"),
        ({"full_name": []}, "#/full_name"),
        ({"full_name": {"first": "Ada"}}, "#/full_name"),
        ({"full_name": "Ada", "role": "admin"}, "#/role"),
        ({"is_active": True}, "#/is_active"),
        ({"email": "eve@example.com"}, "#/email"),
        ({"id": "0192f0c1-a2b3-7c4d-8e5f-60718293a4b5"}, "#/id"),
        ({"is_superuser": True}, "#/is_superuser"),
        ({"scope": "users:write"}, "#/scope"),
        ({"email_verified_at": "2026-01-01T00:00:00Z"}, "#/email_verified_at"),
        ({"authz_version": 1}, "#/authz_version"),
        ({"version": 1}, "#/version"),
        ({"created_at": "2026-01-01T00:00:00Z"}, "#/created_at"),
        ({"hashed_password": "x"}, "#/hashed_password"),
        ({"password": "correct horse battery staple"}, "#/password"),
    ],
    ids=lambda value: ascii(value)[:40],
)
async def test_owners_cannot_change_anything_else(
    client: AsyncClient, session: WriteSession, user: LoggedIn, body: dict[str, Any], pointer: str
) -> None:
    before = await snapshot(session)

    response = await client.patch(ME, json=body, headers=user.headers)

    assert_problem(response, 422, "validation_error", pointer)
    assert await snapshot(session) == before


@pytest.mark.parametrize(("condition", "status"), [('"1"', 200), ("*", 200), ('"2"', 412), ('W/"1"', 412), ("x", 412)])
async def test_a_change_by_the_owner_respects_if_match(
    client: AsyncClient, session: WriteSession, user: LoggedIn, condition: str, status: int
) -> None:
    headers = user.headers | {"If-Match": condition}

    response = await client.patch(ME, json={"full_name": "Ada"}, headers=headers)

    assert response.status_code == status
    assert (await existing(session, user.user_id)).full_name == ("Ada" if status == 200 else None)
    assert len(await events(session)) == (1 if status == 200 else 0)


# Delete


async def test_owners_can_delete_their_account_and_its_audit_log_stays(
    client: AsyncClient, session: WriteSession, user: LoggedIn
) -> None:
    await client.patch(ME, json={"full_name": "Ada"}, headers=user.headers)

    response = await client.delete(ME, headers=user.headers | {"X-Request-ID": REQUEST_ID})

    assert response.status_code == 204
    assert await stored(session, user.user_id) is None
    assert_problem(await client.get(ME, headers=user.headers), 401, "invalid_token")
    renamed, deleted = await events(session)
    assert (renamed.event, deleted.event) == ("users.renamed", "users.deleted")
    assert deleted.actor_id == deleted.subject_id == UUID(user.user_id)
    assert deleted.request_id == REQUEST_ID


async def test_deletion_by_the_owner_requires_a_recent_login(
    client: AsyncClient, session: WriteSession, user: LoggedIn
) -> None:
    before = await snapshot(session)

    response = await client.delete(ME, headers=stale(user))

    assert_problem(response, 401, "insufficient_user_authentication")
    challenge = response.headers["www-authenticate"]
    assert 'error="insufficient_user_authentication"' in challenge
    assert challenge.endswith(", max_age=300")
    assert await snapshot(session) == before


async def test_a_login_of_less_than_five_minutes_ago_is_recent(
    client: AsyncClient, session: WriteSession, user: LoggedIn
) -> None:
    response = await client.delete(ME, headers=stale(user, age=290))

    assert response.status_code == 204
    assert await stored(session, user.user_id) is None


async def test_the_last_administrator_cannot_delete_their_own_account(
    client: AsyncClient, session: WriteSession, admin: LoggedIn
) -> None:
    before = await snapshot(session)

    response = await client.delete(ME, headers=admin.headers)

    assert_problem(response, 409, "last_admin")
    assert await snapshot(session) == before


async def test_an_administrator_can_delete_their_own_account_if_another_can_log_in(
    client: AsyncClient, session: WriteSession, admin: LoggedIn
) -> None:
    await make_user(session, role="admin", hashed_password="set")
    await session.commit()

    response = await client.delete(ME, headers=admin.headers)

    assert response.status_code == 204
    assert await stored(session, admin.user_id) is None


# Export


async def test_the_export_contains_the_account_and_its_events(
    client: AsyncClient, session: WriteSession, user: LoggedIn, admin: LoggedIn
) -> None:
    await client.patch(ME, json={"full_name": "Ada"}, headers=user.headers)
    await client.patch(f"/api/v1/users/{user.user_id}", json={"full_name": "Ada L."}, headers=admin.headers)
    await client.patch(ME, json={"full_name": "Root"}, headers=admin.headers)

    response = await client.get(f"{ME}/export", headers=user.headers)

    body = response.json()
    shown = (await client.get(ME, headers=user.headers)).json()
    assert response.status_code == 200
    assert body["user"] == shown
    assert body.keys() == export_schema().model_fields.keys()
    assert body["is_complete"] is True
    about = [event for event in body["audit_events"] if event["event"].startswith("users.")]
    assert [(event["actor_id"], event["subject_id"]) for event in about] == [
        (None, user.user_id),
        (user.user_id, user.user_id),
    ]
    assert len(await events(session)) == 3


async def test_the_export_contains_no_secret(client: AsyncClient, session: WriteSession, user: LoggedIn) -> None:
    stored_hash = (await existing(session, user.user_id)).hashed_password

    response = await client.get(f"{ME}/export", headers=user.headers)

    assert stored_hash not in response.text
    assert "hash" not in response.text
    assert "password" not in response.text.replace("auth.password", "")


@pytest.mark.parametrize("query", ["limit=1", "user_id=0192f0c1-a2b3-7c4d-8e5f-60718293a4b5", "x"])
async def test_the_export_takes_no_parameters(client: AsyncClient, user: LoggedIn, query: str) -> None:
    response = await client.get(f"{ME}/export?{query}", headers=user.headers)

    assert_problem(response, 422, "validation_error", f"#/query/{query.partition('=')[0]}")


@pytest.mark.parametrize(("method", "path"), [("PATCH", ME), ("DELETE", ME), ("GET", f"{ME}/export")])
async def test_a_token_of_a_deleted_account_is_rejected(
    client: AsyncClient, session: WriteSession, user: LoggedIn, method: str, path: str
) -> None:
    await session.execute(delete(User).where(User.id == UUID(user.user_id)))
    await session.commit()
    body = {"full_name": "Ada"} if method == "PATCH" else None

    response = await client.request(method, path, json=body, headers=user.headers)

    assert_problem(response, 401, "invalid_token")
    assert await events(session) == []
