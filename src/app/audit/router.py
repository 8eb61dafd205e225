"""Endpoint `/audit-events`."""

from typing import Annotated, Any

from fastapi import Query, Security

from app.audit.listing import service
from app.audit.listing.schemas import AuditEventQuery
from app.audit.schemas import AuditEventRead
from app.auth.dependencies import Principal, access_token
from app.core.http import routing
from app.core.http.dependencies import ReadSessionDep
from app.core.http.pagination import Page, PagerDep

router = routing.router(prefix="/audit-events", tags=["audit"])
ROUTERS = (router,)

type AuditReader = Annotated[Principal, Security(access_token, scopes=["audit:read"])]


@router.get("", response_model=Page[AuditEventRead])
async def list_audit_events(
    _reader: AuditReader, session: ReadSessionDep, pager: PagerDep, query: Annotated[AuditEventQuery, Query()]
) -> dict[str, Any]:
    """List events of the audit log.

    The log contains successful and failed logins, and every change of an account, with the actor and the network. The newest
    event is first.
    """
    return await pager.list(query, service.ORDERS[query.sort], lambda page: service.list_page(session, query, page))
