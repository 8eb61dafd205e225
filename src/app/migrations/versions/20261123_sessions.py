"""Login sessions, the revocations that access tokens still alive must learn of, and the counters of attempts."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import CIDR

revision = "20261123_sessions"
down_revision = "20261123_jobs"

_KINDS = "kind IN (1, 2, 3)"
_REASONS = (
    "revoke_reason IN ('logout', 'user', 'admin', 'password_changed', 'password_reset', 'email_changed', 'disabled', "
    "'refresh_reuse', 'evicted', 'all')"
)
# An access token lives 15 minutes at most; a revocation is kept a little longer than any token it concerns.
_PUBLISH = """
CREATE FUNCTION publish_revocation(kind bigint, subject uuid, min_version bigint, key_id text)
RETURNS void LANGUAGE sql AS $$
    INSERT INTO revocations (kind, subject, min_version, key_id, expires_at)
    VALUES (kind, subject, min_version, key_id, now() + interval '17 minutes');
    SELECT pg_notify('revocations', concat_ws(' ', kind, subject, min_version, key_id));
$$
"""
_SESSION_ENDED = """
CREATE FUNCTION publish_session_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM publish_revocation(1, NEW.id, NULL, NULL);
    RETURN NULL;
END
$$
"""
_SESSION_TRIGGER = """
CREATE TRIGGER sessions_end_is_published AFTER UPDATE OF revoked_at ON sessions
FOR EACH ROW WHEN (OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL) EXECUTE FUNCTION publish_session_end()
"""
# Whoever changes an account, a person at a database prompt included, ends what was issued before.
_USER_CHANGED = """
CREATE FUNCTION publish_user_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        PERFORM publish_revocation(2, OLD.id, 9223372036854775807, NULL);
        RETURN NULL;
    END IF;
    IF NEW.authz_version > OLD.authz_version THEN
        PERFORM publish_revocation(2, NEW.id, NEW.authz_version, NULL);
    END IF;
    IF OLD.is_active AND NOT NEW.is_active THEN
        UPDATE sessions SET revoked_at = now(), revoke_reason = 'disabled'
        WHERE user_id = NEW.id AND revoked_at IS NULL;
    END IF;
    RETURN NULL;
END
$$
"""
_USER_TRIGGER = """
CREATE TRIGGER users_change_is_published AFTER DELETE OR UPDATE OF authz_version, is_active ON users
FOR EACH ROW EXECUTE FUNCTION publish_user_change()
"""


def upgrade() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("generation", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("nonce", sa.LargeBinary(), nullable=False),
        sa.Column("pepper_id", sa.BigInteger(), nullable=False),
        sa.Column("replays", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("auth_time", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("rotated_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("idle_expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("absolute_expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
        sa.Column("revoke_reason", sa.Text()),
        sa.Column("ip_prefix", CIDR()),
        sa.Column("user_agent", sa.Text()),
        sa.Column("device_family", sa.Text(), nullable=False),
        sa.CheckConstraint(_REASONS, name=op.f("ck_sessions_revoke_reason")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sessions_user_id_users"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_user_id_last_seen_at_id"), "sessions", ["user_id", "last_seen_at", "id"])
    op.create_index(op.f("ix_sessions_absolute_expires_at"), "sessions", ["absolute_expires_at"])
    op.create_table(
        "revocations",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("kind", sa.BigInteger(), nullable=False),
        sa.Column("subject", sa.Uuid()),
        sa.Column("min_version", sa.BigInteger()),
        sa.Column("key_id", sa.Text()),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(_KINDS, name=op.f("ck_revocations_kind")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_revocations")),
    )
    # Alembic has no type for it: the id of the transaction that wrote the row, by which a reader knows what it may
    # have missed (neither ids nor clocks tell, because transactions end in another order than they begin).
    op.execute("ALTER TABLE revocations ADD COLUMN xid xid8 NOT NULL DEFAULT pg_current_xact_id()")
    op.create_index(op.f("ix_revocations_xid"), "revocations", ["xid"])
    op.create_index(op.f("ix_revocations_expires_at"), "revocations", ["expires_at"])
    op.create_table(
        "rate_limits",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("hits", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_rate_limits")),
        prefixes=["UNLOGGED"],
    )
    op.create_index(op.f("ix_rate_limits_expires_at"), "rate_limits", ["expires_at"])
    for statement in (_PUBLISH, _SESSION_ENDED, _SESSION_TRIGGER, _USER_CHANGED, _USER_TRIGGER):
        op.execute(statement)


def downgrade() -> None:
    op.drop_table("rate_limits")
    op.execute("DROP TRIGGER users_change_is_published ON users")
    op.execute("DROP FUNCTION publish_user_change()")
    op.drop_table("sessions")
    op.execute("DROP FUNCTION publish_session_end()")
    op.drop_table("revocations")
    op.execute("DROP FUNCTION publish_revocation(bigint, uuid, bigint, text)")
