from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from httpx2 import AsyncClient
from sqlalchemy import delete, text

from app.audit.models import AuditEvent
from app.core.db.database import WriteSession
from tests.aftermath import assert_problem, snapshot
from tests.conftest import LoggedIn

EVENTS = "/api/v1/audit-events"
ADA = UUID("0192f0c1-a2b3-7c4d-8e5f-000000000001")
EVE = UUID("0192f0c1-a2b3-7c4d-8e5f-000000000002")
FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)
MOST_PAGES = 50


@pytest.fixture
async def log(session: WriteSession, admin: LoggedIn) -> None:
    """Five events, a day apart, with these actors and subjects: Ada and Eve, Eve and Ada, Ada and none, none and Ada, none and none."""
    del admin
    actors_and_subjects = [
        ("a.one", ADA, EVE),
        ("a.two", EVE, ADA),
        ("a.one", ADA, None),
        ("a.two", None, ADA),
        ("a.three", None, None),
    ]
    for day, (name, actor_id, subject_id) in enumerate(actors_and_subjects):
        session.add(
            AuditEvent(
                event=name,
                actor_id=actor_id,
                subject_id=subject_id,
                occurred_at=FIRST_DAY + day * timedelta(days=1),
                detail={"day": day},
            )
        )
    await session.commit()


async def days(client: AsyncClient, admin: LoggedIn, **query: Any) -> list[int]:
    """Return the days of the events on all pages."""
    found: list[int] = []
    cursor: dict[str, str] = {}
    for _ in range(MOST_PAGES):
        response = await client.get(
            EVENTS, params={"before": "2026-02-01T00:00:00Z"} | query | cursor, headers=admin.headers
        )
        assert response.status_code == 200, response.text
        found += [item["detail"]["day"] for item in response.json()["items"]]
        if response.json()["next_cursor"] is None:
            return found
        cursor = {"cursor": response.json()["next_cursor"]}
    raise AssertionError("the log has too many pages")


async def test_an_event_contains_actor_subject_network_request_and_detail(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, user: LoggedIn
) -> None:
    headers = admin.headers | {"X-Request-ID": "test-request-0003"}
    await client.patch(f"/api/v1/users/{user.user_id}", json={"role": "admin"}, headers=headers)

    response = await client.get(EVENTS, params={"event": "users.role_changed"}, headers=admin.headers)

    (event,) = response.json()["items"]
    (row,) = (await session.execute(text("SELECT * FROM audit_events WHERE event = 'users.role_changed'"))).all()
    assert response.headers["cache-control"] == "no-store"
    assert event == {
        "id": str(row.id),
        "event": "users.role_changed",
        "occurred_at": row.occurred_at.isoformat().replace("+00:00", "Z"),
        "actor_id": admin.user_id,
        "subject_id": user.user_id,
        "session_id": str(row.session_id),
        "ip_prefix": "127.0.0.0/24",
        "request_id": "test-request-0003",
        "detail": {"old": "user", "new": "admin"},
    }


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, [4, 3, 2, 1, 0]),
        ({"sort": "occurred_at"}, [0, 1, 2, 3, 4]),
        ({"sort": "-occurred_at"}, [4, 3, 2, 1, 0]),
        ({"actor_id": str(ADA)}, [2, 0]),
        ({"subject_id": str(ADA)}, [3, 1]),
        ({"actor_id": str(ADA), "subject_id": str(EVE)}, [0]),
        ({"actor_id": "0192f0c1-a2b3-7c4d-8e5f-000000000003"}, []),
        ({"event": "a.two"}, [3, 1]),
        ({"event": "a.two", "actor_id": str(EVE)}, [1]),
        ({"event": "a.four"}, []),
        ({"after": "2026-01-02T00:00:00Z"}, [4, 3, 2]),
        ({"before": "2026-01-02T00:00:00Z"}, [0]),
        ({"after": "2026-01-01T00:00:00Z", "before": "2026-01-03T01:00:00+01:00"}, [1]),
        ({"after": "2026-01-02T00:00:00Z", "event": "a.one", "sort": "occurred_at"}, [2]),
    ],
)
@pytest.mark.parametrize("limit", [1, 100])
@pytest.mark.usefixtures("log")
async def test_the_log_is_filtered_and_sorted(
    client: AsyncClient, admin: LoggedIn, query: dict[str, str], expected: list[int], limit: int
) -> None:
    assert await days(client, admin, limit=limit, **query) == expected


@pytest.mark.usefixtures("log")
async def test_the_link_header_leads_to_the_next_page_of_the_log(client: AsyncClient, admin: LoggedIn) -> None:
    query = {"limit": "2", "before": "2026-01-05T12:00:00+00:00", "sort": "occurred_at"}
    response = await client.get(EVENTS, params=query, headers=admin.headers)
    target, _, relation = response.headers["link"].partition(">; ")

    following = await client.get(target.removeprefix("<"), headers=admin.headers)

    assert relation == 'rel="next"'
    assert [item["detail"]["day"] for item in following.json()["items"]] == [2, 3]


@pytest.mark.usefixtures("log")
async def test_the_next_page_is_correct_after_a_purge_between_two_requests(
    client: AsyncClient, session: WriteSession, admin: LoggedIn
) -> None:
    query: dict[str, Any] = {"limit": 2, "before": "2026-02-01T00:00:00Z"}
    first = await client.get(EVENTS, params=query, headers=admin.headers)
    await session.execute(text("SELECT set_config('bedplate.purging_audit_events', 'on', true)"))
    await session.execute(delete(AuditEvent).where(AuditEvent.occurred_at == FIRST_DAY + timedelta(days=3)))
    await session.commit()

    rest = await client.get(EVENTS, params=query | {"cursor": first.json()["next_cursor"]}, headers=admin.headers)

    assert [item["detail"]["day"] for item in first.json()["items"]] == [4, 3]
    assert [item["detail"]["day"] for item in rest.json()["items"]] == [2, 1]


REFUSED: list[tuple[str, str]] = [
    *((f"{name}={value}", name) for name in ("actor_id", "subject_id") for value in ("", "abc", "1", "null", "%00")),
    ("actor_id=0192F0C1-A2B3-7C4D-8E5F-000000000001", "actor_id"),
    ("actor_id=%7B0192f0c1-a2b3-7c4d-8e5f-000000000001%7D", "actor_id"),
    *(
        (f"event={value}", "event")
        for value in ("", "a", "a.b.c", "A.B", "a.b%0A", "a.%25", "a." + "b" * 70, "%C3%A9.a")
    ),
    *(
        (f"{name}={value}", name)
        for name in ("after", "before")
        for value in ("", "2026-01-01", "1", "0001-01-01T00:00:00%2B01:00")
    ),
    *((f"sort={value}", "sort") for value in ("", "event", "--occurred_at", "id", "occurred_at,id")),
    *((f"limit={value}", "limit") for value in ("0", "101", "-1", "1.5", "")),
    *((f"{name}=1", name) for name in ("offset", "q", "session_id", "request_id", "ip_prefix", "detail")),
    ("event=a.b&event=a.b", "event"),
    ("actor_id=0192f0c1-a2b3-7c4d-8e5f-000000000001&actor_id=0192f0c1-a2b3-7c4d-8e5f-000000000002", "actor_id"),
]


@pytest.mark.parametrize("name", sorted({name for _, name in REFUSED}))
async def test_an_invalid_parameter_of_the_log_is_rejected(client: AsyncClient, admin: LoggedIn, name: str) -> None:
    for query in [query for query, refused in REFUSED if refused == name]:
        response = await client.get(f"{EVENTS}?{query}", headers=admin.headers)

        assert_problem(response, 422, "validation_error", f"#/query/{name}")


@pytest.mark.usefixtures("log")
async def test_a_cursor_of_the_log_is_rejected_by_any_other_list(client: AsyncClient, admin: LoggedIn) -> None:
    response = await client.get(EVENTS, params={"limit": 1}, headers=admin.headers)
    cursor = response.json()["next_cursor"]
    others = [
        (EVENTS, {"sort": "occurred_at"}),
        (EVENTS, {"event": "a.one"}),
        (EVENTS, {"actor_id": str(ADA)}),
        (EVENTS, {"subject_id": str(ADA)}),
        (EVENTS, {"after": "2026-01-01T00:00:00Z"}),
        (EVENTS, {"before": "2027-01-01T00:00:00Z"}),
        ("/api/v1/users", {"sort": "-created_at"}),
        ("/api/v1/users", {}),
    ]

    for path, query in others:
        response = await client.get(path, params=query | {"cursor": cursor}, headers=admin.headers)
        assert_problem(response, 400, "invalid_cursor")


async def test_a_cursor_of_the_users_is_rejected_by_the_log(
    client: AsyncClient, admin: LoggedIn, user: LoggedIn
) -> None:
    del user
    users = await client.get("/api/v1/users", params={"limit": 1, "sort": "-created_at"}, headers=admin.headers)

    response = await client.get(EVENTS, params={"cursor": users.json()["next_cursor"]}, headers=admin.headers)

    assert_problem(response, 400, "invalid_cursor")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_the_log_cannot_be_changed_over_http(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, method: str
) -> None:
    before = await snapshot(session)

    response = await client.request(method, EVENTS, headers=admin.headers)

    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "GET, HEAD"
    assert await snapshot(session) == before
