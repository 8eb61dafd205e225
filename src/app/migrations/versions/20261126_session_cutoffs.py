"""Ending every login session at once: one row that all sessions before it are measured by."""

import sqlalchemy as sa
from alembic import op

revision = "20261126_session_cutoffs"
down_revision = "20261123_sessions"

_PUBLISH = """
CREATE FUNCTION publish_session_cutoff() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM publish_revocation(4, NEW.cutoff, NULL, NULL);
    RETURN NULL;
END
$$
"""
_TRIGGER = """
CREATE TRIGGER session_cutoffs_are_published AFTER INSERT ON session_cutoffs
FOR EACH ROW EXECUTE FUNCTION publish_session_cutoff()
"""
# Sessions that end because of a cut-off have been published with it, all in one row. It is remembered for 17 minutes, two
# more than an access token lives: what is ended a minute later may have tokens that outlive that, and is published itself.
_SESSION_ENDED = """
CREATE OR REPLACE FUNCTION publish_session_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM session_cutoffs WHERE cutoff > NEW.id AND created_at > now() - interval '1 minute'
    ) THEN
        PERFORM publish_revocation(1, NEW.id, NULL, NULL);
    END IF;
    RETURN NULL;
END
$$
"""
_SESSION_ENDED_BEFORE = """
CREATE OR REPLACE FUNCTION publish_session_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM publish_revocation(1, NEW.id, NULL, NULL);
    RETURN NULL;
END
$$
"""


def upgrade() -> None:
    op.create_table(
        "session_cutoffs",
        sa.Column("cutoff", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("cutoff", name=op.f("pk_session_cutoffs")),
    )
    _allow_kinds("1, 2, 3, 4")
    for statement in (_PUBLISH, _TRIGGER, _SESSION_ENDED):
        op.execute(statement)


def downgrade() -> None:
    op.execute(_SESSION_ENDED_BEFORE)
    op.drop_table("session_cutoffs")
    op.execute("DROP FUNCTION publish_session_cutoff()")
    op.execute("DELETE FROM revocations WHERE kind = 4")
    _allow_kinds("1, 2, 3")


def _allow_kinds(kinds: str) -> None:
    # The table holds a quarter of an hour: looking through it takes a moment.
    op.execute("""
        -- squawk-ignore ban-drop-constraint
        ALTER TABLE revocations DROP CONSTRAINT ck_revocations_kind
    """)
    op.execute(f"""
        -- squawk-ignore constraint-missing-not-valid
        ALTER TABLE revocations ADD CONSTRAINT ck_revocations_kind CHECK (kind IN ({kinds}))
    """)
