"""`docs/upgrading.md`: its table of moved modules, and the script that reads it."""

import pkgutil

import pytest
from scripts.upgrade_imports import leftovers, moved_modules, rewrite

MOVED = moved_modules()


@pytest.mark.parametrize("place", sorted(set(MOVED.values())))
def test_everything_in_the_table_exists(place: str) -> None:
    assert pkgutil.resolve_name(place)


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
        (
            "from app.core.metrics import Tally, Reading",
            "from app.core.observability.metrics import Counter as Tally, Reading",
        ),
        (
            "from app.users.router import UserId, router",
            "from app.users.dependencies import UserId\nfrom app.users.router import router",
        ),
        ("from app.core.security import hashing", "from app.core.security import hashing"),
        ("from app.core.errors import NotFoundError", "from app.core.errors import NotFoundError"),
        ("from app.core.crud import page  # A reason.", "from app.core.crud import page  # A reason."),
    ],
)
def test_imports_of_moved_modules_are_rewritten(before: str, after: str) -> None:
    assert rewrite(f"import re\n\n{before}\n", MOVED) == f"import re\n\n{after}\n"
    assert rewrite(f"{after}\n", MOVED) == f"{after}\n"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('patch("app.core.security.bcrypt.checkpw", never)', ["app.core.security.bcrypt.checkpw"]),
        ('patch("app.audit.jobs.BATCH", 5)', ["app.audit.jobs.BATCH"]),
        ("from app.core.crud import page  # A reason.", ["app.core.crud"]),
        ("import app.core.keyset as keyset", ["app.core.keyset"]),
        ('patch("app.core.security.hashing.bcrypt.checkpw", never)', []),
        ("from app.core.db.crud import page  # A reason.", []),
        ("from app.server import serve", []),
        ('"app.example.com"', []),
    ],
)
def test_mentions_of_moved_modules_that_are_left_are_named(line: str, found: list[str]) -> None:
    assert list(leftovers(f"\n{line}\n", MOVED)) == [(2, name) for name in found]
