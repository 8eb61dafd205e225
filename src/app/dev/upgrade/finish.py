"""The steps after a merge without conflicts: what is generated is made again, and the merge is committed."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from app.dev.upgrade import git, requirements
from app.dev.upgrade.checks import UpgradeError
from app.dev.upgrade.merge import Merged
from app.dev.upgrade.prepare import Sides

# Before this file, modules had other names.
_REGISTRY = "src/app/features.py"
_PROJECT = "pyproject.toml"


def finish(sides: Sides, merged: Merged, *, is_from_before_registry: bool) -> None:
    _run("make", "--no-print-directory", "setup")
    if is_from_before_registry:
        _run(".venv/bin/python", "scripts/upgrade_imports.py", *_own_python(sides, merged, added_only=True))
    _run(".venv/bin/ruff", "check", "--quiet", "--fix-only", "--select", "I", *_own_python(sides, merged))
    if not requirements.are_same(git.text(merged.files, _PROJECT), git.text(sides.new, _PROJECT)):
        _run("make", "--no-print-directory", "pins", "PINS=")
    _run("make", "--no-print-directory", "docs")
    git.git("add", "--update")
    _run("git", "commit", "--quiet", "--no-edit")


def is_from_before_registry(base: Iterable[str], new: Iterable[str]) -> bool:
    return _REGISTRY in {*new} - {*base}


def _own_python(sides: Sides, merged: Merged, *, added_only: bool = False) -> list[str]:
    """Return the Python files that the clone has added or changed."""
    paths = (path for path in merged.files if path.endswith(".py") and path.startswith(("src/", "tests/")))
    return [
        path for path in paths if path not in sides.new or (not added_only and merged.files[path] != sides.new[path])
    ]


def _run(*command: str) -> None:
    """Run a command. Its output goes to the terminal."""
    if subprocess.run(command, check=False, cwd=Path.cwd(), stdin=subprocess.DEVNULL).returncode:
        raise UpgradeError(f"{' '.join(command[:5])} failed after the merge; see the reason above.")


def say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
