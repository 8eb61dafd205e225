"""Copies of the repository, with git, in which tests generate and remove features."""

import shutil
import subprocess
from pathlib import Path

import pytest

from app.dev.generator.plan import plan as generate
from tests.conftest import ROOT
from tests.listings import copy_repository

_GIT = ("git", "-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run([*_GIT, *arguments], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout


def commit(root: Path) -> None:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--allow-empty", "--message", "State")


@pytest.fixture(scope="session")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committed copy of the repository."""
    root = tmp_path_factory.mktemp("removal") / "committed"
    copy_repository(ROOT, root)
    git(root, "init", "--quiet")
    commit(root)
    return root


@pytest.fixture(scope="session")
def grown(committed: Path) -> Path:
    """The copy with two features in a second commit: `strings` refers to `violins`."""
    root = Path(shutil.copytree(committed, committed.with_name("grown")))
    generate(root, "violins", "name:str").write()
    generate(root, "strings", "violin:ref(violins):optional").write()
    commit(root)
    return root


@pytest.fixture
def copy(grown: Path, tmp_path: Path) -> Path:
    """The grown copy, for one test."""
    return Path(shutil.copytree(grown, tmp_path / "copy"))
