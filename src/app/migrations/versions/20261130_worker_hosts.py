"""The host of a job worker, for health checks."""

from alembic import op

revision = "20261130_worker_hosts"
down_revision = "20261130_second_factors"


def upgrade() -> None:
    op.execute("ALTER TABLE procrastinate_workers ADD COLUMN host text")


def downgrade() -> None:
    op.execute("ALTER TABLE procrastinate_workers DROP COLUMN host")
