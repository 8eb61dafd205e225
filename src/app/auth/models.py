"""Login sessions, and the revocations that worker processes must learn of."""

from datetime import datetime
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal, get_args, override
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, Text, func, text
from sqlalchemy.dialects.postgresql import ARRAY, CIDR
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import UserDefinedType

from app.core.db.choices import one_of
from app.core.db.database import Base, CreatedAt, PrimaryKey

# A database trigger writes "disabled".
type RevokeReason = Literal[
    "logout",
    "user",
    "admin",
    "password_changed",
    "password_reset",
    "email_changed",
    "disabled",
    "refresh_reuse",
    "evicted",
    "all",
]
# How strongly the client of a session has proved who it is: with one factor, or with two (NIST SP 800-63B).
type Acr = Literal["aal1", "aal2"]
Now = Annotated[datetime, mapped_column(server_default=func.now())]


class XID8(UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id."""

    cache_ok = True

    @override
    def get_col_spec(self, **_options: object) -> str:
        return "xid8"


# Alembic compares the models with the database, and must recognise the type there.
ischema_names["xid8"] = XID8


class LoginSession(Base):
    """One login. The refresh token of each generation is derived from this row and a pepper, and is not stored."""

    __tablename__ = "sessions"
    __table_args__ = (
        one_of("revoke_reason", get_args(RevokeReason.__value__)),
        one_of("acr", get_args(Acr.__value__)),
        Index(None, "user_id", "last_seen_at", "id"),
        Index(None, "user_id", "origin"),
        # For the purge.
        Index(None, "absolute_expires_at"),
        Index(None, "revoked_at", postgresql_where=text("revoked_at IS NOT NULL")),
    )

    id: Mapped[PrimaryKey]
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    generation: Mapped[int] = mapped_column(server_default=text("0"))
    nonce: Mapped[bytes]
    pepper_id: Mapped[int]
    # How often the previous generation has been presented again within the grace period.
    replays: Mapped[int] = mapped_column(server_default=text("0"))
    scope: Mapped[str]
    created_at: Mapped[CreatedAt]
    auth_time: Mapped[Now]
    acr: Mapped[str] = mapped_column(server_default=text("'aal1'"))
    # How it was proved, in the names of RFC 8176, and `rc` for a recovery code. A trigger completes or refuses a row without it: a release
    # before second factors writes such rows during a rolling deploy.
    amr: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    rotated_at: Mapped[Now]
    # Written only at a refresh, so other requests cause no write.
    last_seen_at: Mapped[Now]
    idle_expires_at: Mapped[datetime]
    absolute_expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    revoke_reason: Mapped[str | None]
    ip_prefix: Mapped[IPv4Network | IPv6Network | None] = mapped_column(CIDR)
    # A digest of the client's address. While attackers exhaust the limit of an account, its owner can log in from known origins.
    origin: Mapped[str | None]
    user_agent: Mapped[str | None]
    # The user agent without versions, so that an updated browser is not a new device.
    device_family: Mapped[str]


# SQL condition: the session is live according to the clock of the database.
IS_LIVE = (
    LoginSession.revoked_at.is_(None)
    & (LoginSession.idle_expires_at > func.now())
    & (LoginSession.absolute_expires_at > func.now())
)


class SessionCutoff(Base):
    """A point at which all login sessions ended: those with a lower id. Later sessions have higher ids."""

    __tablename__ = "session_cutoffs"

    cutoff: Mapped[UUID] = mapped_column(primary_key=True)
    created_at: Mapped[CreatedAt]


class SocketTicket(Base):
    """Opens one WebSocket for the login session, with the rights of the access token that asked for it. Only its digest is stored."""

    __tablename__ = "socket_tickets"
    __table_args__ = (
        Index(None, "session_id"),
        # For the purge.
        Index(None, "expires_at"),
    )

    digest: Mapped[bytes] = mapped_column(primary_key=True)
    session_id: Mapped[UUID] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    # Of the access token.
    version: Mapped[int]
    scope: Mapped[str]
    token_expires_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class Revocation(Base):
    """Revoked access tokens: of a session (kind 1), of a user below a version (2), or of all sessions below an id (4).

    Triggers write the rows. Kind 3 and its column `key_id` are unused; they stay because the previous release reads the column.
    """

    __tablename__ = "revocations"
    __table_args__ = (
        CheckConstraint("kind IN (1, 2, 3, 4)", name="kind"),
        Index(None, "xid"),
        Index(None, "expires_at"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    kind: Mapped[int]
    subject: Mapped[UUID | None]
    min_version: Mapped[int | None]
    key_id: Mapped[str | None]
    xid: Mapped[int] = mapped_column(XID8, server_default=text("pg_current_xact_id()"))
    expires_at: Mapped[datetime]
