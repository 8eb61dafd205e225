"""Enqueueing in the caller's transaction."""

from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import structlog
from pydantic import ValidationError
from sqlalchemy import text

from app.core.db.database import Database, WriteSession
from app.core.errors import PermanentError, TemporaryError
from app.jobs.queue import Policy, Work, enqueue, from_json, name_of, parameters, policy, policy_of

ID = UUID("0198c0de-0000-7000-8000-000000000001")
NOON = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)


async def plain(work: Work, user_id: UUID, at: datetime, note: str | None = None, *, times: int = 1) -> None:
    """A job of every kind of parameter."""


@policy(Policy(max_attempts=2, priority=7, lock="one at a time"))
async def urgent(work: Work) -> None:
    """A job with a policy."""


async def stored(session: WriteSession) -> Any:
    return (await session.execute(text("SELECT * FROM procrastinate_jobs"))).mappings().one_or_none()


async def test_a_job_enqueued_in_a_rolled_back_transaction_does_not_exist(
    database: Database, session: WriteSession
) -> None:
    async with database.sessions() as writing:
        await enqueue(writing, plain, ID, NOON)
        await writing.rollback()

    assert await stored(session) is None


async def test_a_job_enqueued_in_a_committed_transaction_exists_exactly_once(
    database: Database, session: WriteSession
) -> None:
    async with database.begin() as writing:
        await enqueue(writing, plain, ID, NOON)

    row = await stored(session)
    assert row["status"] == "todo"
    assert row["task_name"] == "tests.jobs.test_queue:plain"


async def test_a_job_is_not_visible_before_the_commit(clone: Database) -> None:
    async with clone.begin() as writing:
        await enqueue(writing, plain, ID, NOON)

        async with clone.sessions() as other:
            assert await stored(other) is None


async def test_arguments_are_stored_as_json_by_name(session: WriteSession) -> None:
    await enqueue(session, plain, ID, NOON, times=3)

    assert (await stored(session))["args"]["arguments"] == {
        "user_id": str(ID),
        "at": "2026-11-23T12:00:00.123456Z",
        "times": 3,
    }


async def test_arguments_come_back_with_the_types_of_the_function(session: WriteSession) -> None:
    await enqueue(session, plain, ID, at=NOON, note=None, times=3)

    arguments = from_json(plain, (await stored(session))["args"]["arguments"])

    assert arguments == {"user_id": ID, "at": NOON, "note": None, "times": 3}
    assert isinstance(arguments["user_id"], UUID)


async def test_enqueueing_an_argument_of_the_wrong_type_is_refused(session: WriteSession) -> None:
    with pytest.raises(ValidationError):
        await enqueue(session, plain, str(ID), NOON)  # type: ignore[arg-type]

    assert await stored(session) is None


async def test_enqueueing_without_a_required_argument_is_refused(session: WriteSession) -> None:
    with pytest.raises(TypeError, match="at"):
        await enqueue(session, plain, ID)  # type: ignore[call-arg]


async def test_the_request_id_is_stored_with_the_job(session: WriteSession) -> None:
    with structlog.contextvars.bound_contextvars(request_id="r-12345678"):
        await enqueue(session, urgent)

    assert (await stored(session))["args"]["request_id"] == "r-12345678"


async def test_each_job_has_its_own_key(session: WriteSession) -> None:
    await enqueue(session, urgent)
    await enqueue(session, urgent)

    keys = await session.scalars(text("SELECT args->>'key' FROM procrastinate_jobs"))
    assert len(set(keys)) == 2


async def test_a_policy_sets_priority_and_lock(session: WriteSession) -> None:
    await enqueue(session, urgent)

    row = await stored(session)
    assert (row["priority"], row["lock"], row["queue_name"]) == (7, "one at a time", "default")


def test_a_job_without_a_policy_has_the_default() -> None:
    assert policy_of(plain) == Policy()


def test_the_name_of_a_job_does_not_include_the_package() -> None:
    async def job(work: Work) -> None: ...

    job.__module__, job.__qualname__ = "app.users.jobs", "mail_link"

    assert name_of(job) == "users.jobs:mail_link"


def test_a_name_that_is_too_long_for_the_queue_is_refused() -> None:
    async def job(work: Work) -> None: ...

    job.__qualname__ = "a" * 129

    with pytest.raises(ValueError, match="128 characters"):
        name_of(job)


def test_a_function_with_arbitrary_keyword_arguments_cannot_be_a_job() -> None:
    async def job(work: Work, **anything: int) -> None: ...

    with pytest.raises(TypeError, match="give each of its parameters a name"):
        parameters(job)


def test_a_stored_argument_that_the_function_no_longer_has_is_named_in_the_error() -> None:
    with pytest.raises(PermanentError, match="no parameter colour any more"):
        from_json(urgent, {"colour": "red"})


def test_a_stored_argument_of_the_wrong_type_is_not_quoted_in_the_error() -> None:
    with pytest.raises(PermanentError, match="argument of the wrong type") as caught:
        from_json(plain, {"user_id": "hunter2"})

    assert "hunter2" not in str(caught.value)


def test_the_default_policy_retries_for_more_than_eight_hours() -> None:
    error = TemporaryError()

    waits = [Policy().delay(attempts, error) for attempts in range(1, 21)]

    assert waits[-1] is None
    assert sum((wait for wait in waits if wait), timedelta()) > timedelta(hours=8)
    assert max(wait for wait in waits if wait) <= timedelta(hours=1.2)


@pytest.mark.parametrize(("attempts", "least", "most"), [(1, 4, 6), (2, 8, 12), (3, 16, 24), (1000, 2880, 4320)])
def test_the_delay_doubles_up_to_its_maximum(attempts: int, least: float, most: float) -> None:
    wait = Policy(max_attempts=10_000).delay(attempts, TemporaryError())

    assert wait is not None
    assert least <= wait.total_seconds() <= most


def test_a_permanent_error_is_not_retried() -> None:
    assert Policy().delay(1, PermanentError()) is None


async def test_arguments_may_have_any_type_that_json_can_represent(session: WriteSession) -> None:
    async def job(work: Work, day: date, ids: list[UUID], flag: bool) -> None: ...

    await enqueue(session, job, date(2026, 11, 23), [ID], flag=True)

    arguments = from_json(job, (await stored(session))["args"]["arguments"])
    assert arguments == {"day": date(2026, 11, 23), "ids": [ID], "flag": True}
