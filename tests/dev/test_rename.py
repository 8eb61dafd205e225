"""`make rename`, in copies of the repository."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core import product
from app.dev.rename import RenameError, current, rename
from app.dev.upgrade.product_name import Identity
from tests.conftest import ROOT
from tests.listings import copy_repository

UPSTREAM = "bedplate"
# The licence and the changelog describe the past, migrations must not change, and this file tests the name itself.
HISTORY = ("LICENSE", "docs/changelog.md", "src/app/migrations/versions/", "tests/dev/test_rename.py")
# They merge what comes from upstream, which keeps its name.
UPGRADES = ("docs/upgrading.md", "scripts/upgrade.py", "src/app/dev/upgrade/", "tests/dev/upgrade/", "tests/drill/")
# A setting in the database with the name that a migration gave it.
SWITCH = "bedplate.purging_audit_events"
SECONDS = 240
COMPARING = (
    "tests/core/test_product.py",
    "tests/core/security/test_passwords.py",
    "tests/auth/test_dependencies.py",
    "tests/mail/test_message.py",
)
# The copy is not installed.
NOT_INSTALLED = "tests/core/test_product.py::test_the_distribution_has_the_slug_as_its_name"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    copy_repository(ROOT, tmp_path)
    return tmp_path


def contents(root: Path) -> dict[Path, bytes]:
    paths = (path for path in root.rglob("*") if path.is_file() and not {"__pycache__", ".venv"} & set(path.parts))
    return {path.relative_to(root): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy for tests that change nothing."""
    root = tmp_path_factory.mktemp("untouched")
    copy_repository(ROOT, root)
    return root


def make_rename(copy: Path, *variables: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `make rename` in the copy, with the virtual environment of this test run."""
    (copy / "scripts" / "setup.sh").write_text("")
    if not (copy / ".venv").exists():
        (copy / ".venv").symlink_to(sys.prefix)
    return run(copy, "make", "rename", *variables, **environment)


def run_python(copy: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(copy, sys.executable, "-m", *arguments, **environment)


def run(copy: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the source of the copy."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("APP_", "PYTEST_", "COV", "MAKE"))
    }
    return subprocess.run(
        command,
        cwd=copy,
        env=inherited | {"PYTHONPATH": str(copy / "src")} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


# Changed files


def test_every_file_that_contains_the_name_changes_and_is_listed(copy: Path) -> None:
    before = contents(copy)

    changed = rename(copy, "Quince & Sons")

    after = contents(copy)
    assert current(copy) == Identity("Quince & Sons", "quince-sons")
    assert changed == sorted(path for path in after if before[path] != after[path])
    assert {Path("pyproject.toml"), Path("src/app/core/product.py")} <= set(changed)


def test_renaming_again_changes_nothing(copy: Path) -> None:
    rename(copy, "Quince & Sons")
    before = contents(copy)

    assert rename(copy, "Quince & Sons") == []
    assert contents(copy) == before


@pytest.mark.parametrize(
    ("between", "slug"),
    [
        ("Quince & Sons", "quince-sons"),
        # A word that is frequent in the files.
        ("Data", "data"),
        ("The Überall 3 O'Clock, Inc.", "the-uberall-3-oclock-inc"),
        ("a" * 40, "a" * 40),
    ],
)
def test_a_name_can_be_changed_again_and_back(copy: Path, between: str, slug: str) -> None:
    before = contents(copy)

    rename(copy, between)
    assert current(copy) == Identity(between, slug)
    rename(copy, "Medlar")
    rename(copy, product.NAME, product.SLUG)

    assert contents(copy) == before


def test_a_distribution_that_was_renamed_by_hand_is_renamed_too(copy: Path) -> None:
    project = copy / "pyproject.toml"
    project.write_text(project.read_text().replace(f'name = "{product.SLUG}"', 'name = "by-hand"'))

    rename(copy, "Quince")

    assert '[project]\nname = "quince"\n' in project.read_text()


def test_a_given_short_form_is_used(copy: Path) -> None:
    rename(copy, "日本", "nihon")

    assert current(copy) == Identity("日本", "nihon")


def test_deleted_and_rewritten_files_are_not_changed(copy: Path) -> None:
    (copy / "README.md").write_text("# Our orchard\n")
    shutil.rmtree(copy / "deploy")

    rename(copy, "Quince")

    assert (copy / "README.md").read_text() == "# Our orchard\n"
    assert not (copy / "deploy").exists()


@pytest.mark.skipif(product.SLUG != UPSTREAM, reason="a renamed clone may contain both names")
def test_only_historical_files_keep_the_old_name(copy: Path) -> None:
    rename(copy, "Quince & Sons")
    assert run_python(copy, "app.dev", "docs").returncode == 0

    left = [
        str(path)
        for path, content in contents(copy).items()
        if not str(path).startswith(HISTORY + UPGRADES)
        and UPSTREAM.encode() in content.replace(SWITCH.encode(), b"").lower()
    ]

    assert left == [], "take the name from app.core.product, or add the place to app/dev/rename.py"


@pytest.mark.slow
def test_a_renamed_copy_passes_checks_and_the_tests_that_compare_the_name(copy: Path, template_url: str) -> None:
    rename(copy, "Überall & Söhne")

    for arguments in (
        ("app.dev", "docs"),
        ("ruff", "check", "src/app/core/product.py", "--no-cache"),
        ("ruff", "format", "--check", "src/app/core/product.py", "--no-cache"),
        ("pytest", "-q", "-n0", "-p", "no:cacheprovider", *COMPARING, "--deselect", NOT_INSTALLED),
    ):
        done = run_python(copy, *arguments, DATABASE_URL=template_url)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_product_module_without_its_name_is_reported(copy: Path) -> None:
    (copy / "src" / "app" / "core" / "product.py").write_text('NAME = "Acme"\n')

    with pytest.raises(RenameError, match=r"^src/app/core/product\.py has no line NAME"):
        rename(copy, "Quince")


# The command


@pytest.mark.slow
def test_make_rename_accepts_any_character_lists_the_files_and_runs_make_docs(copy: Path) -> None:
    done = make_rename(copy, "NAME=Söhne's $HOME & $(Co) 100%")

    listed = {Path(line.strip()) for line in done.stdout.splitlines() if line.startswith("  ")}
    assert (done.returncode, done.stderr) == (0, "")
    assert current(copy) == Identity("Söhne's $HOME & $(Co) 100%", "sohnes-home-co-100")
    assert {Path("README.md"), Path("pyproject.toml"), Path("src/app/core/product.py")} <= listed
    assert "`sohnes-home-co-100`" in (copy / "docs" / "configuration.md").read_text()
    assert run_python(copy, "app.dev", "docs", "--check").returncode == 0


def test_environment_variables_are_not_used_as_the_name(copy: Path) -> None:
    before = (copy / "src" / "app" / "core" / "product.py").read_bytes()

    done = make_rename(copy, NAME="the-machine", SLUG="the-machine")

    assert done.returncode != 0
    assert done.stderr.startswith('The name is empty. Example: make rename NAME="Acme Billing"\n')
    assert (copy / "src" / "app" / "core" / "product.py").read_bytes() == before


# Invalid names


def invalid_names() -> Iterator[tuple[str, str, str]]:
    yield "", "", "The name is empty."
    yield "  ", "", "The name is empty."
    yield "Acme\nBilling", "", "The name contains a control character"
    yield "Acme\x00", "", "The name contains a control character"
    yield "Acme\u202e", "", "The name contains a control character"
    yield "Acme\udcff", "", "The name contains a control character"
    for character in '"\\`|<>':
        yield f"Acme {character}", "", f"The name contains {character}, which would break a file"
    yield "a" * 101, "acme", "The name has 101 characters; the maximum is 100."
    yield "a" * 41, "", "The short form has 41 characters; the maximum is 40."
    yield "日本", "", '"" is not a valid short form.'
    yield "24 7", "", '"24-7" is not a valid short form.'
    yield "Acme", "Acme Billing", '"Acme Billing" is not a valid short form.'
    yield "Acme", "-acme", '"-acme" is not a valid short form.'
    yield "Acme", "acme\n", '"acme\n" is not a valid short form.'
    yield "FastAPI", "", "fastapi is a package that this project installs."
    yield "Acme", "procrastinate", "procrastinate is a package that this project installs."


@pytest.mark.parametrize(("name", "slug", "sentence"), list(invalid_names()))
def test_an_invalid_name_is_refused_and_changes_nothing(untouched: Path, name: str, slug: str, sentence: str) -> None:
    before = contents(untouched)

    with pytest.raises(RenameError, match=f"^{re.escape(sentence)}"):
        rename(untouched, name, slug)

    assert contents(untouched) == before
