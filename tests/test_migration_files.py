"""Migration files as Alembic writes them, invalid files, and histories with branches: what the commands do and report."""

import asyncio
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import alembic
import asyncpg
import pytest
from alembic import command
from alembic.util import CommandError
from sqlalchemy import make_url

from app.cli import main
from app.core.db.database import Database
from app.dev import run as make_run
from app.dev.ports import free_port
from app.main import create_app
from app.migrations import revisions, runner, scripts
from app.migrations.errors import MigrationError, MigrationFileError
from tests.conftest import KEY_SET, ROOT, make_settings, running
from tests.listings import listings

MIGRATIONS = ROOT / "src" / "app" / "migrations"
NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"

type Command = Callable[..., tuple[int, str, str]]


class Repository:
    """A repository with its own migrations."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.migrations = root / "src" / "app" / "migrations"
        self.versions = self.migrations / "versions"
        self.versions.mkdir(parents=True)
        for name in ("env.py", "script.py.mako"):
            shutil.copy(MIGRATIONS / name, self.migrations)
        shutil.copy(ROOT / "pyproject.toml", root)

    def write(self, name: str, down: str | tuple[str, ...] | None = None, **more: Any) -> None:
        """Write a migration that creates a table with its name."""
        named = {"revision": name, "down_revision": down} | more
        lines = [f'"""Make {name}."""', "", "from alembic import op", ""]
        lines += [f"{key} = {value!r}" for key, value in named.items()]
        lines += ["", "def upgrade() -> None:", f"    op.execute('CREATE TABLE \"{name}\" ()')", ""]
        lines += ["def downgrade() -> None:", f"    op.execute('DROP TABLE \"{name}\"')", ""]
        (self.versions / f"{name}.py").write_text("\n".join(lines))

    def branch(self) -> None:
        """Write one migration and two that follow it."""
        self.write("root")
        self.write("left", "root")
        self.write("right", "root")

    def alembic(self, *arguments: str) -> None:
        """Run Alembic's own command in the repository."""
        subprocess.run([sys.executable, "-m", "alembic", *arguments], cwd=self.root, check=True, capture_output=True)
        revisions._revisions.cache_clear()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    """A repository without migrations, which the commands use."""
    repository = Repository(tmp_path / "repository")
    monkeypatch.setattr(revisions, "DIRECTORY", repository.migrations)
    revisions._revisions.cache_clear()
    yield repository
    monkeypatch.undo()
    revisions._revisions.cache_clear()


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command on a database. Return its exit code, its output and its error output."""

    def run(*arguments: str, url: str = NOWHERE) -> tuple[int, str, str]:
        settings = {"APP_ENVIRONMENT": "test", "APP_AUTH__SIGNING_KEYS": KEY_SET, "DATABASE_URL": url}
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["app", *arguments])
        # A new process would read the files again.
        revisions._revisions.cache_clear()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def query(url: str, statement: str) -> list[Any]:
    """Execute a statement on a separate connection, while no event loop runs."""

    async def fetch() -> list[Any]:
        plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        connection = await asyncpg.connect(plain)
        try:
            return [row[0] for row in await connection.fetch(statement)]
        finally:
            await connection.close()

    return asyncio.run(fetch())


@pytest.fixture
async def empty_url(clone_url: str) -> str:
    """A database without a schema."""
    plain = make_url(clone_url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(plain)
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await connection.close()
    return clone_url


def tables(url: str) -> set[str]:
    return {*query(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")} - {"alembic_version"}


def stored(url: str) -> set[str]:
    return {*query(url, "SELECT version_num FROM alembic_version")}


async def readiness(url: str) -> tuple[int, str | None]:
    settings = make_settings(url)
    database = Database(settings.database)
    async with running(create_app(settings, database)) as client:
        response = await client.get("/readyz")
    await database.dispose()
    return response.status_code, response.json().get("detail")


ALEMBIC_TEMPLATE = Path(alembic.__file__).parent / "templates" / "generic" / "script.py.mako"


@pytest.mark.parametrize("template", [MIGRATIONS / "script.py.mako", ALEMBIC_TEMPLATE], ids=["ours", "Alembic's"])
def test_a_draft_of_alembic_works_unchanged(
    app: Command,
    repository: Repository,
    clone_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    template: Path,
) -> None:
    shutil.copytree(MIGRATIONS / "versions", repository.versions, dirs_exist_ok=True)
    shutil.copy(template, repository.migrations / "script.py.mako")
    query(clone_url, "ALTER TABLE users DROP COLUMN full_name")
    before = revisions.head()
    monkeypatch.setenv("DATABASE_URL", clone_url)
    command.revision(scripts.config(), message="a draft", autogenerate=True, rev_id="20991231_a_draft")
    capsys.readouterr()

    unmigrated = app("migrate", "--check", url=clone_url)
    migrated = app("migrate", url=clone_url)
    again = app("migrate", url=clone_url)

    assert unmigrated == (
        1,
        "",
        f"app: the schema is at revision {before}, this program needs 20991231_a_draft; run `app migrate`\n",
    )
    assert migrated == (0, f"The schema is at 20991231_a_draft now; it was at {before}.\n", "")
    assert again == (0, "The schema is already at 20991231_a_draft. Nothing was changed.\n", "")
    assert query(clone_url, "SELECT count(full_name) FROM users") == [0]
    assert app("migrate", "--check", url=clone_url)[0] == 0
    assert "full_name" in app("migrate", "--sql")[1]
    assert asyncio.run(readiness(clone_url)) == (200, None)


@pytest.mark.parametrize(
    "declaration",
    [
        "revision: str = 'b'\ndown_revision: Union[str, Sequence[str], None] = 'a'",
        "revision: str = 'b'\ndown_revision: str | None = ('a',)\ndepends_on: Union[str, None] = None",
        "down_revision = ['a']; revision = 'b'  # Two on one line.",
        "import sys\n\nrevision = 'b' if sys else ''\ndown_revision = chr(97)",
    ],
)
def test_revisions_are_read_in_any_python_notation(repository: Repository, declaration: str) -> None:
    repository.write("a")
    (repository.versions / "b.py").write_text(f"from typing import Sequence, Union\n\n{declaration}\n")

    assert revisions.head() == "b"
    assert revisions.known() == {"a", "b"}


def test_two_heads_are_reported_with_the_command_that_merges_them(
    app: Command, repository: Repository, empty_url: str
) -> None:
    repository.branch()
    code, out, error = app("migrate", url=empty_url)
    assert (code, out, error.count("\n")) == (1, "", 1)
    assert error.startswith("app: left.py and right.py are the newest migrations of separate branches; merge them: ")

    program, *arguments = shlex.split(error.partition("merge them: ")[2])
    repository.alembic(*arguments)

    assert program == ".venv/bin/alembic"
    (merge,) = {script.stem for script in repository.versions.glob("*.py")} - {"root", "left", "right"}
    assert re.fullmatch(r"20\d{6}_merge", merge)
    for check in (["check"], ["format", "--check"]):
        file = repository.versions / f"{merge}.py"
        subprocess.run([sys.executable, "-m", "ruff", *check, "--no-cache", file], cwd=repository.root, check=True)
    assert app("migrate", url=empty_url) == (0, f"The schema is at {merge} now; it was at none.\n", "")
    assert tables(empty_url) == {"root", "left", "right"}
    assert stored(empty_url) == {merge}


def test_branches_can_be_merged_twice_on_one_day(repository: Repository) -> None:
    repository.branch()
    for number in ("", "_2"):
        with pytest.raises(MigrationFileError) as refused:
            revisions.head()
        _, *arguments = shlex.split(str(refused.value).partition("merge them: ")[2])
        repository.alembic(*arguments)

        assert re.fullmatch(rf"20\d{{6}}_merge{number}", revisions.head())
        repository.write(f"late{number}", "left")
        revisions._revisions.cache_clear()


@pytest.fixture
def merged(repository: Repository) -> Repository:
    """A history with two branches, their merge, and a migration after it."""
    repository.branch()
    repository.write("merge", ("left", "right"))
    repository.write("top", "merge")
    return repository


@pytest.mark.usefixtures("merged")
@pytest.mark.parametrize(
    ("targets", "expected_revisions", "expected_tables"),
    [
        (["top"], {"top"}, {"root", "left", "right", "merge", "top"}),
        (["merge"], {"merge"}, {"root", "left", "right", "merge"}),
        (["head", "merge"], {"merge"}, {"root", "left", "right", "merge"}),
        # The other branch does not need this one, so it stays.
        (["head", "left"], {"left", "right"}, {"root", "left", "right"}),
        (["head", "left", "right"], {"left", "right"}, {"root", "left", "right"}),
        (["head", "left", "root"], {"root"}, {"root"}),
        (["head", "left", "head"], {"top"}, {"root", "left", "right", "merge", "top"}),
        (["head", "root"], {"root"}, {"root"}),
        (["head", "base"], set(), set()),
        (["left"], {"left"}, {"root", "left"}),
        (["left", "right"], {"left", "right"}, {"root", "left", "right"}),
        (["left", "heads"], {"top"}, {"root", "left", "right", "merge", "top"}),
        (["head", "-1"], {"merge"}, {"root", "left", "right", "merge"}),
        (["left", "+1"], {"merge"}, {"root", "left", "right", "merge"}),
        (["+1"], {"root"}, {"root"}),
        (["left", "-2"], set(), set()),
        (["roo"], {"root"}, {"root"}),
    ],
)
def test_a_schema_can_be_migrated_to_any_revision_around_a_merge(
    app: Command, empty_url: str, targets: list[str], expected_revisions: set[str], expected_tables: set[str]
) -> None:
    for target in targets:
        code, _, error = app("migrate", "--to", target, url=empty_url)
        assert (code, error) == (0, "")

    assert stored(empty_url) == expected_revisions
    assert tables(empty_url) == expected_tables
    assert app("migrate", url=empty_url)[0] == 0
    assert stored(empty_url) == {"top"}


@pytest.mark.usefixtures("merged")
@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        (["head", "-2"], "left and right are before merge; name a revision"),
        (["root", "+1"], "left and right are after root; name a revision"),
        (["head", "+1"], "no migration is after top; name a revision"),
        (["-1"], "no migration is before base; name a revision"),
        (["head", "left", "-1"], "the schema is at left and right, so a number of steps is ambiguous; name a revision"),
        (
            ["head-1"],
            "cannot migrate to head-1; name a revision, `head`, `base`, or a number of steps such as -1 or +1",
        ),
        (
            ["left:right"],
            "cannot migrate to left:right; name a revision, `head`, `base`, or a number of steps such as -1 or +1",
        ),
        (["gone"], "gone does not name exactly one migration; `app migrate --status` lists them"),
    ],
)
def test_an_ambiguous_or_unknown_target_is_refused_and_changes_nothing(
    app: Command, empty_url: str, targets: list[str], sentence: str
) -> None:
    for target in targets[:-1]:
        app("migrate", "--to", target, url=empty_url)
    before = tables(empty_url)

    assert app("migrate", "--to", targets[-1], url=empty_url) == (1, "", f"app: {sentence}\n")
    assert tables(empty_url) == before


@pytest.mark.usefixtures("merged")
@pytest.mark.parametrize("target", ["-1", "+1", "base"])
def test_sql_from_an_empty_database_needs_a_revision(app: Command, target: str) -> None:
    sentence = f"--sql starts at an empty database and cannot migrate to {target}; name a revision"

    assert app("migrate", "--sql", "--to", target) == (1, "", f"app: {sentence}\n")


@pytest.mark.usefixtures("merged")
def test_the_sql_of_a_merge_creates_the_same_schema(app: Command, empty_url: str) -> None:
    async def execute(statements: str) -> None:
        plain = make_url(empty_url).set(drivername="postgresql").render_as_string(hide_password=False)
        connection = await asyncpg.connect(plain)
        await connection.execute(statements)
        await connection.close()

    code, statements, _ = app("migrate", "--sql")
    asyncio.run(execute(statements))

    assert code == 0
    assert tables(empty_url) == {"root", "left", "right", "merge", "top"}
    assert app("migrate", url=empty_url) == (0, "The schema is already at top. Nothing was changed.\n", "")


def test_a_branch_that_another_one_depends_on_is_not_a_second_head(
    app: Command, repository: Repository, empty_url: str
) -> None:
    repository.branch()
    repository.write("later", "left", depends_on="right")

    assert app("migrate", "--to", "left", url=empty_url)[0] == 0
    assert app("migrate", url=empty_url) == (0, "The schema is at later now; it was at left.\n", "")
    assert tables(empty_url) == {"root", "left", "right", "later"}
    assert app("migrate", "--check", url=empty_url)[0] == 0
    assert 'CREATE TABLE "right"' in app("migrate", "--sql")[1]
    refused = app("migrate", "--to", "right", url=empty_url)
    assert refused[2] == "app: later depends on right from another branch; migrate to a revision of that branch first\n"
    assert app("migrate", "--to", "left", url=empty_url)[0] == 0
    assert tables(empty_url) == {"root", "left", "right"}
    assert app("migrate", "--to", "base", url=empty_url)[0] == 0
    assert tables(empty_url) == set()


def test_a_branch_can_be_named_by_its_label(app: Command, repository: Repository, empty_url: str) -> None:
    repository.branch()
    repository.write("named", "right", branch_labels=("side",))
    repository.write("later", "left", depends_on=("side",))

    assert app("migrate", url=empty_url)[0] == 0
    assert tables(empty_url) == {"root", "left", "right", "named", "later"}


def test_a_draft_is_named_after_its_date_and_its_message(
    repository: Repository, clone_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(MIGRATIONS / "versions", repository.versions, dirs_exist_ok=True)
    monkeypatch.setenv("DATABASE_URL", clone_url)

    repository.alembic("revision", "--autogenerate", "-m", "Add a colour to each of the accounts.")

    assert re.fullmatch(r"20\d{6}_add_a_colour_to_each_of", revisions.head())
    assert (repository.versions / f"{revisions.head()}.py").exists()


def test_a_draft_keeps_its_label_and_its_dependencies(repository: Repository) -> None:
    repository.branch()
    options = [
        "--head",
        "left",
        "--branch-label",
        "side",
        "--depends-on",
        "right",
        "--rev-id",
        "draft",
        "-m",
        "A draft.",
    ]

    repository.alembic("revision", *options)

    script = scripts.read().get_revision("draft")
    assert (script.down_revision, script.dependencies) == ("left", "right")
    assert "side" in script.branch_labels
    assert Path(script.path).name == "draft.py"


def test_the_migration_for_a_role_in_the_recipes_makes_the_database_accept_it(
    app: Command, repository: Repository, clone_url: str
) -> None:
    shutil.copytree(MIGRATIONS / "versions", repository.versions, dirs_exist_ok=True)
    (functions,) = (one.text for one in listings(ROOT / "docs/recipes.md") if "def allow(roles" in one.text)
    header = f'from alembic import op\n\nrevision = "editor"\ndown_revision = {revisions.head()!r}\n\n\n'
    (repository.versions / "editor.py").write_text(header + functions)
    written = repository.root / "migrations.sql"
    editor = "INSERT INTO users (id, email, email_key, role) VALUES (gen_random_uuid(), '', '', 'editor')"

    code, _, _ = app("migrate", url=clone_url)
    query(clone_url, editor)
    written.write_text(app("migrate", "--sql")[1])
    back, _, _ = app("migrate", "--to", "-1", url=clone_url)

    assert (code, back) == (0, 0)
    assert query(clone_url, "SELECT role FROM users") == ["user"]
    with pytest.raises(asyncpg.CheckViolationError):
        query(clone_url, editor)
    squawk = (Path(sys.executable).with_name("squawk"), "--config", ROOT / ".squawk.toml", written)
    subprocess.run(squawk, check=True, capture_output=True)


INVALID_FILES: dict[str, tuple[dict[str, str], str]] = {
    "a syntax error": (
        {"b.py": 'revision = "b"\ndown_revision = = "a"\n'},
        "b.py, line 2: this migration cannot be loaded (SyntaxError: ",
    ),
    "a name that is not defined": (
        {"b.py": 'revision = "b"\ndown_revision = "a"\ntype = sa.Text()\n'},
        "b.py, line 3: this migration cannot be loaded (NameError: name 'sa' is not defined); correct the file",
    ),
    "a missing module": (
        {"b.py": "import nowhere.at_all\n"},
        "b.py, line 1: this migration cannot be loaded (ModuleNotFoundError: No module named 'nowhere'); correct the file",
    ),
    "bytes that are not text": ({"b.py": "\0"}, "b.py"),
    "no revision": (
        {"b.py": 'down_revision = "a"\n'},
        "b.py: define `revision`, its own name, and `down_revision`, the name of the previous migration",
    ),
    "no down_revision": (
        {"b.py": 'revision = "b"\n'},
        "b.py: define `revision`, its own name, and `down_revision`, the name of the previous migration",
    ),
    "a number for a revision": (
        {"b.py": "revision = 2\ndown_revision = 'a'\n"},
        "b.py: define `revision`, its own name, and `down_revision`, the name of the previous migration",
    ),
    "a number for a parent": (
        {"b.py": "revision = 'b'\ndown_revision = 1\n"},
        "b.py: `down_revision` and `depends_on` must be None, a revision or a tuple of revisions",
    ),
    "a name that is too long for the version table": (
        {"b.py": f"revision = {'b' * 33!r}\ndown_revision = 'a'\n"},
        f"b.py: the revision {'b' * 33} has 33 characters; shorten it to at most 32",
    ),
    "characters that Alembic reserves": (
        {"b.py": "revision = 'b@c'\ndown_revision = 'a'\n"},
        "Alembic rejects the migration files: Character(s) '@' not allowed in revision identifier 'b@c'",
    ),
    "a parent that does not exist": (
        {"b.py": "revision = 'b'\ndown_revision = 'gone'\n"},
        "b.py: `down_revision` names gone, which no migration file defines; restore that file or name another revision",
    ),
    "a dependency that does not exist": (
        {"b.py": "revision = 'b'\ndown_revision = 'a'\ndepends_on = ('gone',)\n"},
        "b.py: `depends_on` names gone, which no migration file defines; restore that file or name another revision",
    ),
    "one revision twice": (
        {"b.py": "revision = 'b'\ndown_revision = 'a'\n", "c.py": "revision = 'b'\ndown_revision = 'a'\n"},
        "b.py and c.py have the same revision b; change one of them",
    ),
    "a cycle": (
        {"b.py": "revision = 'b'\ndown_revision = 'c'\n", "c.py": "revision = 'c'\ndown_revision = 'b'\n"},
        "b.py and c.py: these migrations form a cycle; correct `down_revision` or `depends_on`",
    ),
    "a migration that follows itself": (
        {"b.py": "revision = 'b'\ndown_revision = 'b'\n"},
        "b.py: these migrations form a cycle; correct `down_revision` or `depends_on`",
    ),
    "a cycle of dependencies": (
        {
            "b.py": "revision = 'b'\ndown_revision = 'a'\ndepends_on = 'c'\n",
            "c.py": "revision = 'c'\ndown_revision = 'b'\n",
        },
        "b.py and c.py: these migrations form a cycle; correct `down_revision` or `depends_on`",
    ),
    "two heads": (
        {"b.py": "revision = 'b'\ndown_revision = 'a'\n", "c.py": "revision = 'c'\ndown_revision = 'a'\n"},
        "b.py and c.py are the newest migrations of separate branches; merge them: .venv/bin/alembic merge heads ",
    ),
}


@pytest.mark.parametrize(("files", "sentence"), INVALID_FILES.values(), ids=INVALID_FILES.keys())
def test_files_that_do_not_form_a_history_are_reported_in_one_sentence(
    app: Command, repository: Repository, empty_url: str, files: dict[str, str], sentence: str
) -> None:
    repository.write("a")
    for name, text in files.items():
        (repository.versions / name).write_text(text)

    for arguments in (["migrate"], ["migrate", "--check"], ["migrate", "--sql"], ["migrate", "--to", "head"]):
        code, out, error = app(*arguments, url=empty_url)

        assert (code, out, error.count("\n")) == (1, "", 1), error
        assert error.startswith(f"app: {sentence}")
    assert tables(empty_url) == set()


def test_a_file_that_cannot_be_read_is_named(app: Command, repository: Repository) -> None:
    repository.write("a")
    (repository.versions / "b.py").symlink_to("nowhere.py")

    code, _, error = app("migrate", "--sql")

    assert (code, error.count("\n")) == (1, 1)
    assert error.startswith("app: b.py: this migration cannot be loaded (ImportError: ")
    with pytest.raises(MigrationFileError, match=r"b\.py: this migration cannot be loaded"):
        revisions.head()


def test_a_folder_without_migrations_is_named(app: Command, repository: Repository) -> None:
    sentence = f"app: there is no migration in {repository.versions}\n"

    assert app("migrate", "--sql") == (1, "", sentence)


def test_a_migration_that_fails_is_named_and_changes_nothing(
    app: Command, repository: Repository, empty_url: str
) -> None:
    # In a draft, Alembic writes the name of a custom type without an import.
    text = "from alembic import op\nrevision = 'b'\ndown_revision = 'a'\n\ndef upgrade():\n    app.auth.XID8()\n"
    repository.write("a")
    (repository.versions / "b.py").write_text(text)
    sentence = "app: b.py, line 6: this migration fails (NameError: name 'app' is not defined); correct the file\n"

    assert app("migrate", url=empty_url) == (1, "", sentence)
    assert app("migrate", "--sql") == (1, "", sentence)
    assert stored(empty_url) == {"a"}


def test_a_migration_without_a_downgrade_is_named(app: Command, repository: Repository, empty_url: str) -> None:
    repository.write("a")
    (repository.versions / "b.py").write_text("revision = 'b'\ndown_revision = 'a'\n\ndef upgrade():\n    pass\n")
    app("migrate", url=empty_url)

    code, out, error = app("migrate", "--to", "a", url=empty_url)

    assert (code, out, stored(empty_url)) == (1, "", {"b"})
    assert error.startswith("app: b.py: this migration fails (AttributeError: ")


def test_an_error_outside_the_migrations_is_not_converted(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.write("a")
    monkeypatch.setattr(command, "upgrade", lambda *_, **__: SimpleNamespace().missing)

    with pytest.raises(AttributeError):
        runner.sql()


def test_an_error_of_alembic_is_reported_with_its_text(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise CommandError("Only a test refuses this")

    repository.write("a")
    monkeypatch.setattr(command, "upgrade", refuse)

    with pytest.raises(MigrationError, match="Only a test refuses this"):
        runner.sql()


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize("process", ["serve", "worker"])
def test_a_process_does_not_start_on_two_heads(app: Command, repository: Repository, process: str) -> None:
    repository.branch()

    code, _, error = app(process)

    assert code == 1
    assert error.startswith("app: left.py and right.py are the newest migrations of separate branches; merge them: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        ("app", "migrate"),
        ("app", "migrate", "--check"),
        ("app", "migrate", "--sql"),
        ("app", "migrate", "--to", "base"),
        ("app", "serve"),
        ("app", "worker"),
        ("app.dev", "run"),
        ("app.dev", "migrations"),
        ("app.dev", "docs", "--check"),
    ],
    ids=" ".join,
)
@pytest.mark.slow
def test_no_command_ends_with_a_traceback(copy_with_two_heads: Path, command: tuple[str, ...]) -> None:
    # `--to base` does not need a head, so it connects to the database.
    reason = (
        "cannot connect to PostgreSQL" if "base" in command else "and right.py are the newest migrations of separate "
    )
    environment = {
        "PYTHONPATH": str(copy_with_two_heads / "src"),
        "APP_ENVIRONMENT": "test",
        "APP_AUTH__SIGNING_KEYS": KEY_SET,
        "DATABASE_URL": NOWHERE,
        "PORT": str(free_port()),
        "PATH": os.environ["PATH"],
    }

    ended = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=copy_with_two_heads,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (ended.returncode, ended.stdout) == (1, "")
    assert reason in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def copy_with_two_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the program with two migrations that follow the newest one."""
    copy = tmp_path_factory.mktemp("two-heads")
    # The copy includes the bytecode, which stays valid for files of the same size and modification time.
    shutil.copytree(ROOT / "src", copy / "src")
    shutil.copytree(ROOT / "docs", copy / "docs")
    for name in ("left", "right"):
        text = f'"""Nothing."""\n\nrevision = "{name}"\ndown_revision = "{revisions.head()}"\n'
        (copy / "src" / "app" / "migrations" / "versions" / f"{name}.py").write_text(text)
    return copy


def test_make_run_reports_two_heads_before_it_starts_a_database(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    repository.branch()
    monkeypatch.setattr(make_run, "LOCAL", tmp_path / "local")
    monkeypatch.setenv("PORT", "0")

    assert make_run.run() == 1
    assert capsys.readouterr().err.startswith("left.py and right.py are the newest migrations of separate branches; ")
    assert not (tmp_path / "local" / "postgres").exists()


# --status


@pytest.mark.usefixtures("merged")
@pytest.mark.parametrize(
    ("targets", "summary", "states"),
    [
        ([], "No migration has run yet. Pending migrations: 5. Run `app migrate`.", "ppppp"),
        (["left"], "The schema is at left. Pending migrations: 3. Run `app migrate`.", "aappp"),
        (["head", "left"], "The schema is at left and right. Pending migrations: 2. Run `app migrate`.", "aaapp"),
        (["head"], "The schema is at top.", "aaaaa"),
    ],
)
def test_the_status_lists_applied_and_pending_migrations(
    app: Command, empty_url: str, targets: list[str], summary: str, states: str
) -> None:
    for target in targets:
        app("migrate", "--to", target, url=empty_url)

    code, out, error = app("migrate", "--status", url=empty_url)

    first, blank, *listed = out.splitlines()
    assert (code, error, first, blank) == (0, "", summary, "")
    words = {"p": "pending", "a": "applied"}
    # Alembic decides the order of the branches.
    expected = zip(states, ("root", "left", "right", "merge", "top"), strict=True)
    assert {" ".join(line.split()) for line in listed} == {f"{words[s]} {name} Make {name}." for s, name in expected}
    assert listed[0].split()[1] == "root"
    assert listed[-1].split()[1] == "top"


def test_the_status_names_a_revision_of_a_newer_release(app: Command, repository: Repository, empty_url: str) -> None:
    repository.write("a")
    app("migrate", url=empty_url)
    query(empty_url, "UPDATE alembic_version SET version_num = 'future'")

    code, out, _ = app("migrate", "--status", url=empty_url)

    assert code == 0
    assert out.splitlines() == [
        "The schema is at future. future belongs to a newer release.",
        "",
        "  unknown  a  Make a.",
    ]


def test_the_status_reports_two_heads(app: Command, repository: Repository, empty_url: str) -> None:
    repository.write("root")
    app("migrate", url=empty_url)
    repository.branch()

    code, out, _ = app("migrate", "--status", url=empty_url)

    first, second, _, *listed = out.splitlines()
    assert (code, first) == (0, "The schema is at root.")
    assert second.startswith(
        "No migration can run: left.py and right.py are the newest migrations of separate branches; "
    )
    assert sorted(line.split()[0] for line in listed) == ["applied", "pending", "pending"]


def test_the_options_of_migrate_exclude_each_other(app: Command) -> None:
    code, out, error = app("migrate", "--status", "--check")

    assert (code, out) == (2, "")
    assert "choose one of --sql, --check and --status" in error


# The cache


def test_alembic_reads_the_files_once(repository: Repository) -> None:
    repository.write("a")
    program = (
        "import sys; from pathlib import Path; from app.migrations import revisions;"
        f"revisions.DIRECTORY = Path({str(repository.migrations)!r});"
        "print(revisions.head(), 'alembic' in sys.modules)"
    )

    def start() -> str:
        return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout

    assert [start(), start()] == ["a True\n", "a False\n"]
    repository.write("b", "a")
    assert [start(), start()] == ["b True\n", "b False\n"]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"digest": "old", "head": "z", "known": ["z"]}'])
def test_an_invalid_cache_is_written_again(repository: Repository, content: bytes) -> None:
    repository.write("a")
    assert revisions.head() == "a"
    written = revisions._cache_file().read_bytes()
    revisions._cache_file().write_bytes(content)
    revisions._revisions.cache_clear()

    assert revisions.head() == "a"
    assert revisions._cache_file().read_bytes() == written


def test_a_start_without_a_writable_cache_works(repository: Repository) -> None:
    repository.write("a")
    # A file in place of the directory: no user can write there, not even root.
    (repository.migrations / "__pycache__").write_text("")

    assert revisions.head() == "a"
    assert revisions.known() == {"a"}
