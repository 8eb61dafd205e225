"""The commands: their effects, and that each error is one sentence with exit code 1."""

import asyncio
import io
import json
import runpy
import stat
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TextIO, override

import asyncpg
import pytest
from sqlalchemy import make_url

from app.cli import main
from app.core.security.keys import parse_key_ring
from app.migrations import runner
from app.migrations.revisions import head
from app.users.roles import Role
from tests.conftest import KEY_SET
from tests.factories import PASSWORD

type Command = Callable[..., tuple[int, str, str]]
NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


class Terminal(io.StringIO):
    """Standard input of a terminal."""

    @override
    def isatty(self) -> bool:
        return True


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs a command and returns its exit code, standard output and standard error."""

    def run(*arguments: str, url: str = NOWHERE, stdin: TextIO | str = "", **environment: str) -> tuple[int, str, str]:
        given = {
            "APP_ENVIRONMENT": "test",
            "APP_AUTH__SIGNING_KEYS": KEY_SET,
            "APP_AUTH__BCRYPT_COST": "4",
            "DATABASE_URL": url,
            **environment,
        }
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["app", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin) if isinstance(stdin, str) else stdin)
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def assert_failed(result: tuple[int, str, str], sentence: str) -> None:
    assert result == (1, "", f"app: {sentence}\n")


def changed(url: str, **parts: Any) -> str:
    return make_url(url).set(**parts).render_as_string(hide_password=False)


async def fetch(url: str, query: str) -> list[dict[str, Any]]:
    connection = await asyncpg.connect(changed(url, drivername="postgresql"))
    try:
        return [dict(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


@pytest.fixture
async def empty_url(clone_url: str) -> str:
    """A database without a schema."""
    await fetch(clone_url, "DROP SCHEMA public CASCADE")
    await fetch(clone_url, "CREATE SCHEMA public")
    return clone_url


def aftermath(url: str, query: str) -> list[dict[str, Any]]:
    """Query a database after a command. Synchronous, like the commands."""
    return asyncio.run(fetch(url, query))


def test_migrate_creates_the_newest_schema_in_an_empty_database(app: Command, empty_url: str) -> None:
    code, _, _ = app("migrate", url=empty_url)

    assert code == 0
    assert aftermath(empty_url, "SELECT version_num FROM alembic_version") == [{"version_num": head()}]
    assert aftermath(empty_url, "SELECT * FROM users") == []


def test_a_second_migrate_changes_nothing(app: Command, clone_url: str) -> None:
    assert app("migrate", url=clone_url) == (0, f"The schema is already at {head()}. Nothing was changed.\n", "")


def test_migrate_can_downgrade_to_a_revision(app: Command, clone_url: str) -> None:
    code, _, _ = app("migrate", "--to", "base", url=clone_url)

    assert code == 0
    assert aftermath(clone_url, "SELECT to_regclass('users') AS users") == [{"users": None}]


def test_check_prints_the_revision_of_a_current_schema(app: Command, clone_url: str) -> None:
    sentence = f"The schema is at {head()}, which this program needs.\n"

    assert app("migrate", "--check", url=clone_url) == (0, sentence, "")


def test_check_of_an_empty_database_says_what_to_do(app: Command, empty_url: str) -> None:
    result = app("migrate", "--check", url=empty_url)

    assert_failed(result, f"the schema is at revision none, this program needs {head()}; run `app migrate`")
    assert aftermath(empty_url, "SELECT to_regclass('users') AS users") == [{"users": None}]


@pytest.mark.parametrize("options", [[], ["--check"]])
def test_a_role_that_the_database_rejects_is_reported(app: Command, clone_url: str, options: list[str]) -> None:
    aftermath(clone_url, "ALTER TABLE users DROP CONSTRAINT ck_users_role")
    aftermath(clone_url, "ALTER TABLE users ADD CONSTRAINT ck_users_role CHECK (role IN ('another'))")

    result = app("migrate", *options, url=clone_url)

    assert_failed(
        result,
        f"the code declares {', '.join(Role)} for role, but the constraint ck_users_role of the database rejects that; "
        'write a migration that replaces it: docs/recipes.md, "Add a role"',
    )


def test_the_sql_of_the_migrations_needs_no_database(app: Command) -> None:
    assert app("migrate", "--sql") == (0, runner.sql(), "")


@pytest.mark.parametrize("options", [[], ["--sql"]])
def test_an_unknown_revision_is_reported(app: Command, clone_url: str, options: list[str]) -> None:
    result = app("migrate", "--to", "unknown", *options, url=clone_url)

    assert_failed(result, "unknown does not name exactly one migration; `app migrate --status` lists them")


@pytest.mark.parametrize("options", [[], ["--sql"]])
def test_an_empty_revision_is_reported(app: Command, clone_url: str, options: list[str]) -> None:
    result = app("migrate", "--to", "", *options, url=clone_url)

    assert_failed(
        result, "cannot migrate to ''; name a revision, `head`, `base`, or a number of steps such as -1 or +1"
    )


def test_a_schema_of_a_newer_release_is_reported(app: Command, clone_url: str) -> None:
    aftermath(clone_url, "UPDATE alembic_version SET version_num = '20991231_future'")

    result = app("migrate", url=clone_url)

    sentence = "the schema is at revision 20991231_future, which belongs to a newer release of this program"
    assert_failed(result, sentence)


@pytest.mark.parametrize("command", [["migrate"], ["migrate", "--check"]])
def test_migrate_reports_the_address_of_an_unreachable_database(app: Command, command: list[str]) -> None:
    code, _, errors = app(*command)

    assert code == 1
    assert errors.startswith("app: cannot connect to PostgreSQL at 127.0.0.1:1: ")
    assert errors.count("\n") == 1


def test_migrate_reports_a_wrong_database_password(app: Command, clone_url: str) -> None:
    url = make_url(clone_url)

    result = app("migrate", url=changed(clone_url, password="wrong"))

    assert_failed(
        result,
        f"cannot connect to PostgreSQL at {url.host}:{url.port}: "
        f'password authentication failed for user "{url.username}"',
    )


def test_migrate_reports_a_database_that_does_not_exist(app: Command, clone_url: str) -> None:
    url = make_url(clone_url)

    result = app("migrate", url=changed(clone_url, database="missing"))

    assert_failed(result, f'cannot connect to PostgreSQL at {url.host}:{url.port}: database "missing" does not exist')


def test_create_admin_reads_the_password_from_standard_input(app: Command, clone_url: str) -> None:
    code, out, errors = app(
        "users", "create-admin", "Ada@Example.com", "--full-name", "Ada", url=clone_url, stdin=f"{PASSWORD}\n"
    )

    (row,) = aftermath(clone_url, "SELECT id, email, full_name, role, hashed_password, email_verified_at FROM users")
    assert (code, errors) == (0, "")
    assert out == f"Created administrator Ada@Example.com ({row['id']}).\n"
    assert (row["email"], row["full_name"], row["role"]) == ("Ada@example.com", "Ada", "admin")
    assert row["hashed_password"].startswith("$bcrypt-sha256$")
    assert row["email_verified_at"] is not None


def test_create_admin_asks_twice_for_the_password(
    app: Command, clone_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def typed(prompt: str = "", **_: object) -> str:
        asked.append(prompt)
        return PASSWORD

    monkeypatch.setattr("getpass.getpass", typed)

    code, _, _ = app("users", "create-admin", "ada@example.com", url=clone_url, stdin=Terminal())

    assert code == 0
    assert len(asked) == 2
    assert aftermath(clone_url, "SELECT email FROM users") == [{"email": "ada@example.com"}]


TOO_SHORT = "This must have at least 15 characters. A few words make a good password."


@pytest.mark.parametrize(
    ("email", "password", "sentence"),
    [
        pytest.param("ada@example.com", "short", f"password: {TOO_SHORT}", id="a short password"),
        pytest.param("ada@example.com", "", "password: This must have a length of at least 1.", id="no password"),
        pytest.param("not an address", PASSWORD, "email: This is not an email address.", id="no address"),
        pytest.param("", PASSWORD, "email: This must have at least 3 characters.", id="an empty address"),
        pytest.param(
            "ada@example.com",
            "correct horse \udcff battery",
            "password: This holds a control character. Remove it.",
            id="a password that is not text",
        ),
        pytest.param(
            "ada@example.com",
            "correct horse \x1b battery",
            "password: This holds a control character. Remove it.",
            id="a password with a control character",
        ),
    ],
)
def test_create_admin_rejects_invalid_input_with_one_sentence(
    app: Command, clone_url: str, email: str, password: str, sentence: str
) -> None:
    result = app("users", "create-admin", email, url=clone_url, stdin=password)

    assert_failed(result, sentence)
    assert aftermath(clone_url, "SELECT * FROM users") == []


def test_a_password_that_is_not_utf8_is_reported(app: Command, clone_url: str) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"correct horse \xff battery"), encoding="utf-8")

    result = app("users", "create-admin", "ada@example.com", url=clone_url, stdin=stdin)

    assert_failed(result, "the input is not valid UTF-8")
    assert aftermath(clone_url, "SELECT * FROM users") == []


@pytest.mark.parametrize(
    ("full_name", "sentence"),
    [
        pytest.param("", "full-name: This must have at least 1 characters.", id="empty"),
        pytest.param(" ", "full-name: This must not be blank.", id="blank"),
        pytest.param("x" * 129, "full-name: This may have at most 128 characters.", id="long"),
        pytest.param("\x1b[31m", "full-name: This holds a control character. Remove it.", id="a control character"),
        pytest.param("a\u202eb", "full-name: This holds an invisible character. Remove it.", id="another direction"),
        pytest.param("\udcff", "full-name: This must be valid Unicode.", id="no text"),
    ],
)
def test_create_admin_rejects_the_same_names_as_the_api(
    app: Command, clone_url: str, full_name: str, sentence: str
) -> None:
    command = ("users", "create-admin", "ada@example.com", "--full-name", full_name)

    assert_failed(app(*command, url=clone_url, stdin=PASSWORD), sentence)
    assert aftermath(clone_url, "SELECT * FROM users") == []


def test_create_admin_reports_all_invalid_fields(app: Command, clone_url: str) -> None:
    result = app("users", "create-admin", "nobody", "--full-name", " ", url=clone_url, stdin=PASSWORD)

    assert_failed(result, "email: This is not an email address. full-name: This must not be blank.")


def test_create_admin_reports_a_taken_address(app: Command, clone_url: str) -> None:
    app("users", "create-admin", "ada@example.com", url=clone_url, stdin=PASSWORD)

    result = app("users", "create-admin", "ADA@example.com", url=clone_url, stdin=PASSWORD)

    assert_failed(result, "Another account already uses this email address.")
    assert aftermath(clone_url, "SELECT email FROM users") == [{"email": "ada@example.com"}]


def test_create_admin_reports_a_missing_schema(app: Command, empty_url: str) -> None:
    result = app("users", "create-admin", "ada@example.com", url=empty_url, stdin=PASSWORD)

    assert_failed(
        result,
        'database error: relation "users" does not exist; check the schema with `app migrate --check`',
    )


def test_create_admin_reports_an_unreachable_database(app: Command) -> None:
    code, _, errors = app("users", "create-admin", "ada@example.com", stdin=PASSWORD)

    assert code == 1
    assert errors.startswith("app: cannot reach the database: ")
    assert errors.count("\n") == 1


def test_create_admin_reports_a_wrong_database_password(app: Command, clone_url: str) -> None:
    url = changed(clone_url, password="wrong")

    result = app("users", "create-admin", "ada@example.com", url=url, stdin=PASSWORD)

    user = make_url(clone_url).username
    assert_failed(result, f'cannot reach the database: password authentication failed for user "{user}"')


LIVE_SESSION = """
WITH owner AS (
    INSERT INTO users (id, email, email_key, authz_version, role)
    VALUES (gen_random_uuid(), 'ada@example.com', 'ada@example.com', 1, 'user') RETURNING id
)
INSERT INTO sessions (id, user_id, nonce, pepper_id, scope, idle_expires_at, absolute_expires_at, device_family)
SELECT gen_random_uuid(), id, '', 1, '', now() + interval '1 h', now() + interval '1 h', '' FROM owner
"""


@pytest.mark.parametrize(("arguments", "stdin"), [(["--yes"], ""), ([], "y\n")])
def test_revoke_all_ends_all_sessions_after_a_confirmation(
    app: Command, clone_url: str, arguments: list[str], stdin: str
) -> None:
    aftermath(clone_url, LIVE_SESSION)

    code, out, _ = app("sessions", "revoke-all", *arguments, url=clone_url, stdin=stdin)

    assert code == 0
    assert out.endswith("Ended 1 login session.\n")
    assert aftermath(clone_url, "SELECT revoke_reason FROM sessions") == [{"revoke_reason": "all"}]
    assert app("sessions", "revoke-all", "--yes", url=clone_url)[1] == "Ended 0 login sessions.\n"


@pytest.mark.parametrize("stdin", ["n\n", ""])
def test_revoke_all_ends_no_session_without_a_confirmation(app: Command, clone_url: str, stdin: str) -> None:
    aftermath(clone_url, LIVE_SESSION)

    code, _, _ = app("sessions", "revoke-all", url=clone_url, stdin=stdin)

    assert code == 1
    assert aftermath(clone_url, "SELECT revoke_reason FROM sessions") == [{"revoke_reason": None}]
    assert aftermath(clone_url, "SELECT * FROM session_cutoffs") == []


def test_generated_keys_are_readable_only_by_their_owner(app: Command, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"

    code, out, _ = app("keys", "generate", str(file))

    assert (code, out) == (0, f"Wrote {file}; set APP_AUTH__SIGNING_KEYS_FILE to it.\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert parse_key_ring(file.read_text(), source="here").active


def test_generating_keys_does_not_overwrite_a_file(app: Command, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text("precious")

    result = app("keys", "generate", str(file))

    assert_failed(result, f"{file}: File exists")
    assert file.read_text() == "precious"


def test_generating_keys_does_not_follow_a_symbolic_link(app: Command, tmp_path: Path) -> None:
    target = tmp_path / "target"
    link = tmp_path / "keys.json"
    link.symlink_to(target)

    result = app("keys", "generate", str(link))

    assert_failed(result, f"{link}: File exists")
    assert not target.exists()


def test_generating_keys_needs_an_existing_directory(app: Command, tmp_path: Path) -> None:
    file = tmp_path / "missing" / "keys.json"

    assert_failed(app("keys", "generate", str(file)), f"{file}: No such file or directory")


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize("command", [("serve",), ("serve", "--workers", "2"), ("worker",)])
def test_a_process_does_not_start_without_its_keys(app: Command, command: tuple[str, ...]) -> None:
    # The option overwrites APP_SERVER__WORKERS. Setting it here restores it after the test.
    result = app(*command, APP_AUTH__SIGNING_KEYS="{}", APP_SERVER__WORKERS="1")

    assert_failed(result, "APP_AUTH__SIGNING_KEYS: this is not a private key set in the format of `app keys generate`")


def test_all_invalid_settings_are_reported(app: Command) -> None:
    code, _, errors = app("serve", APP_ENVIRONMENT="production", PORT="many", APP_AUTH__ISUER="x")

    assert code == 1
    assert errors.startswith("app: The settings cannot be used:\n  - ")
    assert all(name in errors for name in ("PORT", "APP_AUTH__ISUER", "APP_SERVER__PUBLIC_URL"))


@pytest.mark.parametrize("arguments", [["--help"], ["migrate", "--help"], ["users", "create-admin", "--help"]])
def test_each_command_has_a_help_text(app: Command, arguments: list[str]) -> None:
    code, out, _ = app(*arguments)

    assert code == 0
    assert "Usage: " in out


@pytest.mark.parametrize("number", ["0", str(2**63), "9" * 30])
def test_an_invalid_job_id_is_a_usage_error(app: Command, number: str) -> None:
    code, out, errors = app("jobs", "retry", number)

    assert (code, out) == (2, "")
    assert "Invalid value for 'ids': Input should be" in errors


def test_an_unknown_command_is_a_usage_error(app: Command) -> None:
    code, _, errors = app("frobnicate")

    assert code == 2
    assert "frobnicate" in errors


def test_python_m_app_runs_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["app", "--help"])
    # Another test may have imported the module, and `runpy` would warn about that.
    monkeypatch.delitem(sys.modules, "app.__main__", raising=False)

    with pytest.raises(SystemExit):
        runpy.run_module("app", run_name="__main__")

    assert "Usage: " in capsys.readouterr().out


def test_the_installed_script_runs_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["app", "--help"])
    (command,) = entry_points(group="console_scripts", name="app")

    with pytest.raises(SystemExit):
        command.load()()

    assert "Usage: " in capsys.readouterr().out


def test_the_garbage_collector_ignores_the_loaded_modules() -> None:
    program = """
import gc, json, os, sys
from app.__main__ import main
# Rich would be imported for the help, after the modules are frozen.
os.environ["TYPER_USE_RICH"] = "false"
sys.argv = ["app", "--help"]
try:
    main()
finally:
    collections = sum(generation["collections"] for generation in gc.get_stats())
    print("\\n", json.dumps([gc.isenabled(), collections, gc.get_freeze_count()]))
"""

    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout

    is_enabled, collections, frozen = json.loads(output.splitlines()[-1])
    assert is_enabled
    # The start of the interpreter and the help cause some collections. Loading would add about eighty.
    assert collections < 30
    assert frozen > 100_000


def test_a_feature_may_import_rich() -> None:
    program = """
from app.loading import loading
with loading():
    import structlog, rich.table
    from app import cli
assert rich.table.Table
cli.main()
"""

    done = subprocess.run([sys.executable, "-c", program, "--help"], check=False, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage:" in done.stdout


def test_a_failing_process_prints_no_traceback() -> None:
    environment = {"APP_ENVIRONMENT": "test", "DATABASE_URL": NOWHERE, "PATH": "/usr/bin:/bin"}

    ended = subprocess.run(
        [sys.executable, "-m", "app", "migrate"], env=environment, capture_output=True, text=True, check=False
    )

    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("app: cannot connect to PostgreSQL at 127.0.0.1:1: ")
    assert ended.stderr.count("\n") == 1


def test_a_process_writes_the_sql_to_standard_output() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "app", "migrate", "--sql"], env={}, capture_output=True, text=True, check=False
    )

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, runner.sql(), "")
