"""The tables of the job queue, which are procrastinate's, and what our jobs say when they fail."""

import re
from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "20261123_jobs"
down_revision = "20261123_audit"

# A copy, not the library's own file: a migration must do the same whatever version is installed when it runs.
_SCHEMA = Path(__file__).with_suffix(".sql")
_STATEMENT = re.compile(r"(?:\$\$.*?\$\$|--[^\n]*|[^;$-]|-)++;", re.DOTALL)

_FUNCTIONS = (
    "procrastinate_defer_jobs_v1",
    "procrastinate_defer_periodic_job_v2",
    "procrastinate_fetch_job_v2",
    "procrastinate_finish_job_v1",
    "procrastinate_cancel_job_v1",
    "procrastinate_retry_job_v1",
    "procrastinate_retry_job_v2",
    "procrastinate_notify_queue_job_inserted_v1",
    "procrastinate_notify_queue_abort_job_v1",
    "procrastinate_trigger_function_status_events_insert_v1",
    "procrastinate_trigger_function_status_events_update_v1",
    "procrastinate_trigger_function_scheduled_events_v1",
    "procrastinate_trigger_abort_requested_events_procedure_v1",
    "procrastinate_unlink_periodic_defers_v1",
    "procrastinate_register_worker_v1",
    "procrastinate_unregister_worker_v1",
    "procrastinate_update_heartbeat_v1",
    "procrastinate_prune_stalled_workers_v1",
)


def upgrade() -> None:
    for statement in _STATEMENT.findall(_SCHEMA.read_text()):
        op.execute(statement.strip().removesuffix(";"))
    op.create_table(
        "job_errors",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_job_errors")),
    )


def downgrade() -> None:
    op.drop_table("job_errors")
    # With the triggers that call them.
    op.execute(f"DROP FUNCTION {', '.join(_FUNCTIONS)} CASCADE")
    op.execute(
        "DROP TABLE procrastinate_events, procrastinate_periodic_defers, procrastinate_jobs, procrastinate_workers"
    )
    op.execute("DROP TYPE procrastinate_job_to_defer_v1, procrastinate_job_event_type, procrastinate_job_status")
