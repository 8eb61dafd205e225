"""Lists the events of the audit log."""

from collections.abc import Callable, Mapping
from functools import partial
from operator import eq, gt, lt
from typing import Any

from sqlalchemy import ColumnElement

from app.audit.listing import crud
from app.audit.listing.schemas import AuditEventQuery
from app.audit.models import AuditEvent
from app.core.db.database import ReadSession
from app.core.db.keyset import Order, PageRequest, PageRows

ORDERS = {
    "occurred_at": Order((AuditEvent.occurred_at, AuditEvent.id)),
    "-occurred_at": Order((AuditEvent.occurred_at, AuditEvent.id), descending=True),
}
# Each makes the condition of a filter from its value.
_FILTERS: Mapping[str, Callable[[Any], ColumnElement[bool]]] = {
    "actor_id": partial(eq, AuditEvent.actor_id),
    "subject_id": partial(eq, AuditEvent.subject_id),
    "event": partial(eq, AuditEvent.event),
    "after": partial(gt, AuditEvent.occurred_at),
    "before": partial(lt, AuditEvent.occurred_at),
}


async def list_page(session: ReadSession, query: AuditEventQuery, page: PageRequest) -> PageRows:
    given = query.model_dump(exclude_none=True, include=set(_FILTERS))
    return await crud.page(session, [_FILTERS[name](value) for name, value in given.items()], page)
