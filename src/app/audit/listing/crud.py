"""The statement of the list. Private to its service."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, select

from app.audit.models import AuditEvent
from app.core.db import crud
from app.core.db.database import ReadSession
from app.core.db.keyset import PageRequest, PageRows

_LIST = select(AuditEvent.__table__)


async def page(session: ReadSession, conditions: Sequence[ColumnElement[bool]], request: PageRequest) -> PageRows:
    return await crud.page(session, _LIST.where(*conditions), request)
