"""`make upgrade` says why it does not start, and leaves the clone as it is."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dev.upgrade.conftest import Repository, new_repository

type Fault = Callable[[Repository, Repository], object]


def start_a_merge(clone: Repository, _bedplate: Repository) -> None:
    clone.git("switch", "--quiet", "--create", "other")
    clone.commit({"other.txt": "1\n"})
    clone.git("switch", "--quiet", "main")
    clone.git("merge", "--quiet", "--no-commit", "--no-ff", "other")


def start_a_rebase(clone: Repository, _bedplate: Repository) -> None:
    clone.commit({"README.md": "1\n"})
    clone.commit({"README.md": "2\n"})
    subprocess.run(
        ["git", "rebase", "--quiet", "--onto", "HEAD~2", "HEAD~"], cwd=clone.root, check=False, capture_output=True
    )


def forget_the_author(clone: Repository, _bedplate: Repository) -> None:
    clone.git("config", "--unset", "user.name")
    clone.git("config", "--unset", "user.email")
    clone.git("config", "user.useConfigOnly", "true")


def leave_the_first_version(clone: Repository, _bedplate: Repository) -> None:
    clone.write({"README.md": "# Ours\n"})
    clone.git("commit", "--quiet", "--all", "--amend", "--message", "Begin differently")


FAULTS: dict[str, tuple[Fault, tuple[str, ...], str]] = {
    "no remote": (
        lambda clone, _: clone.git("remote", "remove", "bedplate"),
        (),
        "The clone has no remote bedplate. Add it: git remote add bedplate URL-OF-BEDPLATE",
    ),
    "a remote that does not answer": (
        lambda _, bedplate: shutil.rmtree(bedplate.root),
        (),
        "The remote bedplate cannot be fetched: ",
    ),
    "a remote without the command": (
        lambda _, bedplate: bedplate.git("reset", "--quiet", "--hard", "v0.1.0"),
        (),
        "The remote bedplate has no version with make upgrade. ",
    ),
    "changes that are not committed": (
        lambda clone, _: clone.write({"README.md": "# Ours\n"}),
        (),
        "1 files have changes that are not committed, such as README.md. Commit or stash them.",
    ),
    "a merge in progress": (start_a_merge, (), "A merge is in progress. Commit it, or end it: git merge --abort"),
    "a rebase in progress": (start_a_rebase, (), "A rebase is in progress. Finish it, or end it: git rebase --abort"),
    "nobody to commit": (forget_the_author, (), "Git does not know who commits. Tell it: git config user.name "),
    "an unknown version": (lambda *_: None, ("TO=v9",), "The remote bedplate has no version v9. Choose a commit, tag"),
    "an unknown FROM": (lambda *_: None, ("FROM=v9",), "The remote bedplate has no version v9. Choose a commit, tag"),
    "an older version": (
        lambda *_: None,
        ("TO=v0.1.0~",),
        "The version that this clone comes from was not found, because no commit of the clone has the files of a version. ",
    ),
    "an older version than FROM": (
        lambda *_: None,
        ("TO=v0.1.0~", "FROM=v0.1.0"),
        "{older} is older than the version of this clone, {old}",
    ),
    "a clone of no version": (
        leave_the_first_version,
        (),
        "The version that this clone comes from was not found, because no commit of the clone has the files of a version. ",
    ),
    "an unknown option": (lambda *_: None, ("VERSION=v9",), "VERSION=v9 is unknown. Use TO=…, FROM=… or DRY=1."),
    "the branch of an earlier upgrade": (
        lambda clone, bedplate: clone.git("branch", f"upgrade-{bedplate.git('rev-parse', '--short', 'HEAD')}"),
        (),
        "The branch upgrade-{new} of an earlier upgrade exists. Use it: git switch upgrade-{new}; or delete it: ",
    ),
}


@pytest.mark.parametrize(("fault", "options", "sentence"), FAULTS.values(), ids=FAULTS)
def test_an_upgrade_that_cannot_start_says_why_and_changes_nothing(
    clone: Repository, bedplate: Repository, fault: Fault, options: tuple[str, ...], sentence: str
) -> None:
    old, older = (bedplate.git("log", "-1", "--format=%h of %as", name) for name in ("v0.1.0", "v0.1.0~"))
    expected = sentence.format(new=bedplate.git("rev-parse", "--short", "HEAD"), old=old, older=older)
    fault(clone, bedplate)
    before = clone.state

    code, output = clone.upgrade(*options)

    assert (code, output.count("\n")) == (1, 1), output
    assert output.startswith(expected)
    assert clone.state == before


def test_a_shallow_clone_is_refused(bedplate: Repository, tmp_path: Path) -> None:
    url = f"file://{bedplate.root}"
    subprocess.run(["git", "clone", "--quiet", "--depth=1", "--origin=bedplate", url, tmp_path / "shallow"], check=True)

    code, output = Repository(tmp_path / "shallow").upgrade()

    assert code == 1
    assert output.startswith(
        "This clone has only a part of its history, so its version is unknown. Fetch the rest: git fetch "
    )


def test_a_folder_outside_of_a_clone_is_refused(tmp_path: Path) -> None:
    code, output = Repository(tmp_path).upgrade(GIT_CEILING_DIRECTORIES=str(tmp_path.parent))

    assert (code, output) == (1, "This folder belongs to no clone. Change to the folder of the clone.\n")


def test_an_old_git_is_refused(clone: Repository, tmp_path: Path) -> None:
    wrapper = tmp_path / "bin" / "git"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo git version 2.37.4 && exit\nexec {shutil.which("git")} "$@"\n'
    )
    wrapper.chmod(0o755)

    code, output = clone.upgrade(PATH=f"{wrapper.parent}:{os.environ['PATH']}")

    assert code == 1
    assert output == "make upgrade needs git 2.38 or newer, and this is git version 2.37.4. Install a newer git.\n"


def test_a_file_in_the_way_ends_the_upgrade_on_the_former_branch(clone: Repository) -> None:
    clone.write({"src/app/audit/crud.py": "OURS = 1\n"})
    before = clone.state

    code, output = clone.upgrade()

    assert code == 1
    assert "Git refused to merge, and nothing has changed: " in output
    assert "src/app/audit/crud.py" in output
    assert clone.state == before
    assert clone.read("src/app/audit/crud.py") == "OURS = 1\n"


def test_a_step_that_fails_after_the_merge_is_named_with_the_way_back(clone: Repository) -> None:
    clone.commit({"Makefile": "setup:\n\t@exit 1\n"})
    before = clone.state

    code, output = clone.upgrade()

    assert code == 1
    assert "make --no-print-directory setup failed after the merge; see the reason above.\n" in output
    assert "\nTo go on after that: git add --all && " in output
    go_back(clone, output)
    assert clone.state == before


def go_back(clone: Repository, output: str) -> None:
    """Run the commands that the output names."""
    (line,) = (line for line in output.splitlines() if line.startswith("To go back: "))
    subprocess.run(["sh", "-euc", line.partition(": ")[2]], cwd=clone.root, check=True, capture_output=True)


def test_ctrl_c_after_the_merge_is_answered_with_the_way_back(clone: Repository) -> None:
    clone.commit({"Makefile": "setup:\n\t@kill -INT $$UPGRADING; sleep 1\n"})
    before = clone.state
    script = Path(__file__).parents[3] / "scripts" / "upgrade.py"

    ended = subprocess.run(
        ["sh", "-c", f'export UPGRADING=$$; exec "$0" {script}', sys.executable],
        cwd=clone.root,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 1
    assert ended.stderr.startswith("The upgrade was interrupted.\nTo go back: git reset --hard && git switch main")
    go_back(clone, ended.stderr)
    assert clone.state == before


def test_a_clone_on_no_branch_can_go_back(clone: Repository) -> None:
    clone.git("switch", "--quiet", "--detach")
    before = clone.state

    code, output = clone.upgrade()
    go_back(clone, output)

    assert code == 0
    assert clone.state == before


def test_the_repository_of_another_project_is_not_a_clone(tmp_path: Path, bedplate: Repository) -> None:
    other = new_repository(tmp_path / "other")
    other.commit({"README.md": "# Other\n"})
    other.git("remote", "add", "bedplate", str(bedplate.root))

    code, output = other.upgrade()

    assert code == 1
    assert output.startswith("The version that this clone comes from was not found")
