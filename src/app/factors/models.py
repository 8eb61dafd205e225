"""Tables of second factors, and of logins that wait for one."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, Index, false, text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db.database import Base, CreatedAt, PrimaryKey


class TotpSecret(Base):
    """The secret that an account shares with an authenticator app. Until the owner has confirmed it, it protects nothing."""

    __tablename__ = "totp_secrets"
    __table_args__ = (
        # For the purge of secrets that were never confirmed.
        Index(None, "created_at", postgresql_where=text("confirmed_at IS NULL")),
    )

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    # Encrypted with a seal key, see `core.security.sealing`.
    sealed: Mapped[bytes]
    confirmed_at: Mapped[datetime | None]
    # The time step of the last accepted code. Codes of this step or an earlier one are refused.
    last_step: Mapped[int] = mapped_column(server_default=text("0"))
    created_at: Mapped[CreatedAt]
    last_used_at: Mapped[datetime | None]


class RecoveryCode(Base):
    """A recovery code. Only its SHA-256 digest is stored."""

    __tablename__ = "recovery_codes"
    __table_args__ = (Index(None, "user_id"),)

    digest: Mapped[bytes] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    created_at: Mapped[CreatedAt]
    used_at: Mapped[datetime | None]


class LoginChallenge(Base):
    """A login with the right password that waits for the second factor. Its `mfa_token` is derived from this row and a pepper.

    The table is UNLOGGED: a crash of the database ends the logins that wait.
    """

    __tablename__ = "login_challenges"
    __table_args__ = (
        Index(None, "user_id"),
        # For the purge.
        Index(None, "expires_at"),
        {"prefixes": ["UNLOGGED"]},
    )

    id: Mapped[PrimaryKey]
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    # Of the account when its password was checked. A later change of the password or the rights ends the challenge.
    authz_version: Mapped[int]
    # The scopes that the login has requested; empty means all of the role.
    scope: Mapped[str]
    # The login exceeds the limit of wrong passwords of its account, which has not counted it.
    is_over_limit: Mapped[bool] = mapped_column(server_default=false())
    nonce: Mapped[bytes]
    pepper_id: Mapped[int]
    # Guesses made, counted before each check.
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    expires_at: Mapped[datetime]
