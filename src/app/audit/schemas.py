"""Bodies and query of `/audit-events`."""

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
    actor_id: UUID | None = Field(description="The account that did it. Null for the system.")
    subject_id: UUID | None = Field(description="The account that it was done to.")
    session_id: UUID | None = Field(description="The login session in which it was done.")
    ip_prefix: IPv4Network | IPv6Network | None = Field(description="The network from which it was done.")
    request_id: str | None
    detail: dict[str, Any]


class AuditEventExport(AuditEventRead):
    """An event in the export of an account: what others did to the account, without data of theirs."""

    actor_id: UUID | None = Field(description="The account itself. Null if somebody else did it, or the system.")
    subject_id: UUID | None = Field(description="The account itself. Null if it was done to another account.")
    session_id: UUID | None = Field(description="The login session of the account in which it was done.")
    ip_prefix: IPv4Network | IPv6Network | None = Field(description="The network, if the account itself did it.")
    request_id: str | None = Field(description="The request, if the account itself sent it.")
    detail: dict[str, Any] = Field(description="Empty if it was done to another account.")


class AuditEventQuery(PageQuery):
    """Filters and order of the list of events."""

    actor_id: QueryIdentifier | None = Field(default=None, description="Events that this account caused.")
    subject_id: QueryIdentifier | None = Field(default=None, description="Events about this account.")
    event: EventName | None = Field(default=None, description="Events with this name.")
    after: QueryInstant | None = Field(default=None, description="Events later than this instant.")
    before: QueryInstant | None = Field(default=None, description="Events earlier than this instant.")
    sort: Literal["-occurred_at", "occurred_at"] = Field(default="-occurred_at", description="Newest first, or oldest.")
