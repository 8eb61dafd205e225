"""One function per statement. Private to the services of `audit`."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import CTE, Row, func, insert, select, union
from uuid_utils.compat import uuid7

from app.audit.models import AuditEvent
from app.core.db.database import ReadSession, WriteSession

_LIST = select(AuditEvent.__table__)
_NEWEST = (AuditEvent.occurred_at.desc(), AuditEvent.id.desc())


async def create(session: WriteSession, values: Mapping[str, Any]) -> None:
    await session.execute(insert(AuditEvent).values(**values))


def create_cte(values: Mapping[str, Any]) -> CTE:
    # SQLAlchemy does not apply the Python default of `id` to an insert in a CTE.
    return insert(AuditEvent).values(id=uuid7(), **values).cte("recorded")


async def list_about(session: ReadSession, user_id: UUID, *, limit: int) -> Sequence[Row[Any]]:
    """Read the newest events in which an account is the actor or the subject, newest first."""
    # Each half uses one index and stops at the limit. With OR, PostgreSQL would read and sort all of these events.
    halves = [
        select(_LIST.where(column == user_id).order_by(*_NEWEST).limit(limit).subquery())
        for column in (AuditEvent.actor_id, AuditEvent.subject_id)
    ]
    both = union(*halves).subquery()
    statement = select(both).order_by(both.c.occurred_at.desc(), both.c.id.desc()).limit(limit)
    return (await session.execute(statement)).all()


async def purge(session: WriteSession, _after: bool | None, *, age: timedelta, batch: int) -> bool | None:
    """Delete the oldest `batch` events that are older than `age`. Returns True if there may be more, and None at the end.

    The trigger on the table rejects every other way to delete an event.
    """
    purged: int = await session.scalar(select(func.purge_audit_events(age, batch))) or 0
    return True if purged == batch else None
