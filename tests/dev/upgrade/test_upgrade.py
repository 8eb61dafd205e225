"""`make upgrade` merges a newer version, and settles the conflicts that have one right answer."""

import ast
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.dev.docs import DOCUMENTS
from app.dev.upgrade.prepare import GENERATED
from tests.conftest import ROOT
from tests.dev.upgrade.conftest import DIGESTS, NEW, NOTE, OLD, OWN, PIN, VERSIONS, Repository, digest


def upgraded(clone: Repository, *options: str, conflicts: int = 0) -> str:
    code, output = clone.upgrade(*options)
    assert code == 0, output
    assert f"Conflicts: {conflicts}\n" in output, output
    return output


# Versions


def test_a_clone_without_history_gets_the_new_version_in_one_merge(clone: Repository, bedplate: Repository) -> None:
    before = clone.git("rev-parse", "HEAD")

    output = upgraded(clone)

    new = bedplate.git("rev-parse", "HEAD")
    assert clone.git("log", "-1", "--format=%P") == f"{before} {new}"
    assert clone.git("rev-parse", "--abbrev-ref", "HEAD") == f"upgrade-{bedplate.git('rev-parse', '--short', 'HEAD')}"
    assert clone.git("status", "--short") == ""
    assert clone.git("rev-parse", "main") == before
    # What `make docs` and the versions' own lines make is the only difference.
    assert clone.git("diff", "--name-only", new).split() == ["docs/configuration.md", "pyproject.toml"]
    assert "Now run: make check test" in output


def test_a_second_run_finds_nothing_to_do(clone: Repository) -> None:
    upgraded(clone)
    before = clone.state

    assert clone.upgrade()[1].startswith("The clone is already up to date with ")
    assert clone.state == before


def test_the_next_upgrade_brings_only_what_is_newer(clone: Repository, bedplate: Repository) -> None:
    clone.commit({"src/app/mail.py": "ONE = 11\nTWO = 2\n\nOURS = 3\n", f"{VERSIONS}/20260301_own.py": OWN})
    (conflicting,) = re.findall(r"^  (\S+\.py)$", upgraded(clone, conflicts=1), re.MULTILINE)
    clone.commit({conflicting: "ONE = 11\nTWO = 22\n\nOURS = 3\n"})
    bedplate.commit({"docs/new.md": "Three.\n"})

    upgraded(clone)

    assert clone.read("docs/new.md") == "Three.\n"


def test_a_clone_with_history_is_upgraded_from_its_common_commit(bedplate: Repository, tmp_path: Path) -> None:
    subprocess.run(["git", "clone", "--quiet", "--origin=bedplate", bedplate.root, tmp_path / "full"], check=True)
    clone = Repository(tmp_path / "full")
    clone.name_author()
    clone.git("reset", "--quiet", "--hard", "v0.1.0")

    assert f"From {bedplate.git('log', '-1', '--format=%h of %as', 'v0.1.0')} to " in upgraded(clone, "DRY=1")


def test_from_names_the_version_of_a_clone_that_began_with_changes(clone: Repository) -> None:
    clone.write({"README.md": "# Ours\n"})
    clone.git("commit", "--quiet", "--all", "--amend", "--message", "Begin differently")

    upgraded(clone, "FROM=v0.1.0")

    assert clone.read("README.md") == "# Ours\n"


def test_a_tag_of_the_clone_does_not_hide_one_of_bedplate(clone: Repository, bedplate: Repository) -> None:
    clone.git("tag", "v0.2.0")

    assert f"to {bedplate.git('log', '-1', '--format=%h of %as')}." in upgraded(clone, "TO=v0.2.0", "DRY=1")
    assert clone.git("rev-parse", "v0.2.0") == clone.git("rev-parse", "HEAD")


def test_dry_changes_nothing_and_announces_the_same_conflicts(clone: Repository) -> None:
    clone.commit({"src/app/mail.py": "ONE = 1\nTWO = 3\n"})
    before = clone.state

    announced = upgraded(clone, "DRY=1", conflicts=1)

    assert "  src/app/mail.py\n" in announced
    assert clone.state == before
    assert announced.strip() in upgraded(clone, conflicts=1)


def test_variables_of_the_makefile_are_options(clone: Repository) -> None:
    before = clone.state

    assert "Conflicts: 0\n" in clone.upgrade(UPGRADE_DRY="1", UPGRADE_TO="v0.2.0")[1]
    assert clone.state == before


# Policy


def test_a_conflict_is_listed_and_not_committed(clone: Repository) -> None:
    head = clone.commit({"src/app/mail.py": "ONE = 1\nTWO = 3\n"})

    output = upgraded(clone, conflicts=1)

    assert "Resolve the conflicts on the branch upgrade-" in output
    assert clone.git("rev-parse", "HEAD") == head
    assert clone.git("diff", "--name-only", "--diff-filter=U") == "src/app/mail.py"
    text = "ONE = 1\n<<<<<<< yours\nTWO = 3\n=======\nTWO = 22\n>>>>>>> Bedplate\n"
    assert clone.read("src/app/mail.py") == text


def test_the_printed_commands_complete_a_merge_with_conflicts(clone: Repository) -> None:
    clone.commit({"src/app/mail.py": "ONE = 1\nTWO = 3\n", "Makefile": OLD["Makefile"] + "check test:\n\t@true\n"})
    output = upgraded(clone, conflicts=1)
    clone.write({"src/app/mail.py": "ONE = 1\nTWO = 223\n"})

    (commands,) = (line for line in output.splitlines() if line.startswith("  git add"))
    subprocess.run(["sh", "-euc", commands], cwd=clone.root, check=True, capture_output=True)

    assert clone.git("log", "-1", "--format=%P").count(" ") == 1
    assert clone.git("status", "--short") == ""
    assert clone.upgrade()[1].startswith("The clone is already up to date with ")


def test_files_of_the_adopter_stay_as_they_are(clone: Repository) -> None:
    own = {"README.md": "# Ours\n", "CHANGELOG.md": "# Our changes\n", ".github/ci.yml": "ours\n"}
    clone.commit(own)

    upgraded(clone)

    assert {name: clone.read(name) for name in own} == own
    assert clone.read(".github/release.yml") is None


def test_files_that_the_adopter_left_alone_arrive(clone: Repository) -> None:
    upgraded(clone)

    assert clone.read("README.md") == NEW["README.md"]
    assert clone.read(".github/release.yml") == "two\n"


def test_deleted_files_and_folders_stay_deleted(clone: Repository) -> None:
    clone.commit({"docs/comparison.md": None, "src/app/audit/service.py": None, ".github/ci.yml": None})

    output = upgraded(clone)

    gone = ("docs/comparison.md", "src/app/audit/service.py", "src/app/audit/crud.py", ".github/release.yml")
    assert [name for name in gone if clone.read(name) is not None] == []
    assert "src/app/audit/crud.py is left out, because the clone has deleted its folder.\n" in output


def test_generated_pages_are_made_again(clone: Repository) -> None:
    clone.commit({"docs/configuration.md": "Ours.\n"})

    upgraded(clone)

    assert clone.read("docs/configuration.md") == "Two.\nmade\n"


def test_all_generated_pages_are_known() -> None:
    guide = "docs/adding-a-feature.md"

    assert {*GENERATED, guide} == {str(path) for path in DOCUMENTS}
    assert [page for page in GENERATED if not (ROOT / page).exists()] == []


def test_lines_that_both_sides_add_to_a_list_are_kept(clone: Repository) -> None:
    features = OLD["src/app/features.py"].replace('"users",\n', '"users",\n    "notes",\n')
    project = OLD["pyproject.toml"].replace('    "uvloop"', '    "humanize",\n    "uvloop"')
    clone.commit({"src/app/features.py": features, "pyproject.toml": project.replace('"0.1.0"', '"7.1"')})

    upgraded(clone)

    assert re.findall(r'"(\w+)"', str(clone.read("src/app/features.py"))) == ["health", "users", "teams", "notes"]
    assert sorted(clone.dependencies) == ["fastapi", "humanize", "uvloop>=2"]
    assert 'version = "7.1"' in str(clone.read("pyproject.toml"))


def test_a_deleted_line_of_a_list_stays_deleted_beside_one_that_changes(clone: Repository) -> None:
    clone.commit({"pyproject.toml": OLD["pyproject.toml"].replace('    "fastapi",\n', "")})

    upgraded(clone)

    assert clone.dependencies == ["uvloop>=2"]


def test_a_line_that_both_sides_change_in_a_list_is_a_conflict(clone: Repository) -> None:
    clone.commit({"pyproject.toml": OLD["pyproject.toml"].replace('"uvloop"', '"uvloop>=1"')})

    assert "  pyproject.toml\n" in upgraded(clone, conflicts=1)


def test_new_pins_arrive_beside_those_of_own_packages(clone: Repository) -> None:
    base = OLD["requirements/base.txt"] + PIN.format("humanize", "bedplate")
    project = OLD["pyproject.toml"].replace('    "fastapi",\n', '    "fastapi",\n    "humanize",\n')
    clone.commit({"requirements/base.txt": base, "pyproject.toml": project})

    upgraded(clone)

    pins = re.findall(r"^(\S+==\S+)", str(clone.read("requirements/base.txt")), re.MULTILINE)
    assert pins == ["fastapi==1.0", "humanize==1.0", "uvloop==2.0"]
    assert clone.read("requirements/dev.txt") == OLD["requirements/dev.txt"]
    assert str(clone.read(".git/made")).split() == ["setup", "pins"]


def test_a_clone_without_own_packages_compiles_no_pins(clone: Repository) -> None:
    upgraded(clone)

    assert clone.read("requirements/base.txt") == NEW["requirements/base.txt"]
    assert str(clone.read(".git/made")).split() == ["setup"]


def test_a_renamed_clone_keeps_its_name_in_every_line_that_arrives(clone: Repository) -> None:
    product = OLD["src/app/core/product.py"].replace("Bedplate", "Acme Tools").replace("bedplate", "acme")
    pins = {name: OLD[name].replace("via bedplate", "via acme") for name in OLD if name.startswith("requirements/")}
    project = OLD["pyproject.toml"].replace('"bedplate"', '"acme"')
    clone.commit({"src/app/core/product.py": product, "pyproject.toml": project, "README.md": "# Acme\n", **pins})

    upgraded(clone)

    assert clone.read("src/app/core/product.py") == product.replace('"acme"\n', '"acme"\nAPI_VERSION = "1"\n')
    assert clone.read("requirements/base.txt") == NEW["requirements/base.txt"].replace("bedplate", "acme")
    assert 'name = "acme"' in str(clone.read("pyproject.toml"))


def test_imports_are_sorted_in_the_files_of_the_clone_only(clone: Repository) -> None:
    unsorted = "import sys\nimport os\n"
    clone.commit({"src/app/notes/service.py": unsorted, "src/app/notes/text.txt": unsorted})

    upgraded(clone)

    assert clone.read("src/app/notes/service.py") == "import os\nimport sys\n"
    assert clone.read("src/app/notes/text.txt") == unsorted


# Migrations


def test_the_first_migration_that_arrives_follows_the_newest_one_of_the_clone(clone: Repository) -> None:
    digests = OLD[DIGESTS] + digest("20260301_own", OWN)
    clone.commit({f"{VERSIONS}/20260301_own.py": OWN, DIGESTS: digests})

    output = upgraded(clone)

    second, third = (str(clone.read(f"{VERSIONS}/{name}.py")) for name in ("20260201_second", "20260202_third"))
    assert 'down_revision = "20260301_own"  # Set by make upgrade; before: 20260101_first\n' in second
    assert 'down_revision = "20260201_second"\n' in third
    assert clone.read(f"{VERSIONS}/20260301_own.py") == OWN
    assert f"{VERSIONS}/20260201_second.py now follows the newest migration of the clone." in output
    recorded = dict(line.split()[::-1] for line in str(clone.read(DIGESTS)).splitlines())
    assert recorded == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (clone.root / VERSIONS).iterdir()
    }


def test_a_migration_that_was_joined_is_left_alone_by_the_next_upgrade(clone: Repository, bedplate: Repository) -> None:
    clone.commit({f"{VERSIONS}/20260301_own.py": OWN, DIGESTS: OLD[DIGESTS] + digest("20260301_own", OWN)})
    upgraded(clone)
    joined = clone.read(f"{VERSIONS}/20260201_second.py")
    fourth = (
        NEW[f"{VERSIONS}/20260202_third.py"]
        .replace("20260201_second", "x")
        .replace("20260202_third", "20260401_fourth")
    )
    fourth = fourth.replace('"x"', '"20260202_third"')
    bedplate.commit(
        {f"{VERSIONS}/20260401_fourth.py": fourth, DIGESTS: NEW[DIGESTS] + digest("20260401_fourth", fourth)}
    )

    output = upgraded(clone)

    assert "now follows" not in output
    assert clone.read(f"{VERSIONS}/20260201_second.py") == joined
    assert clone.read(f"{VERSIONS}/20260401_fourth.py") == fourth
    assert str(clone.read(DIGESTS)).count("20260201_second.py") == 1


def test_migrations_of_a_clone_without_own_ones_stay_as_they_are(clone: Repository) -> None:
    upgraded(clone)

    assert clone.read(f"{VERSIONS}/20260201_second.py") == NEW[f"{VERSIONS}/20260201_second.py"]
    assert clone.read(DIGESTS) == NEW[DIGESTS]


# Notes


@pytest.mark.parametrize("place", ["CHANGELOG.md", "docs/changelog.md"])
def test_what_the_changelog_says_to_clones_is_printed_once(clone: Repository, bedplate: Repository, place: str) -> None:
    assert f"For clones, the changelog says:\n\n{NOTE}\n" in upgraded(clone)
    if place != "CHANGELOG.md":
        bedplate.git("mv", "CHANGELOG.md", place)
    text = str(bedplate.read(place)).replace(NOTE, f"- Another.\n{NOTE}")
    bedplate.commit({place: text})

    output = upgraded(clone)

    assert "For clones, the changelog says:\n\n- Another.\n" in output
    assert NOTE not in output


# Where the code runs


@pytest.mark.parametrize(
    "module", sorted((ROOT / "src" / "app" / "dev" / "upgrade").glob("*.py")), ids=lambda path: path.name
)
def test_the_code_needs_only_the_standard_library(module: Path) -> None:
    nodes = ast.walk(ast.parse(module.read_text()))
    imported = [
        name
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    ]

    foreign = [name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names]
    assert [name for name in foreign if not name.startswith("app.dev.upgrade")] == []
