"""Audit events in the API."""

from datetime import datetime
from ipaddress import IPv4Network, IPv6Network
from typing import Any
from uuid import UUID

from pydantic import Field

from app.core.schemas.fields import Answer


class AuditEventRead(Answer):
    """One entry of the audit log."""

    id: UUID
    event: str = Field(description="Name of the event, such as `users.role_changed`.")
    occurred_at: datetime
    actor_id: UUID | None = Field(description="The account that acted; null for the system.")
    subject_id: UUID | None = Field(description="The affected account.")
    session_id: UUID | None = Field(description="The login session that was used.")
    ip_prefix: IPv4Network | IPv6Network | None = Field(description="The network that the request came from.")
    request_id: str | None
    detail: dict[str, Any]


class AuditEventExport(AuditEventRead):
    """An event about an account, without data of other accounts."""

    actor_id: UUID | None = Field(description="The account itself; null for another account or the system.")
    subject_id: UUID | None = Field(description="The account itself; null for another account.")
    session_id: UUID | None = Field(description="The login session that was used, if it belongs to the account.")
    ip_prefix: IPv4Network | IPv6Network | None = Field(description="The network, if the account itself acted.")
    request_id: str | None = Field(description="The id of the request, if the account itself sent it.")
    detail: dict[str, Any] = Field(description="Empty if another account is affected.")
