"""Checks after a request: problem responses, and rows in the database."""

import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from httpx2 import Response
from sqlalchemy import Row, text

from app.core.db.database import ReadSession, WriteSession
from app.users.models import User
from tests.auth.forge import Forge, signing_jwk
from tests.conftest import KEY_SET, LoggedIn

_TABLES = {"users": "id", "account_links": "id", "audit_events": "id", "procrastinate_jobs": "id"}

type Rows = Sequence[Row[Any]]


def assert_problem(response: Response, status: int, code: str, *pointers: str) -> None:
    """Check that a response is a problem document with this code, and that its errors have these pointers."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["code"] == code
    assert problem["status"] == status
    assert problem["instance"] == response.request.url.path
    assert problem["request_id"] == response.headers["x-request-id"]
    assert {error["pointer"] for error in problem.get("errors", [])} == set(pointers)


async def snapshot(session: ReadSession) -> dict[str, Rows]:
    """Return all rows that a refused request must not change."""
    return {
        table: (await session.execute(text(f"SELECT * FROM {table} ORDER BY {key}"))).all()  # noqa: S608  # Our own names.
        for table, key in _TABLES.items()
    }


async def stored(session: ReadSession, user_id: str | UUID) -> Row[Any] | None:
    """Return the row of an account from the database, bypassing the objects that the session has cached."""
    statement = text("SELECT * FROM users WHERE id = :id")
    return (await session.execute(statement, {"id": UUID(str(user_id))})).one_or_none()


async def existing(session: ReadSession, user_id: str | UUID) -> Row[Any]:
    """Return the row of an account that must exist."""
    row = await stored(session, user_id)
    assert row is not None
    return row


async def events(session: ReadSession, name: str = "users.%") -> Rows:
    """Return the audit events with this name, oldest first. `%` matches any text."""
    statement = text("SELECT * FROM audit_events WHERE event LIKE :name ORDER BY occurred_at, id")
    return (await session.execute(statement, {"name": name})).all()


async def jobs(session: ReadSession) -> Rows:
    """Return all jobs, oldest first."""
    return (await session.execute(text("SELECT task_name, args FROM procrastinate_jobs ORDER BY id"))).all()


async def add(session: WriteSession, *users: User) -> None:
    """Insert and commit accounts."""
    session.add_all(users)
    await session.commit()


def stale(who: LoggedIn, *, age: int = 301) -> dict[str, str]:
    """Return the header of a login that is too old for sensitive operations."""
    forge = Forge(who.headers["Authorization"].removeprefix("Bearer "), signing_jwk(KEY_SET))
    return {"Authorization": f"Bearer {forge.with_claims(auth_time=int(time.time()) - age)}"}
