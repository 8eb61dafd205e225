"""What a request left behind: answers checked for their form, and rows read through a session of the test's own."""

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
    """Check that a refusal is the problem document it should be, and names these places."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["code"] == code
    assert problem["status"] == status
    assert problem["instance"] == response.request.url.path
    assert problem["request_id"] == response.headers["x-request-id"]
    assert {error["pointer"] for error in problem.get("errors", [])} == set(pointers)


async def snapshot(session: ReadSession) -> dict[str, Rows]:
    """Read every row a refused request must leave as it was."""
    return {
        table: (await session.execute(text(f"SELECT * FROM {table} ORDER BY {key}"))).all()  # noqa: S608  # Our own names.
        for table, key in _TABLES.items()
    }


async def stored(session: ReadSession, user_id: str | UUID) -> Row[Any] | None:
    """Read an account's row as it is now, whatever the session holds of it."""
    statement = text("SELECT * FROM users WHERE id = :id")
    return (await session.execute(statement, {"id": UUID(str(user_id))})).one_or_none()


async def existing(session: ReadSession, user_id: str | UUID) -> Row[Any]:
    """Read the row of an account that must be there."""
    row = await stored(session, user_id)
    assert row is not None
    return row


async def events(session: ReadSession, name: str = "users.%") -> Rows:
    """Read the audit events of this name (`%` matches anything), oldest first."""
    statement = text("SELECT * FROM audit_events WHERE event LIKE :name ORDER BY occurred_at, id")
    return (await session.execute(statement, {"name": name})).all()


async def jobs(session: ReadSession) -> Rows:
    """Read the jobs that wait, oldest first."""
    return (await session.execute(text("SELECT task_name, args FROM procrastinate_jobs ORDER BY id"))).all()


async def add(session: WriteSession, *users: User) -> None:
    """Add accounts as they are, one statement for all."""
    session.add_all(users)
    await session.commit()


def stale(who: LoggedIn, *, age: int = 301) -> dict[str, str]:
    """Give the header of a login that is older than sensitive operations bear."""
    forge = Forge(who.headers["Authorization"].removeprefix("Bearer "), signing_jwk(KEY_SET))
    return {"Authorization": f"Bearer {forge.with_claims(auth_time=int(time.time()) - age)}"}
