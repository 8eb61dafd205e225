"""Puts the result of a merge into the working tree, on a branch of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

from app.dev.upgrade import git
from app.dev.upgrade.checks import UpgradeError
from app.dev.upgrade.merge import Merged


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
