"""`make feature`: which arguments it accepts, and what it writes. `test_generated_features.py` runs the features."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.db.database import VersionedBase
from app.dev.generator import edit, plan, words
from app.dev.generator.errors import GeneratorError
from app.dev.generator.plan import Plan
from tests.conftest import ROOT
from tests.listings import copy_repository


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    copy_repository(ROOT, tmp_path)
    return tmp_path


def contents(root: Path) -> dict[str, bytes]:
    paths = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def planned(root: Path, name: str, fields: str, one: str = "") -> Plan:
    return plan.plan(root, name, fields, one)


def test_a_feature_adds_files_and_changes_two() -> None:
    written = planned(ROOT, "violins", "title:str")

    assert {path.rpartition("/")[2] for path in written.created if "/violins/" in path} == {
        *("__init__.py", "models.py", "schemas.py", "errors.py", "crud.py", "service.py", "router.py"),
        *("access.py", "test_router.py"),
    }
    assert list(written.changed) == ["src/app/features.py", "tests/migrations.sha256"]


def test_a_second_run_changes_nothing(copy: Path) -> None:
    planned(copy, "violins", "title:str").write()
    before = contents(copy)

    again = planned(copy, "violins", "title:str")
    again.write()

    assert not again
    assert contents(copy) == before


def test_a_feature_that_was_edited_is_not_overwritten(copy: Path) -> None:
    planned(copy, "violins", "title:str").write()
    (copy / "src/app/violins/service.py").write_text("# Ours.\n")

    with pytest.raises(GeneratorError, match=r"^src/app/violins exists already"):
        planned(copy, "violins", "title:str")


def test_the_migration_follows_the_newest_one_and_is_not_dated_before_it(copy: Path) -> None:
    newest = copy / "src/app/migrations/versions/20991231_newest.py"
    head = planned(copy, "violins", "title:str").created
    (before,) = (line for text in head.values() for line in text.splitlines() if line.startswith("down_revision"))
    newest.write_text(f'revision = "20991231_newest"\n{before}\n')

    created = planned(copy, "violins", "title:str").created

    migration = created["src/app/migrations/versions/20991231_violins.py"]
    assert 'revision = "20991231_violins"\ndown_revision = "20991231_newest"\n' in migration


def test_two_heads_are_refused(copy: Path) -> None:
    (copy / "src/app/migrations/versions/20991231_other.py").write_text('revision = "20991231_other"\n')

    with pytest.raises(GeneratorError, match="The migrations have 2 heads"):
        planned(copy, "violins", "title:str")


def test_nothing_is_left_if_a_file_cannot_be_written(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(copy)
    write = Path.write_text

    def write_until_full(path: Path, text: str) -> int:
        if path.name == "migrations.sha256" and "violins" in text:
            raise OSError(28, "No space left on device", str(path))
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", write_until_full)

    with pytest.raises(GeneratorError, match=r"No space left on device\. Nothing was changed"):
        planned(copy, "violins", "title:str").write()

    assert contents(copy) == before
    assert not (copy / "src/app/violins").exists()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('FEATURES = ("a", "b")\n', 'FEATURES = ("a", "b",)\n"c",\n'),
        ('FEATURES = (\n    "a",\n    "b",  # Last.\n)\n', 'FEATURES = (\n    "a",\n    "b",  # Last.\n    "c",\n)\n'),
        ('FEATURES = (\n    "a",\n    "b"\n)\n', 'FEATURES = (\n    "a",\n    "b",\n    "c",\n)\n'),
    ],
)
def test_the_list_of_features_keeps_its_comments(before: str, after: str) -> None:
    assert edit.added(before, "c").split() == after.split()


# The command


def make_feature(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.dev.generator", *arguments],
        cwd=root,
        env={"PYTHONPATH": str(root / "src"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_command_writes_says_what_it_wrote_and_does_nothing_twice(copy: Path) -> None:
    shutil.rmtree(copy / "docs")

    first = make_feature(copy, "violins", "--fields", "title:str")
    second = make_feature(copy, "violins", "--fields", "title:str")

    assert (first.returncode, first.stdout.splitlines()[0]) == (
        0,
        "Wrote the feature violins, with the singular violin:",
    )
    assert "  src/app/violins/router.py" in first.stdout.splitlines()
    assert (second.returncode, second.stdout) == (
        0,
        "violins exists exactly as it would be generated. Nothing to do.\n",
    )


def test_a_dry_run_prints_files_and_differences_and_writes_nothing(copy: Path) -> None:
    before = contents(copy)

    done = make_feature(copy, "violins", "--fields", "title:str", "--dry-run")

    assert done.returncode == 0
    assert "--- src/app/violins/models.py" in done.stdout
    assert '+    "violins",' in done.stdout
    assert contents(copy) == before


def test_a_refusal_has_exit_code_2(copy: Path) -> None:
    done = make_feature(copy, "Violins", "--fields", "title:str")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith('"Violins" is not a valid name.')


def test_a_public_feature_is_read_by_anybody(copy: Path) -> None:
    done = make_feature(copy, "violins", "--fields", "title:str:unique", "--public", "--dry-run")

    assert done.returncode == 0
    assert '"GET /api/v1/violins": optional()' in done.stdout
    assert '"PATCH /api/v1/violins/{violin_id}": authenticated(' in done.stdout
    assert 'UniqueConstraint("title")' in done.stdout


def test_a_public_feature_with_a_scope_is_refused() -> None:
    with pytest.raises(GeneratorError, match="The rows of a public feature have owners, and those of a feature with a"):
        plan.plan(ROOT, "violins", "title:str", scope="strings", is_public=True)


# References to several rows


@pytest.fixture(scope="module")
def orchestra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with a feature that others can refer to."""
    copy = tmp_path_factory.mktemp("orchestra")
    copy_repository(ROOT, copy)
    planned(copy, "violins", "title:str").write()
    return copy


def test_a_set_of_references_adds_a_table_and_a_lookup_to_the_other_feature(copy: Path, orchestra: Path) -> None:
    shutil.copytree(orchestra, copy, dirs_exist_ok=True)

    first = planned(copy, "players", "name:str violins:refs(violins)")
    first.write()
    second = planned(copy, "owners", "name:str violins:refs(violins) lent:refs(violins)")

    assert '__tablename__ = "player_violins"' in first.created["src/app/players/models.py"]
    assert {path.rpartition("/")[2] for path in first.changed if "/violins/" in path} == {"crud.py", "service.py"}
    assert "tests/violins/test_get_many.py" in first.created
    assert not planned(copy, "players", "name:str violins:refs(violins)")
    # The lookup exists now.
    assert not [path for path in (*second.changed, *second.created) if "/violins/" in path]
    assert 'op.drop_table("owner_lent")' in second.created[migration_of(second)]


def migration_of(plan: Plan) -> str:
    return next(path for path in plan.created if "/versions/" in path)


@pytest.mark.parametrize(
    ("name", "fields", "one", "sentence"),
    [
        ("players", "violins:refs(violins):unique", "", "violin_ids cannot be unique, because its type is refs."),
        ("players", "violins:refs(violins) violin:ref(violins)", "", "There are two fields with the name violin_id."),
        ("players", "violins:refs(violins) violin:enum(a,b)", "", "violin would need another class PlayerViolin."),
        ("players", "reads:refs(violins)", "", "reads would need another class PlayerRead."),
        ("players", "read:enum(a,b)", "", "read would need another class PlayerRead."),
        ("players", "players:refs(violins)", "", "players has the name of the feature itself."),
        ("accounts", "links:refs(violins)", "", 'The table "account_links" exists already.'),
        ("players", "violins:refs(cellos)", "", "There is no feature cellos."),
    ],
)
def test_references_that_would_not_work_are_refused(
    orchestra: Path, name: str, fields: str, one: str, sentence: str
) -> None:
    with pytest.raises(GeneratorError) as error:
        planned(orchestra, name, fields, one)

    assert str(error.value).startswith(sentence)


def test_a_feature_without_queries_of_its_own_needs_a_lookup_first(copy: Path, orchestra: Path) -> None:
    shutil.copytree(orchestra, copy, dirs_exist_ok=True)
    (copy / "src/app/violins/crud.py").unlink()

    with pytest.raises(GeneratorError, match=r"Add get_many\(session, owner_id, violin_ids\) to its service"):
        planned(copy, "players", "violins:refs(violins)")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"""Text."""\n\nimport b\n\n\ndef get():\n    pass\n\n\ndef last():\n    pass\n', ["get", "many", "last"]),
        ("import b\n\n\ndef last():\n    pass\n", ["last", "many"]),
    ],
)
def test_a_function_is_added_after_the_one_that_gets_one_row(before: str, after: list[str]) -> None:
    text = edit.with_function(before, "import a\n\n\nasync def many():\n    pass\n")

    assert re.findall(r"def (\w+)", text) == after
    assert text.index("import a") < text.index("import b")
    assert text.startswith(before.partition("import")[0])


# Scopes


def test_a_feature_with_a_scope_has_no_owner(copy: Path) -> None:
    written = plan.plan(copy, "violins", "title:str", scope="strings")

    assert '"strings:read": "Read violins"' in written.created["src/app/violins/scopes.py"]
    assert [path for path, text in written.created.items() if "owner_id" in text] == []


def test_a_feature_with_a_scope_cannot_refer_to_rows_with_owners(copy: Path) -> None:
    planned(copy, "violins", "title:str").write()

    with pytest.raises(GeneratorError, match="A feature with a scope cannot refer to violins, whose rows have owners"):
        plan.plan(copy, "strings", "violin:ref(violins)", scope="strings")


@pytest.mark.parametrize(
    ("scope", "sentence"),
    [("users", 'Another feature has the scope "users".'), ("Violins", '"Violins" is not a valid scope.')],
)
def test_a_scope_that_would_not_work_is_refused(scope: str, sentence: str) -> None:
    with pytest.raises(GeneratorError) as error:
        plan.plan(ROOT, "violins", "title:str", scope=scope)

    assert str(error.value).startswith(sentence)


# Refused names


def refused() -> Iterator[tuple[str, str, str, str]]:
    yield "", "title:str", "", "The name is missing. Example: make feature NAME=notes"
    yield "Notes", "title:str", "", '"Notes" is not a valid name. Use small letters'
    yield "my notes", "title:str", "", '"my notes" is not a valid name.'
    yield "2notes", "title:str", "", '"2notes" is not a valid name.'
    yield "notes_", "title:str", "", '"notes_" is not a valid name.'
    yield "x" * 23 + "s", "title:str", "", f'"{"x" * 23}s" has 24 characters; a feature has 3 to 23.'
    yield "class", "title:str", "one", '"class" is a keyword of Python.'
    yield "procrastinate_jobs", "title:str", "", "The tables of the job queue begin with procrastinate_."
    yield "equipment", "title:str", "", 'The singular of "equipment" is not known. Add it, for example ONE='
    yield "news", "title:str", "", 'The singular of "news" is not known.'
    yield "violins", "title:str", "Violin", '"Violin" is not a valid singular.'
    yield "properties", "title:str", "", '"property" is a builtin name of Python.'
    yield "nones", "title:str", "", 'The class of "none" would have a name of Python.'
    yield "keyset", "title:str", "thing", "Generated code has another keyset."
    yield "violins", "", "", "violins needs at least one field."
    yield "violins", "title", "", '"title" is not a field. Write name:type'
    yield "violins", ":str", "", '":str" is not a field.'
    yield "violins", "Title:str", "", '"Title" is not a valid name of a field.'
    yield "violins", "from:str", "", '"from" is a keyword of Python.'
    yield "violins", "title:string", "", 'title has the unknown type "string". Use one of: str, text, int'
    yield "violins", "state:enum", "", 'state has the unknown type "enum".'
    yield "violins", "state:enum(a)", "", "state needs at least two different values"
    yield "violins", "state:enum(a,a)", "", "state needs at least two different values"
    yield "violins", "state:enum(a,B)", "", "state needs at least two different values"
    yield "violins", "title:str:null", "", 'title has the unknown or repeated option "null".'
    yield "violins", "title:str:unique:unique", "", 'title has the unknown or repeated option "unique".'
    yield "violins", "body:text:unique", "", "body cannot be unique, because its type is text."
    yield "violins", "title:str title:int", "", "There are two fields with the name title."
    members = sorted(name for name in {*dir(VersionedBase), *vars(VersionedBase)} if not name.startswith("_"))
    for field in (*members, "owner_id", "model_dump", "self", "session", "tuple", "xmin", "str"):
        yield "violins", f"{field}:str", "", f'"{field}" has a meaning of its own in every feature.'
    yield "violins", "violin:str", "", "violin is the name of a row of the feature."
    yield "violins", "limit:bool", "", '"limit" has a meaning of its own in every feature.'
    yield "violins", f"{'x' * 40}:bool", "", "PostgreSQL names have at most 63 characters, and ix_violins_owner_id_x"
    yield "violins", "date:date", "", '"date" is the name of a type.'
    yield "violins", "user:ref(users)", "", "A field cannot refer to users. It needs a feature with"
    yield "violins", "owner:ref(violas)", "", "There is no feature violas. Generate it first: make feature NAME=violas"
    yield "violins", "parent:ref(violins)", "", "violins cannot refer to itself. Leave out the field parent,"
    yield "violins", "user:ref(../users)", "", 'user has the unknown type "ref(../users)".'
    yield "users", "title:str", "", "src/app/users exists already."
    yield "models", "title:str", "", "src/app/models.py exists already."
    yield "faults", "title:str", "", "tests/faults exists already."
    yield "housekeeping", "title:str", "note", "src/app/migrations/versions/20261130_housekeeping.py exists already."
    yield "account_links", "title:str", "", 'The table "account_links" exists already.'
    yield "members", "title:str", "user", 'Another feature has the error "user_not_found".'
    yield "audit_events", "title:str", "entry", 'The table "audit_events" exists already.'
    yield "pages", "title:str", "", "Generated code has another Page or page."
    yield "sites", "title:str", "payload", "Generated code has another Payload or payload."


@pytest.mark.parametrize(("name", "fields", "one", "sentence"), list(refused()))
def test_a_name_that_would_not_work_is_refused(name: str, fields: str, one: str, sentence: str) -> None:
    with pytest.raises(GeneratorError) as error:
        planned(ROOT, name, fields, one)

    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("plural", "one"),
    [
        ("categories", "category"),
        ("boxes", "box"),
        ("branches", "branch"),
        ("purchase_orders", "purchase_order"),
        ("houses", "house"),
        ("glasses", "glass"),
        ("addresses", "address"),
        ("analyses", "analysis"),
        ("statuses", "status"),
        ("causes", "cause"),
        ("session_cookies", "session_cookie"),
        ("vip_people", "vip_person"),
        ("shelves", "shelf"),
        ("databases", "database"),
        ("archives", "archive"),
        ("invoices", "invoice"),
    ],
)
def test_the_singular_is_derived_from_the_plural(plural: str, one: str) -> None:
    assert words.singular(plural) == one


@pytest.mark.parametrize(
    ("one", "described"),
    [("note", "a note"), ("event", "an event"), ("unit", "a unit"), ("purchase_order", "a purchase order")],
)
def test_descriptions_have_the_right_article(one: str, described: str) -> None:
    assert words.with_article(words.spaced(one)) == described
