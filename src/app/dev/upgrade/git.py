"""Git commands. Trees and commits are made in the object database, so the working tree stays as it is."""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Temporary commits only carry a tree to `git merge-tree`; nothing refers to them afterwards.
_NOBODY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "upgrade"), ("EMAIL", "upgrade@localhost"), ("DATE", "2000-01-01T00:00:00Z"))
}
_INHERITED: Mapping[str, str] = {}


class GitError(Exception):
    """A git command failed. The text is its error output."""


@dataclass(frozen=True)
class Entry:
    """A file in a tree."""

    mode: str
    blob: str


type Tree = Mapping[str, Entry]
"""The files of a tree by their path."""


def git(*arguments: str, data: bytes = b"", environment: Mapping[str, str] = _INHERITED) -> str:
    return run(*arguments, data=data, environment=environment).decode(errors="surrogateescape").strip("\n")


def run(
    *arguments: str, data: bytes = b"", accept: Sequence[int] = (0,), environment: Mapping[str, str] = _INHERITED
) -> bytes:
    """Run git and return its output. An exit code that is not accepted raises GitError."""
    ended = subprocess.run(
        ["git", *arguments], input=data, capture_output=True, check=False, env={**os.environ, **environment}
    )
    if ended.returncode not in accept:
        raise GitError((ended.stderr or ended.stdout).decode(errors="replace").strip())
    return ended.stdout


def succeeds(*arguments: str) -> bool:
    return subprocess.run(["git", *arguments], capture_output=True, check=False).returncode == 0


def read(tree: str) -> dict[str, Entry]:
    lines = run("ls-tree", "-r", "-z", tree).decode(errors="surrogateescape").split("\0")
    parts = (line.partition("\t") for line in lines if line)
    return {path: Entry(*(facts.split()[index] for index in (0, 2))) for facts, _, path in parts}


def text(tree: Tree, path: str) -> str:
    """Return the text of a file, or nothing if the tree does not have it."""
    return blob(tree[path].blob) if path in tree else ""


def blob(name: str) -> str:
    return run("cat-file", "blob", name).decode(errors="surrogateescape")


def store(content: str) -> str:
    return git("hash-object", "-w", "--stdin", data=content.encode(errors="surrogateescape"))


def replaced(tree: Tree, path: str, content: str) -> Entry:
    return Entry(tree[path].mode if path in tree else "100644", store(content))


def write(files: Tree) -> str:
    """Store a tree with these files."""
    listing = "".join(f"{entry.mode} {entry.blob}\t{path}\0" for path, entry in files.items())
    with tempfile.TemporaryDirectory() as directory:
        index = {"GIT_INDEX_FILE": str(Path(directory) / "index")}
        git("update-index", "-z", "--index-info", data=listing.encode(errors="surrogateescape"), environment=index)
        return git("write-tree", environment=index)


def commit_tree(tree: str, *parents: str) -> str:
    """Store a temporary commit."""
    return git(
        "commit-tree",
        tree,
        *(part for parent in parents for part in ("-p", parent)),
        "-m",
        "upgrade",
        environment=_NOBODY,
    )


def is_ancestor(older: str, newer: str) -> bool:
    return succeeds("merge-base", "--is-ancestor", older, newer)


def path(name: str) -> Path:
    """Return the path of one of git's own files, such as MERGE_HEAD."""
    return Path(git("rev-parse", "--git-path", name))


@contextmanager
def files(blobs: Sequence[str]) -> Iterator[list[str]]:
    """Write blobs to temporary files."""
    with tempfile.TemporaryDirectory() as directory:
        paths = [Path(directory, str(number)) for number, _ in enumerate(blobs)]
        for target, name in zip(paths, blobs, strict=True):
            target.write_bytes(run("cat-file", "blob", name))
        yield [str(target) for target in paths]
