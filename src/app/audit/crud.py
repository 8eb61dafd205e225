"""One function per statement; private to `audit.service`."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import CTE, ColumnElement, Row, func, insert, select
from uuid_utils.compat import uuid7

from app.audit.models import AuditEvent
from app.core import crud
from app.core.database import ReadSession, WriteSession
from app.core.keyset import Order, Position

_COLUMNS = (
    AuditEvent.id,
    AuditEvent.event,
    AuditEvent.occurred_at,
    AuditEvent.actor_id,
    AuditEvent.subject_id,
    AuditEvent.session_id,
    AuditEvent.ip_prefix,
    AuditEvent.request_id,
    AuditEvent.detail,
)
_LIST = select(*_COLUMNS)


async def create(session: WriteSession, values: Mapping[str, Any]) -> None:
    """Add an event."""
    await session.execute(insert(AuditEvent).values(**values))


def entry(values: Mapping[str, Any]) -> CTE:
    """Make the addition of an event that goes along with another statement."""
    # Defaults of Python's are made for the statement that is executed, not for one that goes along.
    return insert(AuditEvent).values(id=uuid7(), **values).cte("recorded")


async def page(
    session: ReadSession, conditions: Sequence[ColumnElement[bool]], order: Order, position: Position | None, limit: int
) -> tuple[Sequence[Row[Any]], Position | None]:
    """Read one page of events."""
    return await crud.page(session, _LIST.where(*conditions), order, position, limit=limit)


async def list_about(session: ReadSession, user_id: UUID) -> Sequence[Row[Any]]:
    """Read every event that an account did or that was done to it, oldest first."""
    about = (AuditEvent.actor_id == user_id) | (AuditEvent.subject_id == user_id)
    return (await session.execute(_LIST.where(about).order_by(AuditEvent.occurred_at, AuditEvent.id))).all()


async def purge(session: WriteSession, _after: bool | None, *, age: timedelta, batch: int) -> bool | None:
    """Delete the oldest `batch` events above an age through the one door the trigger leaves open; None at the end."""
    purged: int = await session.scalar(select(func.purge_audit_events(age, batch))) or 0
    return True if purged == batch else None
