"""Merges a newer Bedplate into this clone: fetches it, and runs the code of the newer version that does the rest.

Uses only the standard library and git, and no other file of the clone, so that a clone from before this script can run it:

    git show bedplate/main:scripts/upgrade.py > ../upgrade.py && python3 ../upgrade.py DRY=1
"""

import io
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

REMOTE = "bedplate"
# Modules that import only the standard library and each other.
CODE = ("src/app/__init__.py", "src/app/dev/__init__.py", "src/app/dev/upgrade")
_OPTIONS = ("TO", "FROM", "DRY")


class UpgradeError(Exception):
    """The text says what is wrong, and what to do."""


def main(arguments: list[str]) -> int:
    try:
        check_python()
        options = read_options(arguments)
        fetch()
        unpack(options.get("TO", ""))
    except UpgradeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("The upgrade was interrupted. Nothing has changed.\n")
        return 1
    run([f"{name}={value}" for name, value in options.items()])
    return 0


def check_python() -> None:
    if sys.version_info < (3, 12):  # noqa: UP036  # Any Python may be asked to run this script.
        raise UpgradeError("make upgrade needs Python 3.12 or newer. Run the script with .venv/bin/python.")


def read_options(arguments: list[str]) -> dict[str, str]:
    """Return the options that are set: arguments such as TO=v0.3.0, or variables such as UPGRADE_TO from the Makefile."""
    options = {name: os.environ.get(f"UPGRADE_{name}", "") for name in _OPTIONS}
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name not in options:
            raise UpgradeError(f"{argument} is unknown. Use TO=…, FROM=… or DRY=1.")
        options[name] = value
    return {name: value for name, value in options.items() if value}


def fetch() -> None:
    if git("rev-parse", "--show-toplevel").returncode:
        raise UpgradeError("This folder belongs to no clone. Change to the folder of the clone.")
    if git("remote", "get-url", REMOTE).returncode:
        raise UpgradeError(f"The clone has no remote {REMOTE}. Add it: git remote add {REMOTE} URL-OF-BEDPLATE")
    # Tags of Bedplate would collide with those of the clone; TO=… takes a tag of the remote from its own folder.
    fetched = git(
        "fetch",
        "--quiet",
        "--no-tags",
        REMOTE,
        f"+refs/tags/*:refs/{REMOTE}/tags/*",
        f"+refs/heads/*:refs/remotes/{REMOTE}/*",
    )
    if fetched.returncode:
        reason = fetched.stderr.decode(errors="replace").strip().replace("\n", " ")
        raise UpgradeError(
            f"The remote {REMOTE} cannot be fetched: {reason}. Check the network and git remote get-url {REMOTE}."
        )
    git("remote", "set-head", REMOTE, "--auto")


def unpack(to: str) -> None:
    """Take the code from the version to merge or, if that is older than the code, from the newest one."""
    for version in (f"refs/{REMOTE}/tags/{to}", f"{REMOTE}/{to}", to, f"{REMOTE}/HEAD", f"{REMOTE}/main"):
        archive = git("archive", version, *CODE)
        if archive.returncode == 0:
            shutil.rmtree(folder(), ignore_errors=True)
            with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
                files.extractall(folder(), filter="data")
            return
    raise UpgradeError(f"The remote {REMOTE} has no version with make upgrade. Check git remote get-url {REMOTE}.")


def folder() -> Path:
    """Return the folder for the code. It is inside .git, so the working tree stays clean."""
    return Path(git("rev-parse", "--absolute-git-dir").stdout.decode().strip()) / "bedplate-upgrade"


def run(arguments: list[str]) -> None:
    sys.path.insert(0, str(folder() / "src"))
    sys.argv[1:] = arguments
    runpy.run_module("app.dev.upgrade", run_name="__main__", alter_sys=True)


def git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", *arguments], capture_output=True, check=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
