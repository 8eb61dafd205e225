"""`make remove` of an adopter's own features: what it refuses, and what is left. `test_deployed.py` has those with tables in production."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.dev.generator.plan import plan as generate
from app.dev.removal import migrations
from app.dev.removal.errors import RemovalError
from app.dev.removal.plan import plan
from tests.conftest import ROOT
from tests.dev.removal.conftest import commit, git
from tests.listings import apply, listings

VERSIONS = "src/app/migrations/versions"
DIGESTS = "tests/migrations.sha256"


def refusal(root: Path, name: str) -> str:
    with pytest.raises(RemovalError) as error:
        plan(root, name)
    assert "\n" not in str(error.value)
    return str(error.value)


def contents(root: Path) -> dict[str, bytes]:
    paths = (path for path in root.rglob("*") if path.is_file() and not {".git", "__pycache__"} & set(path.parts))
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program on the source of the copy."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("APP_", "COV", "DATABASE"))}
    environment = inherited | {"PYTHONPATH": str(root / "src")}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=240)


def app_dev(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(root, sys.executable, "-m", "app.dev", *arguments)


def test_removing_two_features_restores_the_repository(copy: Path) -> None:
    (copy / "src/app/violins/__pycache__").mkdir()

    plan(copy, "strings").write()
    commit(copy)
    plan(copy, "violins").write()
    commit(copy)

    assert git(copy, "diff", "--stat", "HEAD~3") == ""
    assert not (copy / "src/app/violins").exists()


def test_a_later_migration_follows_the_one_before_the_removed_one(copy: Path) -> None:
    (old,) = (each for each in migrations.history(copy) if "violins" in each.name)
    plan(copy, "strings").write()
    commit(copy)
    generate(copy, "cellos", "name:str").write()

    plan(copy, "violins").write()

    newest = migrations.history(copy)[-1]
    assert (newest.name[9:], newest.follows) == ("cellos", old.follows)
    digests = subprocess.run(
        ["sha256sum", "--check", copy / DIGESTS], cwd=copy / VERSIONS, check=False, capture_output=True
    )
    assert digests.returncode == 0, digests.stdout


def test_features_can_be_removed_before_those_that_were_added_later(copy: Path) -> None:
    for name in ("cellos", "harps"):
        generate(copy, name, "name:str").write()
    commit(copy)

    for name in ("strings", "cellos", "violins", "harps"):
        plan(copy, name).write()
        commit(copy)

    assert git(copy, "diff", "--stat", "HEAD~6") == ""


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "The name is missing. These can be removed: "),
        ("pianos", 'There is no feature "pianos". These can be removed: '),
        ("users", "users cannot be removed: it has the accounts that all other features refer to. These can: "),
        ("jobs", "jobs cannot be removed: it runs the background work of all features. These can: "),
    ],
)
def test_a_feature_that_cannot_be_removed_is_refused(grown: Path, name: str, sentence: str) -> None:
    refused = refusal(grown, name)

    assert refused.startswith(sentence)
    assert "violins, strings" in refused


def test_a_feature_that_others_need_is_refused_with_the_places(copy: Path) -> None:
    (copy / "tests/strings/test_both.py").write_text("from tests.violins import access\n")
    line = [
        number
        for number, text in enumerate((copy / "src/app/strings/models.py").read_text().splitlines(), 1)
        if "violins.id" in text
    ]

    refused = refusal(copy, "violins")

    assert refused.startswith("Other code needs violins. Change it first: ")
    for place in (
        f"src/app/strings/models.py:{line[0]} has the foreign key violin_id to violins",
        "src/app/strings/service.py imports violins",
        "tests/strings/test_both.py imports violins",
    ):
        assert place in refused


def test_a_table_that_refers_to_the_feature_is_refused(copy: Path) -> None:
    table = 'Table("hints", Base.metadata, Column("string_id", ForeignKeyConstraint(["string_id"], ["strings.id"])))\n'
    (copy / "src/app/violins/hints.py").write_text(table)

    assert "src/app/violins/hints.py:1 has the foreign key to strings" in refusal(copy, "strings")


def test_changes_that_are_not_committed_are_not_deleted(copy: Path) -> None:
    for path in (
        "src/app/strings/service.py",
        "src/app/strings/new.py",
        "tests/strings/new.py",
        "tests/strings/other.py",
    ):
        with (copy / path).open("a") as file:
            file.write("# Ours.\n")
    before = contents(copy)

    refused = refusal(copy, "strings")
    plan(copy, "strings", is_forced=True)

    assert refused == (
        "src/app/strings/service.py, src/app/strings/new.py, tests/strings/new.py and 1 more would be lost, because of changes "
        "that are not committed. Commit them, or delete them with FORCE=1."
    )
    assert contents(copy) == before


def test_without_git_nothing_is_deleted(copy: Path) -> None:
    shutil.rmtree(copy / ".git")

    assert refusal(copy, "strings").endswith("FORCE=1 deletes them anyway.")


def test_nothing_is_changed_if_a_file_cannot_be_deleted(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(copy)
    unlink = Path.unlink

    def refuse_last(path: Path, *, missing_ok: bool = False) -> None:
        if path.name.endswith("_strings.py"):
            raise OSError(30, "Read-only file system", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse_last)

    with pytest.raises(RemovalError, match=r"Read-only file system\. Nothing was changed"):
        plan(copy, "strings").write()

    assert contents(copy) == before


# Migrations


def add_migration(root: Path, name: str, upgrade: str) -> None:
    """Add a migration after the newest one."""
    head = max(path.stem for path in (root / VERSIONS).glob("*_strings.py"))
    text = f'from alembic import op\n\nrevision = "{name}"\ndown_revision = "{head}"\n\n\ndef upgrade() -> None:\n    {upgrade}\n'
    (root / VERSIONS / f"{name}.py").write_text(text)
    with (root / DIGESTS).open("a") as digests:
        digests.write(f"{'0' * 64}  {name}.py\n")


@pytest.mark.parametrize(
    "upgrade",
    [
        'op.add_column("strings", sa.Column("note", sa.Text()))',
        'op.create_index("ix_strings_note", "strings", ["note"])',
        'op.drop_index("ix_strings_note", table_name="strings")',
        'op.execute("UPDATE strings SET note = 1")',
        'op.execute("ALTER TABLE strings ADD COLUMN user_id uuid REFERENCES users")',
        'op.create_foreign_key("fk_strings_note", "strings", "users", ["note"], ["id"])',
    ],
)
def test_later_migrations_of_the_feature_are_deleted_too(copy: Path, upgrade: str) -> None:
    add_migration(copy, "20991231_note", upgrade)

    removal = plan(copy, "strings", is_forced=True)

    assert f"{VERSIONS}/20991231_note.py" in removal.deleted
    assert "20991231_note" not in removal.changed[DIGESTS]
    assert removal.undone[-1] == "20991231_note"


@pytest.mark.parametrize(
    ("upgrade", "sentence"),
    [
        (
            'op.rename_table("strings", "users")',
            "The migration 20991231_note changes tables of strings and also users.",
        ),
        (
            'op.execute("INSERT INTO strings SELECT id FROM users")',
            "The migration 20991231_note changes tables of strings and also users.",
        ),
        (
            'op.create_foreign_key("fk", "users", "strings", ["a"], ["id"])',
            "The migration 20991231_note has a foreign key to strings",
        ),
        ('sa.ForeignKeyConstraint(["a"], ["strings.id"])', "The migration 20991231_note has a foreign key to strings"),
        (
            'op.execute("ALTER TABLE users ADD a uuid REFERENCES strings")',
            "The migration 20991231_note has a foreign key to strings",
        ),
    ],
)
def test_migrations_that_concern_other_tables_too_are_refused(copy: Path, upgrade: str, sentence: str) -> None:
    add_migration(copy, "20991231_note", upgrade)

    assert refusal(copy, "strings").startswith(sentence)


def test_branches_of_migrations_are_refused(copy: Path) -> None:
    add_migration(copy, "20991231_note", "pass")
    add_migration(copy, "20991231_other", "pass")

    assert refusal(copy, "strings").startswith("The migrations do not form one line.")


# Everything else that a feature can bring


@pytest.mark.slow
def test_a_feature_with_every_part_leaves_no_trace(copy: Path) -> None:
    """Settings, scopes, jobs, mails, resources, commands, an export, and rows in the tables of upstream."""
    app_dev(copy, "docs")
    commit(copy)
    before = contents(copy)
    for listing in listings(ROOT / "docs/feature-parts.md"):
        apply(listing, copy)
    add_rows(copy)
    assert "APP_GREETINGS__WORD" not in (copy / "docs/configuration.md").read_text()
    assert app_dev(copy, "docs").returncode == 0
    assert "APP_GREETINGS__WORD" in (copy / "docs/configuration.md").read_text()

    removal = plan(copy, "greetings", is_forced=True)
    removal.write()

    assert app_dev(copy, "docs").returncode == 0
    assert contents(copy) == before
    assert not [mention for mention in removal.mentions() if not mention.startswith(("docs/", "tests/"))]


def add_rows(root: Path) -> None:
    """Add rows about greetings to tables of upstream."""
    for path, anchor, row in (
        (
            "tests/test_statements.py",
            '        "POST /api/v1/auth/token": 4,\n',
            '        "POST /api/v1/greetings": 5,\n',
        ),
        ("tests/test_conventions.py", "OWN_UNITS = {\n", '    "greetings/service.py greet": _SLOW,\n'),
        ("docs/security/data.toml", "[events]\n", '"greetings.sent" = "A greeting was sent."\n'),
        ("docs/security/data.toml", "[pathways]\n", '"POST /api/v1/greetings" = "Input: an address."\n'),
        ("docs/security/asvs.toml", 'tests = ["', 'tests/greetings/test_greetings.py::test_a_greeting_is_mailed", "'),
        ("tests/fuzz/schemathesis.toml", '    "/api/v1/auth/token",\n', '    "/api/v1/greetings",\n'),
    ):
        before, found, after = (root / path).read_text().partition(anchor)
        assert found
        (root / path).write_text(before + found + row + after)
    router = root / "src/app/greetings/router.py"
    router.write_text(router.read_text() + '\nEVENT = "greetings.sent"\n')


def test_a_requirement_that_only_the_feature_met_becomes_a_gap(copy: Path) -> None:
    path = copy / "docs/security/asvs.toml"
    row = '["99.1.1"]\nlevel = 2\nstatus = "{}"\nabout = "{}"\n'
    test = 'tests = ["tests/strings/test_router.py::test_pages_list_your_own_strings_newest_first"]\n'
    before = path.read_text()
    path.write_text(before + row.format("met", "Strings are listed.") + test)

    changed = plan(copy, "strings", is_forced=True).changed["docs/security/asvs.toml"]

    reason = "The feature strings met this, and was removed. Say whether it still applies."
    assert changed == before + row.format("gap", reason)


def test_texts_that_still_speak_of_a_feature_are_named(copy: Path) -> None:
    for path, text in {
        ".env": "APP_STRINGS__WORD=Hi\n",
        "docs/own.md": "GET /api/v1/strings\n\nsee src/app/strings/models.py and strings.created\n",
        "own.txt": "The strings of a violin.\n",
    }.items():
        (copy / path).write_text(text)
    (copy / "picture.png").write_bytes(b"\x89PNG\xff\xfe app.strings")

    named = [each for each in plan(copy, "strings").mentions() if not each.startswith(("tests/", "scripts/"))]

    assert named == ["docs/own.md: lines 1, 3", ".env: line 1"]


# The command


@pytest.mark.slow
def test_the_command_prints_first_and_deletes_then(copy: Path) -> None:
    before = contents(copy)
    dry = app_dev(copy, "remove", "strings", "--dry-run")
    untouched = contents(copy) == before

    done = app_dev(copy, "remove", "strings")
    again = app_dev(copy, "remove", "strings")

    assert dry.returncode == 0, dry.stderr
    assert "--- src/app/strings/models.py is deleted\n" in dry.stdout
    assert '-    "strings",\n' in dry.stdout
    assert untouched
    assert done.stdout.startswith("Removed the feature strings: 10 files deleted.\n  changed  src/app/features.py\n")
    assert (again.returncode, again.stderr[:32]) == (2, 'There is no feature "strings". T')
