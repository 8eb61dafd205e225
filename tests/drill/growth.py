"""Grows a clone as its adopters do: features, and edits of existing files."""

import hashlib
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from tests.listings import RUN, Listing, apply, listings

VERSIONS = Path("src/app/migrations/versions")
DIGESTS = Path("tests/migrations.sha256")
_OWN_README = "# Orchard\n\nThe service that counts our apples.\n"
_OWN_CHANGELOG = "# Changelog\n\n## 7.1\n\n- Apples are counted in kilograms.\n"
_ROLE = '''"""Add the role gardener."""

from alembic import op

revision = "{revision}"
down_revision = "{parent}"


def upgrade() -> None:
    allow("'user', 'admin', 'gardener'")


def downgrade() -> None:
    op.execute("UPDATE users SET role = 'user' WHERE role = 'gardener'")
    allow("'user', 'admin'")


def allow(roles: str) -> None:
    op.execute("""
        -- squawk-ignore ban-drop-constraint
        ALTER TABLE users DROP CONSTRAINT ck_users_role
    """)
    op.execute(f"ALTER TABLE users ADD CONSTRAINT ck_users_role CHECK (role IN ({{roles}})) NOT VALID")
    # A transaction of its own: looking through the table must not hold the lock of the statements above.
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE users VALIDATE CONSTRAINT ck_users_role")
'''
_COLUMN = '''"""Add a nickname to accounts."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{parent}"


def upgrade() -> None:
    op.add_column("users", sa.Column("nickname", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("users", "nickname")
'''
# File, the text to find, and the text in its place. Each file of this list exists in each version that the drill begins with.
_EDITS = (
    ("pyproject.toml", 'description = "Application', 'description = "Counts apples. Application'),
    ("pyproject.toml", 'version = "0.1.0"', 'version = "7.1.0"'),
    ("pyproject.toml", '    "httptools>=', '    "humanize>=4.0",\n    "httptools>='),
    ("src/app/core/product.py", 'API_VERSION = "1"', 'API_VERSION = "7"'),
    ("src/app/core/product.py", "Accounts, login sessions and the features built on them.", "Counts our apples."),
    ("src/app/users/roles.py", '    ADMIN = "admin"\n', '    ADMIN = "admin"\n    GARDENER = "gardener"\n'),
    (
        "src/app/users/roles.py",
        "Role.ADMIN: frozenset(SCOPES)",
        'Role.GARDENER: frozenset({"greetings:send"}), Role.ADMIN: frozenset(SCOPES)',
    ),
    (
        "src/app/users/models.py",
        "    full_name: Mapped[str | None]\n",
        "    full_name: Mapped[str | None]\n    nickname: Mapped[str | None]\n",
    ),
    ("docs/security/data.toml", 'full_name = "personal"\n', 'full_name = "personal"\nnickname = "personal"\n'),
    ("Makefile", ".PHONY: docs\n", ".PHONY: apples\napples: ## Count the apples\n\t@echo 3\n\n.PHONY: docs\n"),
    (".github/workflows/ci.yml", "branches: [main]", "branches: [main, harvest]"),
    (".ci/run", "make setup || exit 1\n", "make setup || exit 1\necho 'Counting apples'\n"),
    (".gitignore", ".coverage\n", ".coverage\napples.csv\n"),
    ("AGENTS.md", "# For coding assistants\n", "# For coding assistants\n\nThis service counts apples.\n"),
    ("SECURITY.md", "\n\n", "\n\nWrite to security@orchard.example.\n\n"),
    ("LICENSE", "MIT License", "Copyright (c) Orchard\n\nMIT License"),
    ("CONTRIBUTING.md", "# Contributing\n", "# Contributing\n\nAsk a gardener first.\n"),
    ("docs/README.md", "## Start\n\n", "## Start\n\n- [apples.md](apples.md): how we count.\n"),
    ("deploy/monitoring/alerts.yaml", "severity: critical", "severity: page"),
    ("scripts/feature/service.py.jinja", '"""', '"""Orchard: '),
)
_LINES_ABOUT_THE_COMPARISON = re.compile(r"^.*\]\((?:docs/)?comparison\.md\).*\n", re.MULTILINE)


class GrowthError(Exception):
    """The clone has no place for an edit of the drill."""


def guide(clone: Path) -> None:
    """Add the feature of the guide."""
    for listing in listings(clone / "docs" / "adding-a-feature.md"):
        _apply(clone, listing)


def typical(clone: Path) -> None:
    """Add what a service adds in a year: features with all parts, a role, a column, a dependency, own documents."""
    guide(clone)
    for listing in listings(clone / "docs" / "feature-parts.md"):
        _apply(clone, replace(listing, text=listing.text.replace('"account",', '"notes",')))
    _migrate(clone, "add_gardener", _ROLE)
    _migrate(clone, "add_nickname", _COLUMN)
    (clone / "README.md").write_text(_OWN_README)
    (clone / "CHANGELOG.md").write_text(_OWN_CHANGELOG)
    (clone / "docs" / "apples.md").write_text("# Apples\n\nOne by one.\n")
    (clone / "docs" / "comparison.md").unlink()
    for path, old, new in _EDITS:
        if (clone / path).exists():
            _edit(clone / path, old, new)
    for page in clone.glob("docs/**/*.md"):
        page.write_text(_LINES_ABOUT_THE_COMPARISON.sub("", page.read_text()))
    make(clone, "setup")
    subprocess.run([".venv/bin/ruff", "format", "--quiet", "src/app/users/roles.py"], cwd=clone, check=True)
    make(clone, "pins", "PINS=")
    make(clone, "docs")


def renamed(clone: Path) -> None:
    typical(clone)
    make(clone, "rename", "NAME=Orchard & Sons")


GROWTHS: Mapping[str, Callable[[Path], None]] = {"guide": guide, "typical": typical, "renamed": renamed}


def make(clone: Path, *arguments: str) -> None:
    subprocess.run(["make", "--no-print-directory", *arguments], cwd=clone, check=True, stdin=subprocess.DEVNULL)


def _apply(clone: Path, listing: Listing) -> None:
    """Apply a listing. A migration follows the newest one, and its digest is recorded."""
    if not listing.path or listing.path == RUN:
        return
    path = clone / listing.path
    is_migration = path.parent == clone / VERSIONS
    text = re.sub(r'^down_revision = ".*"$', f'down_revision = "{_head(clone)}"', listing.text, flags=re.MULTILINE)
    apply(replace(listing, text=text) if is_migration else listing, clone)
    if is_migration:
        _record(clone, path)


def _migrate(clone: Path, name: str, template: str) -> None:
    parent = _head(clone)
    revision = f"{parent[:8]}_{name}"
    path = clone / VERSIONS / f"{revision}.py"
    path.write_text(template.format(revision=revision, parent=parent))
    _record(clone, path)


def _record(clone: Path, migration: Path) -> None:
    with (clone / DIGESTS).open("a") as digests:
        digests.write(f"{hashlib.sha256(migration.read_bytes()).hexdigest()}  {migration.name}\n")


def _head(clone: Path) -> str:
    texts = [path.read_text() for path in (clone / VERSIONS).glob("2*.py")]
    revisions, parents = (
        {line[1] for text in texts for line in re.finditer(rf'^{name} = "(.*)"', text, re.MULTILINE)}
        for name in ("revision", "down_revision")
    )
    (head,) = revisions - parents
    return str(head)


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    if old not in text:
        raise GrowthError(f"{path} does not contain {old!r}; change the edit in tests/drill/growth.py")
    path.write_text(text.replace(old, new, 1))
