"""`docs/upgrading.md`: its table of moved modules, and the script that reads it."""

from importlib.util import find_spec

import pytest
from scripts.upgrade_imports import moved_modules, rewrite

MOVED = moved_modules()


@pytest.mark.parametrize("module", sorted(set(MOVED.values())))
def test_every_module_in_the_table_exists(module: str) -> None:
    assert find_spec(module) is not None


def test_former_names_are_free_or_belong_to_packages() -> None:
    specs = [find_spec(module) for module in MOVED if find_spec(module.rpartition(".")[0]) is not None]

    assert all(spec is None or spec.submodule_search_locations for spec in specs)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from app.core.keyset import Order, Position", "from app.core.db.keyset import Order, Position"),
        ("from app.core import crud", "from app.core.db import crud"),
        ("from app.core import statements", "from app.core.db import query_log as statements"),
        (
            "from app.core import crud as rows, errors",
            "from app.core.db import crud as rows\nfrom app.core import errors",
        ),
        (
            "from app.core.fields import (\n    Answer,\n    Payload,\n)",
            "from app.core.schemas.fields import Answer, Payload",
        ),
        (
            "    from app.core.security import PasswordHasher",
            "    from app.core.security.hashing import PasswordHasher",
        ),
        ("from app.core.security import hashing", "from app.core.security import hashing"),
        ("from app.core.errors import NotFoundError", "from app.core.errors import NotFoundError"),
        ("from app.core.crud import page  # A reason.", "from app.core.crud import page  # A reason."),
    ],
)
def test_imports_of_moved_modules_are_rewritten(before: str, after: str) -> None:
    assert rewrite(f"import re\n\n{before}\n", MOVED) == f"import re\n\n{after}\n"
    assert rewrite(f"{after}\n", MOVED) == f"{after}\n"
