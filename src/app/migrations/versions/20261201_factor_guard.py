"""Tell the guard of login sessions which accounts have a second factor."""

from alembic import op

revision = "20261201_factor_guard"
down_revision = "20261201_session_guard"

_HAS_FACTOR = """
CREATE FUNCTION has_second_factor(account uuid) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (SELECT FROM totp_secrets WHERE user_id = account AND confirmed_at IS NOT NULL);
END
$$
"""


def upgrade() -> None:
    op.execute(_HAS_FACTOR)


def downgrade() -> None:
    # Also in the migration of `make remove NAME=factors DEPLOYED=1`. The triggers call the function only if it exists.
    op.execute("""
        -- squawk-ignore ban-drop-function
        DROP FUNCTION has_second_factor(uuid)
    """)
