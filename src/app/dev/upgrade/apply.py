"""Puts the result of a merge into the working tree, on a branch of its own, makes what is generated, and commits."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from app.dev.upgrade import git, requirements
from app.dev.upgrade.checks import UpgradeError
from app.dev.upgrade.merge import Merged
from app.dev.upgrade.prepare import Sides

_PROJECT = "pyproject.toml"


def apply(merged: Merged, branch: str, new: str, message: str) -> None:
    """Switch to the branch, and leave the merge ready to be committed. An error or Ctrl-C returns to the former branch."""
    tree = git.write(merged.files)
    with _returning(branch):
        git.git("switch", "--quiet", "--create", branch)
        git.git("read-tree", "-m", "-u", "HEAD", tree)
        git.git("update-index", "-z", "--index-info", data=_stages(merged).encode(errors="surrogateescape"))
        git.path("MERGE_HEAD").write_text(f"{new}\n")
        git.path("MERGE_MODE").write_text("no-ff")
        git.path("MERGE_MSG").write_text(f"{message}\n")


@contextmanager
def _returning(branch: str) -> Iterator[None]:
    former = current_branch()
    try:
        yield
    except BaseException as error:
        if git.git("rev-parse", "--abbrev-ref", "HEAD") == branch:
            git.git("reset", "--quiet", "--hard")
            git.git("switch", "--quiet", *former)
            git.git("branch", "--quiet", "--delete", "--force", branch)
        if isinstance(error, git.GitError):
            raise UpgradeError(f"Git refused to merge, and nothing has changed: {error}") from error
        raise


def current_branch() -> tuple[str, ...]:
    """Return the arguments of `git switch` that lead back to where HEAD is now."""
    if git.succeeds("symbolic-ref", "--quiet", "HEAD"):
        return (git.git("symbolic-ref", "--short", "HEAD"),)
    return ("--detach", git.git("rev-parse", "HEAD"))


def _stages(merged: Merged) -> str:
    lines = []
    for path, stages in merged.conflicts.items():
        lines += [
            f"0 {'0' * 40}\t{path}",
            *(f"{each.mode} {each.blob} {stage}\t{path}" for stage, each in stages.items()),
        ]
    return "".join(f"{line}\0" for line in lines)


def finish(sides: Sides, merged: Merged, *, is_from_before_registry: bool) -> None:
    """Commit a merge without conflicts."""
    _run("make", "--no-print-directory", "setup")
    if is_from_before_registry:
        _rewrite(_own_python(sides, merged, added_only=True))
    _run(".venv/bin/ruff", "check", "--quiet", "--fix-only", "--select", "I", *_own_python(sides, merged))
    if not requirements.are_same(git.text(merged.files, _PROJECT), git.text(sides.new, _PROJECT)):
        _run("make", "--no-print-directory", "pins", "PINS=")
    # Before a person has edited a feature from before the registry, the application may not start, and no page can be made.
    _run("make", "--no-print-directory", "docs", may_fail=is_from_before_registry)
    git.git("add", "--update")
    _run("git", "commit", "--quiet", "--no-edit")


def _rewrite(files: Sequence[str]) -> None:
    """Rewrite the code of features from before the registry."""
    for script in ("scripts/upgrade_imports.py", "scripts/upgrade_code.py"):
        _run(".venv/bin/python", script, *files)
    _run(".venv/bin/ruff", "check", "--quiet", "--fix-only", "--select", "F401", *files)
    _run(".venv/bin/ruff", "format", "--quiet", *files)


def _own_python(sides: Sides, merged: Merged, *, added_only: bool = False) -> list[str]:
    """Return the Python files that the clone has added or changed."""
    paths = (path for path in merged.files if path.endswith(".py") and path.startswith(("src/", "tests/")))
    return [
        path for path in paths if path not in sides.new or (not added_only and merged.files[path] != sides.new[path])
    ]


def _run(*command: str, may_fail: bool = False) -> None:
    """Run a command. Its output goes to the terminal."""
    if subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode and not may_fail:
        raise UpgradeError(f"{' '.join(command[:5])} failed after the merge; see the reason above.")
