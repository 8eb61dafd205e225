"""Indexes for housekeeping, and jobs that forget their worker when they end."""

from alembic import context, op

revision = "20261130_housekeeping"
down_revision = "20261126_session_cutoffs"

_INDEXES = {
    "ix_sessions_revoked_at": "sessions (revoked_at) WHERE revoked_at IS NOT NULL",
    "ix_account_links_expires_at": "account_links (expires_at)",
    # The foreign key to workers is ON DELETE SET NULL, and the library's own index serves only jobs that are running.
    "ix_procrastinate_jobs_worker_id": "procrastinate_jobs (worker_id) WHERE worker_id IS NOT NULL",
    "ix_procrastinate_jobs_failed": "procrastinate_jobs (id) WHERE status = 'failed'",
}
# A worker may have run millions of jobs. When it ends, its row is deleted, and each of them would be updated.
_FORGET_WORKER = """
CREATE FUNCTION forget_worker_of_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.worker_id := NULL;
    RETURN NEW;
END
$$
"""
_TRIGGER = """
CREATE TRIGGER jobs_forget_their_worker BEFORE UPDATE OF status ON procrastinate_jobs
FOR EACH ROW WHEN (NEW.status <> 'doing' AND NEW.worker_id IS NOT NULL) EXECUTE FUNCTION forget_worker_of_job()
"""


def upgrade() -> None:
    # First, because the block commits: what follows is done together or not at all.
    with op.get_context().autocommit_block():
        _wait_for_transactions()
        for name, definition in _INDEXES.items():
            # A build that was interrupted leaves an invalid index behind.
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {definition}")
        _wait_no_longer()
    op.execute(_FORGET_WORKER)
    op.execute(_TRIGGER)


def downgrade() -> None:
    op.execute("DROP TRIGGER jobs_forget_their_worker ON procrastinate_jobs")
    op.execute("DROP FUNCTION forget_worker_of_job()")
    for name in _INDEXES:
        op.execute(f"DROP INDEX {name}")


def _wait_for_transactions() -> None:
    # A concurrent build waits for every transaction that is older than it. Nobody waits behind it meanwhile.
    op.execute("SET lock_timeout = '1min'")


def _wait_no_longer() -> None:
    op.execute("SET lock_timeout = '2s'" if context.is_offline_mode() else "RESET lock_timeout")
