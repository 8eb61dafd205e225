"""Accounts, and the links mailed about them."""

import sqlalchemy as sa
from alembic import op

revision = "20261123_users"
down_revision = None

_PURPOSES = "purpose IN ('verify_email', 'set_password', 'reset_password', 'confirm_email')"


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("email_key", sa.Text(collation="C"), nullable=False),
        sa.Column("hashed_password", sa.Text()),
        sa.Column("full_name", sa.Text()),
        sa.Column("name_key", sa.Text(collation="C")),
        sa.Column("role", sa.Text(), server_default="user", nullable=False),
        sa.Column("is_active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("email_verified_at", sa.DateTime(timezone=True)),
        sa.Column("authz_version", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("version", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.CheckConstraint("role IN ('user', 'admin')", name=op.f("ck_users_role")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email_key", name=op.f("uq_users_email_key")),
    )
    for columns in (
        ["created_at", "id"],
        ["role", "created_at", "id"],
        ["role", "email_key"],
        ["is_active", "created_at", "id"],
        ["is_active", "email_key"],
        ["name_key"],
    ):
        op.create_index(op.f(f"ix_users_{'_'.join(columns)}"), "users", columns)
    op.create_table(
        "account_links",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("email", sa.Text()),
        sa.Column("session_id", sa.Uuid()),
        sa.Column("nonce", sa.LargeBinary(), nullable=False),
        sa.Column("pepper_id", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint(_PURPOSES, name=op.f("ck_account_links_purpose")),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_account_links_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_account_links")),
    )
    op.create_index(op.f("ix_account_links_user_id_purpose"), "account_links", ["user_id", "purpose"])


def downgrade() -> None:
    op.drop_table("account_links")
    op.drop_table("users")
