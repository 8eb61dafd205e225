"""Audit events as clients see them."""

from datetime import datetime
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field, StringConstraints

from app.core.http.pages import PageQuery
from app.core.schemas.fields import Answer, QueryIdentifier, QueryInstant

EventName = Annotated[str, StringConstraints(max_length=64, pattern=r"^[a-z_]+\.[a-z_]+$")]


class AuditEventRead(Answer):
    """One entry of the audit log."""

    id: UUID
    event: str = Field(description="What happened, such as `users.role_changed`.")
    occurred_at: datetime
    actor_id: UUID | None = Field(description="Who did it; null when the system did.")
    subject_id: UUID | None = Field(description="The account it was done to.")
    session_id: UUID | None = Field(description="The login session it was done in.")
    ip_prefix: IPv4Network | IPv6Network | None = Field(description="The network it was done from.")
    request_id: str | None
    detail: dict[str, Any]


class AuditEventExport(AuditEventRead):
    """An event as the owner of the account sees it: with what others did to it, and without what is theirs."""

    actor_id: UUID | None = Field(description="The account itself; null when somebody else did it, or the system.")
    subject_id: UUID | None = Field(description="The account itself; null when it was done to somebody else.")
    session_id: UUID | None = Field(description="The account's login session it was done in.")
    ip_prefix: IPv4Network | IPv6Network | None = Field(description="The network, where the account itself did it.")
    request_id: str | None = Field(description="The request, where the account itself sent it.")
    detail: dict[str, Any] = Field(description="Empty when it was done to somebody else.")


class AuditEventQuery(PageQuery):
    """Which events to list."""

    actor_id: QueryIdentifier | None = Field(default=None, description="Done by this account.")
    subject_id: QueryIdentifier | None = Field(default=None, description="Done to this account.")
    event: EventName | None = Field(default=None, description="Of this name.")
    after: QueryInstant | None = Field(default=None, description="Later than this instant.")
    before: QueryInstant | None = Field(default=None, description="Earlier than this instant.")
    sort: Literal["-occurred_at", "occurred_at"] = Field(default="-occurred_at", description="Newest first, or oldest.")
