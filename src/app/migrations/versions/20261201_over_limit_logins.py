"""Whether a login that waits for the second factor exceeds the limit of its account."""

from alembic import op

revision = "20261201_over_limit_logins"
down_revision = "20261130_worker_hosts"


def upgrade() -> None:
    op.execute("ALTER TABLE login_challenges ADD COLUMN is_over_limit boolean DEFAULT false NOT NULL")


def downgrade() -> None:
    op.execute("ALTER TABLE login_challenges DROP COLUMN is_over_limit")
