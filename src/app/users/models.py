"""Tables of accounts and of mailed links."""

from datetime import datetime
from typing import Literal, get_args
from uuid import UUID

from sqlalchemy import ForeignKey, Index, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db.choices import one_of
from app.core.db.database import Base, CreatedAt, PrimaryKey, VersionedBase
from app.users.roles import Role

type Purpose = Literal["verify_email", "set_password", "reset_password", "confirm_email"]


class User(VersionedBase):
    """One account. `email` is the address for mail; `email_key` is its unique key."""

    __tablename__ = "users"
    __table_args__ = (
        one_of("role", Role),
        # One index per filter and sort order of the list. Sorting by address uses the unique index of `email_key`.
        Index(None, "created_at", "id"),
        Index(None, "role", "created_at", "id"),
        Index(None, "role", "email_key"),
        Index(None, "is_active", "created_at", "id"),
        Index(None, "is_active", "email_key"),
        Index(None, "name_key"),
    )

    email: Mapped[str]
    email_key: Mapped[str] = mapped_column(Text(collation="C"), unique=True)
    hashed_password: Mapped[str | None]
    full_name: Mapped[str | None]
    # The name in the form for searches without regard to case.
    name_key: Mapped[str | None] = mapped_column(Text(collation="C"))
    role: Mapped[str] = mapped_column(server_default=Role.USER.value)
    is_active: Mapped[bool] = mapped_column(server_default=text("true"))
    email_verified_at: Mapped[datetime | None]
    # Incremented by every change of the password or the rights of the account. Access tokens contain the number, and those with an
    # older one are invalid.
    authz_version: Mapped[int] = mapped_column(server_default=text("1"))


class AccountLink(Base):
    """A single-use link of an account. Its secret is derived from this row and a pepper, and is not stored."""

    __tablename__ = "account_links"
    __table_args__ = (
        one_of("purpose", get_args(Purpose.__value__)),
        Index(None, "user_id", "purpose"),
        # For the purge.
        Index(None, "expires_at"),
    )

    id: Mapped[PrimaryKey]
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    purpose: Mapped[str]
    # Only for `confirm_email`: the new address, and the login session that requested the change.
    email: Mapped[str | None]
    session_id: Mapped[UUID | None]
    nonce: Mapped[bytes]
    pepper_id: Mapped[int]
    created_at: Mapped[CreatedAt]
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
