"""Refuse a login session with the password alone to a process that knows no second factors, if the account has one."""

from alembic import op

revision = "20261201_session_guard"
down_revision = "20261201_over_limit_logins"

# A feature with second factors creates `has_second_factor`. With this SQLSTATE, the earlier release answers 503 with Retry-After: the next
# attempt may reach a process that asks for the factor.
_REFUSE = """
CREATE FUNCTION refuse_password_alone(account uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF to_regprocedure('has_second_factor(uuid)') IS NOT NULL THEN
        IF has_second_factor(account) THEN
            RAISE EXCEPTION 'the account has a second factor, and this release does not ask for it' USING ERRCODE = '57000';
        END IF;
    END IF;
END
$$
"""
# Processes of releases before `amr` insert sessions without it.
_START = """
CREATE FUNCTION guard_session_start() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM refuse_password_alone(NEW.user_id);
    NEW.amr = '{pwd}';
    RETURN NEW;
END
$$
"""
_START_TRIGGER = """
CREATE TRIGGER session_starts_are_guarded BEFORE INSERT ON sessions
FOR EACH ROW WHEN (NEW.amr = '{}') EXECUTE FUNCTION guard_session_start()
"""
# A release with second factors names `acr` whenever it renews `auth_time`, and checks the factor itself. This trigger runs first, because
# triggers of one event run in the order of their names.
_MARK = """
CREATE FUNCTION mark_session_renewal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('app.renewed_session', NEW.id::text, true);
    RETURN NEW;
END
$$
"""
_MARK_TRIGGER = """
CREATE TRIGGER session_renewals_are_marked BEFORE UPDATE OF acr ON sessions
FOR EACH ROW EXECUTE FUNCTION mark_session_renewal()
"""
_RENEWAL = """
CREATE FUNCTION guard_session_renewal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('app.renewed_session', true) IS DISTINCT FROM NEW.id::text THEN
        PERFORM refuse_password_alone(NEW.user_id);
    END IF;
    PERFORM set_config('app.renewed_session', '', true);
    RETURN NEW;
END
$$
"""
_RENEWAL_TRIGGER = """
CREATE TRIGGER session_renewals_with_password BEFORE UPDATE OF auth_time ON sessions
FOR EACH ROW EXECUTE FUNCTION guard_session_renewal()
"""


def upgrade() -> None:
    op.execute("ALTER TABLE sessions ALTER COLUMN amr SET DEFAULT '{}'")
    for statement in (_REFUSE, _START, _START_TRIGGER, _MARK, _MARK_TRIGGER, _RENEWAL, _RENEWAL_TRIGGER):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TRIGGER session_renewals_with_password ON sessions")
    op.execute("DROP TRIGGER session_renewals_are_marked ON sessions")
    op.execute("DROP TRIGGER session_starts_are_guarded ON sessions")
    op.execute("ALTER TABLE sessions ALTER COLUMN amr SET DEFAULT '{pwd}'")
    op.execute("DROP FUNCTION guard_session_renewal()")
    op.execute("DROP FUNCTION mark_session_renewal()")
    op.execute("DROP FUNCTION guard_session_start()")
    op.execute("DROP FUNCTION refuse_password_alone(uuid)")
