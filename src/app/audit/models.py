"""The audit log. A trigger rejects every change of a row."""

from ipaddress import IPv4Network, IPv6Network
from typing import Any
from uuid import UUID

from sqlalchemy import Index
from sqlalchemy.dialects.postgresql import CIDR, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db.database import Base, CreatedAt, PrimaryKey


class AuditEvent(Base):
    """Who did what to whom, and from where. There are no foreign keys: events stay when the account is deleted."""

    __tablename__ = "audit_events"
    __table_args__ = (
        Index(None, "occurred_at", "id"),
        Index(None, "actor_id", "occurred_at", "id"),
        Index(None, "subject_id", "occurred_at", "id"),
        Index(None, "event", "occurred_at", "id"),
    )

    id: Mapped[PrimaryKey]
    event: Mapped[str]
    occurred_at: Mapped[CreatedAt]
    actor_id: Mapped[UUID | None]
    subject_id: Mapped[UUID | None]
    session_id: Mapped[UUID | None]
    ip_prefix: Mapped[IPv4Network | IPv6Network | None] = mapped_column(CIDR)
    request_id: Mapped[str | None]
    detail: Mapped[dict[str, Any]] = mapped_column(JSONB)
