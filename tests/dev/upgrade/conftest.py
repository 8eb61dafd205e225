"""A small Bedplate with two versions, and clones of it."""

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT

CODE = ("scripts/upgrade.py", "src/app/__init__.py", "src/app/dev/__init__.py", "src/app/dev/upgrade")
VERSIONS = "src/app/migrations/versions"
DIGESTS = "tests/migrations.sha256"
MAKEFILE = """\
.PHONY: setup pins docs
setup pins:
\t@echo $@ $(PINS) >> .git/made
docs:
\t@echo made >> docs/configuration.md
"""
PROJECT = """\
[project]
name = "bedplate"
version = "0.1.0"
dependencies = [
    "fastapi",
    "uvloop",
]

[dependency-groups]
dev = ["ruff"]
"""
PIN = "{0}==1.0 \\\n    --hash=sha256:{0}\n    # via {1} (pyproject.toml)\n"
FEATURES = 'FEATURES = (\n    "health",\n    "users",\n)\n'
PRODUCT = 'NAME = "Bedplate"\nSLUG = "bedplate"\n\n\n\n\nDESCRIPTION = "Accounts."\n'
NOTE = "- Texts have a maximum length. Write `max_length=` in each schema."
CHANGELOG = "# Changelog\n\n## 0.2.0\n\n### For clones\n\n{}\n\n### Added\n\n- Much.\n"


def migration(revision: str, parent: str | None) -> str:
    return f'"""{revision}."""\n\nrevision = "{revision}"\ndown_revision = {parent and f"{parent}"!r}\n'.replace(
        "'", '"'
    )


def digest(name: str, text: str) -> str:
    return f"{hashlib.sha256(text.encode()).hexdigest()}  {name}.py\n"


FIRST = migration("20260101_first", None)
SECOND = migration("20260201_second", "20260101_first")
THIRD = migration("20260202_third", "20260201_second")
OWN = migration("20260301_own", "20260101_first")

OLD: Mapping[str, str] = {
    ".gitignore": ".venv\n",
    "README.md": "# Bedplate\n\nOne.\n",
    "CHANGELOG.md": "# Changelog\n",
    ".github/ci.yml": "one\n",
    "Makefile": MAKEFILE,
    "pyproject.toml": PROJECT,
    "requirements/base.txt": "# Pins.\n" + PIN.format("fastapi", "bedplate") + PIN.format("uvloop", "bedplate"),
    "requirements/dev.txt": "# Pins.\n" + PIN.format("fastapi", "bedplate") + PIN.format("ruff", "bedplate"),
    "docs/configuration.md": "One.\n",
    "docs/comparison.md": "One.\n",
    "src/app/core/product.py": PRODUCT,
    "src/app/features.py": FEATURES,
    "src/app/mail.py": "ONE = 1\nTWO = 2\n",
    "src/app/users/service.py": "NAME = 1\n",
    "src/app/audit/service.py": "NAME = 1\n",
    f"{VERSIONS}/20260101_first.py": FIRST,
    DIGESTS: digest("20260101_first", FIRST),
}
NEW: Mapping[str, str] = {
    "README.md": "# Bedplate\n\nTwo.\n",
    "CHANGELOG.md": CHANGELOG.format(NOTE),
    ".github/ci.yml": "two\n",
    ".github/release.yml": "two\n",
    "pyproject.toml": PROJECT.replace("0.1.0", "0.2.0").replace('"uvloop"', '"uvloop>=2"'),
    "requirements/base.txt": OLD["requirements/base.txt"].replace("uvloop==1.0", "uvloop==2.0"),
    "docs/configuration.md": "Two.\n",
    "docs/comparison.md": "Two.\n",
    "src/app/core/product.py": PRODUCT.replace('"bedplate"\n', '"bedplate"\nAPI_VERSION = "1"\n'),
    "src/app/features.py": FEATURES.replace('"users",\n', '"users",\n    "teams",\n'),
    "src/app/mail.py": "ONE = 1\nTWO = 22\n",
    "src/app/users/service.py": "NAME = 2\n",
    "src/app/audit/service.py": "NAME = 2\n",
    "src/app/audit/crud.py": "NAME = 2\n",
    f"{VERSIONS}/20260201_second.py": SECOND,
    f"{VERSIONS}/20260202_third.py": THIRD,
    DIGESTS: digest("20260101_first", FIRST) + digest("20260201_second", SECOND) + digest("20260202_third", THIRD),
}


@dataclass(frozen=True)
class Repository:
    root: Path

    def git(self, *arguments: str) -> str:
        ended = subprocess.run(["git", *arguments], cwd=self.root, check=True, capture_output=True, text=True)
        return ended.stdout.strip()

    def name_author(self) -> None:
        for name, value in {"user.name": "Ada", "user.email": "ada@example.com"}.items():
            self.git("config", name, value)

    def write(self, files: Mapping[str, str | None]) -> None:
        """Write files. A file without a text is deleted."""
        for name, text in files.items():
            path = self.root / name
            if text is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)

    def commit(self, files: Mapping[str, str | None], message: str = "Change") -> str:
        self.write(files)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)
        return self.git("rev-parse", "HEAD")

    def read(self, name: str) -> str | None:
        path = self.root / name
        return path.read_text() if path.exists() else None

    def upgrade(self, *options: str, **environment: str) -> tuple[int, str]:
        """Run the script of the newest version. Return its exit code and its output."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("UPGRADE_", "GIT_"))}
        # Only the configuration of the repository counts.
        inherited |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        ended = subprocess.run(
            [sys.executable, ROOT / "scripts" / "upgrade.py", *options],
            cwd=self.root,
            env=inherited | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return ended.returncode, ended.stdout

    @property
    def state(self) -> tuple[str, str, str]:
        """The branch, the commits and the changes: what an upgrade that stops leaves as it was."""
        return (
            self.git("rev-parse", "--abbrev-ref", "HEAD"),
            self.git("log", "--format=%H", "--branches"),
            self.git("status", "-s"),
        )

    @property
    def dependencies(self) -> list[str]:
        found: list[str] = tomllib.loads((self.root / "pyproject.toml").read_text())["project"]["dependencies"]
        return found


def new_repository(root: Path) -> Repository:
    root.mkdir(parents=True)
    repository = Repository(root)
    repository.git("init", "--quiet", "--initial-branch=main")
    repository.name_author()
    return repository


def add(repository: Repository, *names: str) -> None:
    """Copy files and folders of this repository."""
    for name in names:
        target = repository.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Bedplate with the tags v0.1.0 and v0.2.0. The old version has no `make upgrade`."""
    repository = new_repository(tmp_path_factory.mktemp("upstream") / "bedplate")
    repository.commit({"README.md": "# Before\n"})
    repository.commit(OLD)
    repository.git("tag", "v0.1.0")
    add(repository, *CODE)
    repository.commit(NEW)
    repository.git("tag", "v0.2.0")
    return repository


@pytest.fixture
def bedplate(versions: Repository, tmp_path: Path) -> Repository:
    return Repository(shutil.copytree(versions.root, tmp_path / "bedplate"))


@pytest.fixture
def clone(bedplate: Repository, tmp_path: Path) -> Repository:
    """A clone of v0.1.0 without history."""
    clone = new_repository(tmp_path / "clone")
    (clone.root / ".venv").symlink_to(sys.prefix)
    clone.git("remote", "add", "bedplate", str(bedplate.root))
    clone.commit(OLD, "Begin")
    return clone
