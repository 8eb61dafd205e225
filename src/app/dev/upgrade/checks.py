"""What has to be true of a clone before an upgrade."""

import re

from app.dev.upgrade import git

_MINIMUM_GIT = (2, 38)
_UNFINISHED = {
    "MERGE_HEAD": "A merge is in progress. Commit it, or end it: git merge --abort",
    "CHERRY_PICK_HEAD": "A cherry-pick is in progress. Finish it, or end it: git cherry-pick --abort",
    "REVERT_HEAD": "A revert is in progress. Finish it, or end it: git revert --abort",
    "rebase-merge": "A rebase is in progress. Finish it, or end it: git rebase --abort",
    "rebase-apply": "A rebase is in progress. Finish it, or end it: git rebase --abort",
}


class UpgradeError(Exception):
    """The upgrade does not start, or stops. The text says why, and what to do."""


def check_clone() -> None:
    version = git.git("--version")
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < _MINIMUM_GIT:
        raise UpgradeError(f"make upgrade needs git 2.38 or newer, and this is {version}. Install a newer git.")
    if git.git("rev-parse", "--is-shallow-repository") == "true":
        raise UpgradeError(
            "This clone has only a part of its history, so its version is unknown. Fetch the rest: git fetch --unshallow"
        )
    for name, sentence in _UNFINISHED.items():
        if git.path(name).exists():
            raise UpgradeError(sentence)
    if changed := git.git("status", "--porcelain", "--untracked-files=no").splitlines():
        raise UpgradeError(
            f"{len(changed)} files have changes that are not committed, such as {changed[0][3:].strip()}. Commit or stash them."
        )
    if not git.succeeds("var", "GIT_COMMITTER_IDENT"):
        raise UpgradeError(
            "Git does not know who commits. Tell it: git config user.name 'Ada Lovelace'; git config user.email ada@example.com"
        )


def check_branch(branch: str) -> None:
    if git.succeeds("rev-parse", "--verify", "--quiet", f"refs/heads/{branch}"):
        raise UpgradeError(
            f"The branch {branch} of an earlier upgrade exists. Use it: git switch {branch}; or delete it: git branch -D {branch}"
        )
