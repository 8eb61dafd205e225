"""Where a login session began, as a keyed digest."""

from alembic import context, op

revision = "20261130_login_origins"
down_revision = "20261130_housekeeping"


def upgrade() -> None:
    # The block below commits. After an interruption, the column may be there already.
    op.execute("ALTER TABLE sessions ADD COLUMN IF NOT EXISTS origin text")
    with op.get_context().autocommit_block():
        # A concurrent build waits for every transaction that is older than it. Nobody waits behind it meanwhile.
        op.execute("SET lock_timeout = '1min'")
        # A build that was interrupted leaves an invalid index behind.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_sessions_user_id_origin")
        op.execute("CREATE INDEX CONCURRENTLY ix_sessions_user_id_origin ON sessions (user_id, origin)")
        op.execute("SET lock_timeout = '2s'" if context.is_offline_mode() else "RESET lock_timeout")


def downgrade() -> None:
    op.execute("DROP INDEX ix_sessions_user_id_origin")
    op.execute("ALTER TABLE sessions DROP COLUMN origin")
