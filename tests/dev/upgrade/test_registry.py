"""Clones from before `src/app/features.py`: `make upgrade` moves their features out of the central lists of that time."""

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.dev.upgrade.conftest import CODE, NEW, OLD, Repository, add, new_repository

pytestmark = pytest.mark.slow

LISTS: Mapping[str, str] = {
    "src/app/main.py": "ROUTERS = (\n    users.router,\n)\n",
    "src/app/core/config.py": "PORT = 1\n",
    "tests/test_access.py": 'NOBODYS = "0"\nACCESS = {\n    "GET /api/v1/users": scoped("users:read"),\n}\n',
}
ROUTER = """\
from app.core.keyset import Order

router = make(
    prefix="/notes",
)


def read(order: Order, tag: IfMatch = None) -> None: ...
"""
ROWS = """\
    "GET /api/v1/notes/{note_id}": authenticated(path={"id": NOBODYS}),
    "GET /api/v1/other-notes": public(),
    "GET /api/v1/anything": scoped("anything:read"),
"""


@pytest.fixture
def clone(tmp_path: Path) -> Repository:
    """A clone of a version without the registry, with the features `notes` and `other_notes`."""
    bedplate = new_repository(tmp_path / "bedplate")
    before = {**{path: text for path, text in OLD.items() if path != "src/app/features.py"}, **LISTS}
    bedplate.commit(before)
    add(bedplate, *CODE, "scripts/upgrade_imports.py", "scripts/upgrade_code.py", "docs/upgrading.md")
    bedplate.commit({**NEW, "src/app/main.py": "app = create()\n", "src/app/core/config.py": None})
    clone = new_repository(tmp_path / "clone")
    (clone.root / ".venv").symlink_to(sys.prefix)
    clone.git("remote", "add", "bedplate", str(bedplate.root))
    clone.commit(before)
    clone.commit(
        {
            "src/app/main.py": LISTS["src/app/main.py"].replace(")\n", "    notes.router,\n)\n"),
            "src/app/core/config.py": "PORT = 2\n",
            "tests/test_access.py": LISTS["tests/test_access.py"].replace("}\n", f"{ROWS}}}\n"),
            "src/app/notes/router.py": ROUTER,
            "src/app/other_notes/service.py": "X = 1\n",
        }
    )
    return clone


def test_the_features_of_the_clone_are_declared_in_their_folders(clone: Repository) -> None:
    code, output = clone.upgrade()

    assert code == 0, output
    assert "Conflicts: 0\n" in output
    assert '"teams",\n    "notes",\n    "other_notes",\n)' in str(clone.read("src/app/features.py"))
    assert 'make(\n    prefix="/notes",\n)\nROUTERS = (router,)\n' in str(clone.read("src/app/notes/router.py"))
    assert clone.read("tests/notes/access.py") == (
        "from collections.abc import Mapping\n\nfrom tests.access import UNKNOWN_ID, Access, authenticated, scoped\n\n"
        "ACCESS: Mapping[str, Access] = {\n"
        '    "GET /api/v1/notes/{note_id}": authenticated(path={"id": UNKNOWN_ID}),\n'
        '    "GET /api/v1/anything": scoped("anything:read"),\n}\n'
    )
    assert '"GET /api/v1/other-notes": public(),' in str(clone.read("tests/other_notes/access.py"))


def test_the_central_lists_arrive_whole_and_the_lost_changes_are_named(clone: Repository) -> None:
    code, output = clone.upgrade()

    assert (code, clone.read("src/app/main.py"), clone.read("src/app/core/config.py")) == (0, "app = create()\n", None)
    (line,) = (line for line in output.splitlines() if line.startswith("These files arrive whole."))
    command = line.partition(": git ")[2].split()
    assert command[-3:] == ["src/app/core/config.py", "src/app/main.py", "tests/test_access.py"]
    assert "+PORT = 2" in clone.git(*command)


def test_imports_of_moved_modules_are_rewritten_in_the_files_of_the_clone(clone: Repository) -> None:
    clone.upgrade()

    assert "from app.core.db.keyset import Order\n" in str(clone.read("src/app/notes/router.py"))


def test_code_that_was_written_after_the_guide_is_rewritten(clone: Repository) -> None:
    output = clone.upgrade()[1]

    assert "def read(order: Order, tag: IfMatch) -> None:" in str(clone.read("src/app/notes/router.py"))
    assert 'What fails is explained in docs/upgrading.md, "Replace names that changed".' in output


def test_pages_that_cannot_be_made_yet_do_not_stop_the_upgrade(clone: Repository) -> None:
    clone.commit({"Makefile": ".PHONY: setup docs\nsetup:\ndocs:\n\t@exit 1\n"})

    assert clone.upgrade()[0] == 0
    assert clone.git("status", "--short") == ""
