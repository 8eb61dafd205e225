"""`make drill`: grows clones on earlier versions, upgrades them to HEAD, and prints the table of docs/upgrading.md."""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.drill.growth import GROWTHS, make

ROOT = Path(__file__).resolve().parents[2]
# Versions by commit, because a checkout may lack tags.
_NEWEST = "ae642a8"
_VERSIONS = (_NEWEST, "281134d")
# Before `src/app/features.py`. The other growths use what this version does not have.
_FIRST = "32b15f9"
_PAIRS = ((_FIRST, "guide"), *((version, growth) for version in _VERSIONS for growth in GROWTHS))
# The tests of the clone's own features, and those that apply to each feature and each document.
_SELECTION = (
    "tests/notes",
    "tests/greetings",
    "tests/test_conventions.py",
    "tests/test_boundaries.py",
    "tests/test_access.py",
)
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
_CONFLICTS = re.compile(r"^Conflicts: (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Result:
    version: str
    growth: str
    files: int
    """Number of existing files that the growth has changed or deleted."""
    conflicts: int
    red: Sequence[str]
    seconds: float

    @property
    def is_green(self) -> bool:
        return not self.conflicts and not self.red


def drill(version: str, growth: str, directory: Path, selection: Sequence[str]) -> Result:
    clone = grown(version, growth, directory / f"{growth}-{version}")
    files = len(git(clone, "diff", "--name-only", "--diff-filter=MD", "HEAD~", "HEAD").splitlines())
    print(f"# {growth} on {version}: {files} existing files changed", flush=True)
    dry = upgrade(clone, "DRY=1")
    started = time.monotonic()
    output = upgrade(clone)
    seconds = time.monotonic() - started
    print(output, flush=True)
    conflicts = int(_CONFLICTS.findall(output)[0])
    assert _CONFLICTS.findall(dry) == [str(conflicts)], "DRY=1 announces other conflicts"
    red = [] if conflicts else [*failures(clone, selection)]
    return Result(version, growth, files, conflicts, red, seconds)


def grown(version: str, growth: str, clone: Path) -> Path:
    """Make a clone without history: one commit with the files of the version, and one with the growth."""
    clone.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", version], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x"], cwd=clone, input=archive, check=True)
    git(clone, "init", "--quiet", "--initial-branch=main")
    for name, value in {"user.name": "Ada", "user.email": "ada@example.com"}.items():
        git(clone, "config", name, value)
    git(clone, "remote", "add", "bedplate", str(upstream(clone.parent)))
    commit(clone, "Begin with Bedplate")
    # The cache saves mypy a minute. It may be incomplete, because another mypy may be writing it at this moment.
    with suppress(FileNotFoundError, shutil.Error):
        shutil.copytree(ROOT / ".mypy_cache", clone / ".mypy_cache", ignore=shutil.ignore_patterns("generated_client"))
    GROWTHS[growth](clone)
    commit(clone, "Our service")
    return clone


def upstream(directory: Path) -> Path:
    """Return a repository whose branch `main` is HEAD, which a checkout of CI has on no branch."""
    repository = directory / "bedplate.git"
    git(ROOT, "init", "--quiet", "--bare", "--initial-branch=main", str(repository))
    git(ROOT, "push", "--quiet", "--force", str(repository), "HEAD:refs/heads/main")
    return repository


def commit(clone: Path, message: str) -> None:
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message", message)


def git(clone: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=clone, check=True, capture_output=True, text=True).stdout


def upgrade(clone: Path, *options: str) -> str:
    """Take the script from HEAD, as a clone from before the script does, and run it."""
    script = clone / ".git" / "upgrade.py"
    script.write_text((ROOT / "scripts" / "upgrade.py").read_text())
    command = [sys.executable, str(script), *options]
    ended = subprocess.run(command, cwd=clone, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if ended.returncode:
        raise SystemExit(f"{ended.stdout}\n{' '.join(command)} failed in {clone}")
    return ended.stdout


def failures(clone: Path, selection: Sequence[str]) -> Iterator[str]:
    """Yield the checks and the tests that fail."""
    for check in ("lint", "types", "contracts", "migrations", "generated"):
        try:
            make(clone, check)
        except subprocess.CalledProcessError:
            yield f"make {check}"
    places = [place for place in selection if (clone / place).exists()]
    command = [".venv/bin/python", "-m", "pytest", "-q", "-m", "not slow", *places]
    ended = subprocess.run(command, cwd=clone, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(ended.stdout[-3000:], flush=True)
    yield from _FAILED.findall(ended.stdout)
    if ended.returncode not in {0, 1}:
        yield f"pytest exits with {ended.returncode}"


def table(results: Sequence[Result]) -> str:
    lines = ["| clone | version | edited files | conflicts | red | seconds |", "|---|---|--:|--:|--:|--:|"]
    lines += [
        f"| {each.growth} | `{each.version}` | {each.files} | {each.conflicts} | {len(each.red)} | {each.seconds:.0f} |"
        for each in results
    ]
    return "\n".join(lines)


def reason_to_skip() -> str | None:
    """Return why CI cannot upgrade a clone here."""
    if "bedplate" in git(ROOT, "remote").split():
        return "This repository is a clone of Bedplate, which has its own drill."
    if subprocess.run(["git", "cat-file", "-e", f"{_NEWEST}^{{commit}}"], cwd=ROOT, check=False).returncode:
        return f"This checkout lacks the version {_NEWEST}. Fetch the whole history: git fetch --unshallow"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="make drill", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only a typical clone")
    parser.add_argument("--all", action="store_true", help="run all tests of each clone, which takes minutes")
    parser.add_argument("--version", help="only clones of this version")
    parser.add_argument("--growth", choices=GROWTHS, help="only clones of this kind")
    parser.add_argument("--keep", type=Path, help="folder that keeps the clones")
    options = parser.parse_args()
    if options.quick and (reason := reason_to_skip()):
        print(reason)
        return 0
    wanted = (_NEWEST, "typical") if options.quick else (options.version, options.growth)
    pairs = [pair for pair in _PAIRS if all(want in {None, has} for want, has in zip(wanted, pair, strict=True))]
    directory = options.keep or Path(tempfile.mkdtemp(prefix="drill-"))
    try:
        results = [drill(*pair, directory, ("tests",) if options.all else _SELECTION) for pair in pairs]
    finally:
        if not options.keep:
            shutil.rmtree(directory)
    print(table(results))
    for each in results:
        print(*(f"{each.growth} on {each.version}: {red}" for red in each.red), sep="\n")
    return 0 if all(each.is_green for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
