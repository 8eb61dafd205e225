"""Tickets that open a WebSocket."""

import sqlalchemy as sa
from alembic import op

revision = "20261130_socket_tickets"
down_revision = "20261130_login_origins"


def upgrade() -> None:
    op.create_table(
        "socket_tickets",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("token_expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["sessions.id"],
            name=op.f("fk_socket_tickets_session_id_sessions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_socket_tickets")),
    )
    op.create_index(op.f("ix_socket_tickets_session_id"), "socket_tickets", ["session_id"])
    op.create_index(op.f("ix_socket_tickets_expires_at"), "socket_tickets", ["expires_at"])


def downgrade() -> None:
    op.drop_table("socket_tickets")
