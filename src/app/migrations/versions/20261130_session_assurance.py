"""How strongly the client of a login session has proved who it is, and by which methods."""

from alembic import op

revision = "20261130_session_assurance"
down_revision = "20261130_socket_tickets"


def upgrade() -> None:
    # The block below commits. After an interruption, the columns and the constraint may be there already. Processes of the release
    # before insert sessions without these columns.
    op.execute("ALTER TABLE sessions ADD COLUMN IF NOT EXISTS acr text NOT NULL DEFAULT 'aal1'")
    op.execute("ALTER TABLE sessions ADD COLUMN IF NOT EXISTS amr text[] NOT NULL DEFAULT '{pwd}'")
    op.execute("""
        -- squawk-ignore ban-drop-constraint
        ALTER TABLE sessions DROP CONSTRAINT IF EXISTS ck_sessions_acr
    """)
    op.execute("ALTER TABLE sessions ADD CONSTRAINT ck_sessions_acr CHECK (acr IN ('aal1', 'aal2')) NOT VALID")
    # A transaction of its own: looking through the table must not hold the lock of the statements above.
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE sessions VALIDATE CONSTRAINT ck_sessions_acr")


def downgrade() -> None:
    op.execute("ALTER TABLE sessions DROP COLUMN amr")
    op.execute("ALTER TABLE sessions DROP COLUMN acr")
