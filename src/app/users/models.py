"""The accounts."""

from datetime import datetime

from sqlalchemy import CheckConstraint, Index, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, CreatedAt, PrimaryKey, UpdatedAt, Version
from app.users.roles import Role


class User(Base):
    """One account. `email` is the spelling mail goes to, `email_key` what makes it unique."""

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint("role IN ('user', 'admin')", name="role"),
        Index(None, "created_at", "id"),
    )

    id: Mapped[PrimaryKey]
    email: Mapped[str]
    email_key: Mapped[str] = mapped_column(Text(collation="C"), unique=True)
    hashed_password: Mapped[str | None]
    full_name: Mapped[str | None]
    role: Mapped[str] = mapped_column(server_default=Role.USER.value)
    is_active: Mapped[bool] = mapped_column(server_default=text("true"))
    email_verified_at: Mapped[datetime | None]
    # Raised by every change of what the account may do; access tokens carry the number they were issued under.
    authz_version: Mapped[int] = mapped_column(server_default=text("1"))
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]
    version: Mapped[Version]
