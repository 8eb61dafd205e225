"""The two versions of an upgrade: the one in the clone, and the one to merge."""

from app.dev.upgrade import git
from app.dev.upgrade.checks import UpgradeError

REMOTE = "bedplate"


def resolve(name: str) -> str:
    """Return the commit of a tag, a branch of the remote or an abbreviated commit."""
    for candidate in (f"refs/{REMOTE}/tags/{name}", f"refs/remotes/{REMOTE}/{name}", name):
        if git.succeeds("rev-parse", "--quiet", "--verify", f"{candidate}^{{commit}}"):
            return git.git("rev-parse", f"{candidate}^{{commit}}")
    raise UpgradeError(
        f"The remote {REMOTE} has no version {name}. Choose a commit, tag or branch of it: git log --oneline {REMOTE}/HEAD"
    )


def base(new: str, given: str) -> str:
    """Return the version of Bedplate on which the clone stands."""
    found = resolve(given) if given else _common_ancestor(new) or _by_tree(new)
    if not found:
        raise UpgradeError(
            "The version that this clone comes from was not found, because no commit of the clone has the files of a version. "
            f"Name that version: make upgrade FROM=… (git log --oneline {REMOTE}/HEAD lists them)"
        )
    if not git.is_ancestor(found, new):
        raise UpgradeError(
            f"{short(new)} is older than the version of this clone, {short(found)}, or on another branch. "
            "Choose a newer version with TO=…"
        )
    return found


def short(commit: str) -> str:
    return git.git("log", "-1", "--format=%h of %as", commit)


def _common_ancestor(new: str) -> str:
    """Return the newest common commit. After a merge, this is the version of the last upgrade."""
    return git.git("merge-base", "HEAD", new) if git.succeeds("merge-base", "HEAD", new) else ""


def _by_tree(new: str) -> str:
    """Find the version whose files a commit of the clone has. Squashed clones and copies of templates begin with one."""
    versions = {tree: commit for commit, tree in _trees("--reverse", new)}
    return next((versions[tree] for _, tree in _trees("HEAD") if tree in versions), "")


def _trees(*arguments: str) -> list[list[str]]:
    return [line.split() for line in git.git("log", "--format=%H %T", *arguments).splitlines()]
