"""The audit log, which only grows."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import CIDR, JSONB

revision = "20261123_audit"
down_revision = "20261123_users"

# One door is left: deletion by age, in batches, through the function below. This guards against mistakes and against
# statements that somebody smuggles in; whoever owns the table can always take the guard away.
_GUARD = """
CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('bedplate.purging_audit_events', true) = 'on' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'the audit log is insert-only' USING ERRCODE = 'insufficient_privilege';
END
$$
"""
_ROW_TRIGGER = """
CREATE TRIGGER audit_events_are_final BEFORE UPDATE OR DELETE ON audit_events
FOR EACH ROW EXECUTE FUNCTION refuse_audit_change()
"""
_TRUNCATE_TRIGGER = """
CREATE TRIGGER audit_events_stay BEFORE TRUNCATE ON audit_events
FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()
"""
_PURGE = """
CREATE FUNCTION purge_audit_events(age interval, batch integer) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    purged bigint;
BEGIN
    PERFORM set_config('bedplate.purging_audit_events', 'on', true);
    DELETE FROM audit_events WHERE id IN (
        SELECT id FROM audit_events WHERE occurred_at < now() - age ORDER BY occurred_at, id LIMIT batch
    );
    GET DIAGNOSTICS purged = ROW_COUNT;
    PERFORM set_config('bedplate.purging_audit_events', 'off', true);
    RETURN purged;
END
$$
"""


def upgrade() -> None:
    op.create_table(
        "audit_events",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("actor_id", sa.Uuid()),
        sa.Column("subject_id", sa.Uuid()),
        sa.Column("session_id", sa.Uuid()),
        sa.Column("ip_prefix", CIDR()),
        sa.Column("request_id", sa.Text()),
        sa.Column("detail", JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_events")),
    )
    for columns in (
        ["occurred_at", "id"],
        ["actor_id", "occurred_at", "id"],
        ["subject_id", "occurred_at", "id"],
        ["event", "occurred_at", "id"],
    ):
        op.create_index(op.f(f"ix_audit_events_{'_'.join(columns)}"), "audit_events", columns)
    for statement in (_GUARD, _ROW_TRIGGER, _TRUNCATE_TRIGGER, _PURGE):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP FUNCTION purge_audit_events(interval, integer)")
    op.drop_table("audit_events")
    op.execute("DROP FUNCTION refuse_audit_change()")
