"""Login sessions, and what access tokens still alive must learn."""

from datetime import datetime
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal, get_args, override
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, func, text
from sqlalchemy.dialects.postgresql import CIDR
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import UserDefinedType

from app.core.db.choices import one_of
from app.core.db.database import Base, CreatedAt, PrimaryKey

# A trigger of the database writes "disabled".
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
Now = Annotated[datetime, mapped_column(server_default=func.now())]


class XID8(UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id."""

    cache_ok = True

    @override
    def get_col_spec(self, **_options: object) -> str:
        return "xid8"


# What compares the models with the database has to recognise the type when it sees it there.
ischema_names["xid8"] = XID8


class LoginSession(Base):
    """One login. The refresh token of each generation is derived from this row and a pepper, and stored nowhere."""

    __tablename__ = "sessions"
    __table_args__ = (
        one_of("revoke_reason", get_args(RevokeReason.__value__)),
        Index(None, "user_id", "last_seen_at", "id"),
        Index(None, "user_id", "origin"),
        # For their purge.
        Index(None, "absolute_expires_at"),
        Index(None, "revoked_at", postgresql_where=text("revoked_at IS NOT NULL")),
    )

    id: Mapped[PrimaryKey]
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    generation: Mapped[int] = mapped_column(server_default=text("0"))
    nonce: Mapped[bytes]
    pepper_id: Mapped[int]
    # How often the generation before this one has been presented again within the grace.
    replays: Mapped[int] = mapped_column(server_default=text("0"))
    scope: Mapped[str]
    created_at: Mapped[CreatedAt]
    auth_time: Mapped[Now]
    rotated_at: Mapped[Now]
    # Written at refresh only: no write per request.
    last_seen_at: Mapped[Now]
    idle_expires_at: Mapped[datetime]
    absolute_expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    revoke_reason: Mapped[str | None]
    ip_prefix: Mapped[IPv4Network | IPv6Network | None] = mapped_column(CIDR)
    # A digest of the address: while others exhaust the limit of an account, its owner logs in from where they have before.
    origin: Mapped[str | None]
    user_agent: Mapped[str | None]
    # The user agent without its versions: the same browser after an update is no new device.
    device_family: Mapped[str]


# The condition of a statement for live sessions, by the database's clock.
IS_LIVE = (
    LoginSession.revoked_at.is_(None)
    & (LoginSession.idle_expires_at > func.now())
    & (LoginSession.absolute_expires_at > func.now())
)


class SessionCutoff(Base):
    """Every session with an id below has been ended, all at once; later ones have higher ids."""

    __tablename__ = "session_cutoffs"

    cutoff: Mapped[UUID] = mapped_column(primary_key=True)
    created_at: Mapped[CreatedAt]


class Revocation(Base):
    """Kind 1: a session has ended; 2: a user's tokens below a version; 4: all sessions below an id. Triggers write it.

    Kind 3 and its column `key_id` are not used. They stay in the table, because the release before reads the column.
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
