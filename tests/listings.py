"""Reads the fenced listings of the documents, applies them to a copy of the repository, and runs commands there."""

import asyncio
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import outside

_FENCE = re.compile(r'^```(?P<language>\w+)(?: title="(?P<path>[^"]+)")?\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)

RUN = "run"


@dataclass(frozen=True)
class Listing:
    """A fenced block: its language, the file that it belongs to (None for a snippet), and its text."""

    language: str
    path: str | None
    text: str


def listings(document: Path) -> Iterator[Listing]:
    """Yield the listings of a document, in order."""
    for match in _FENCE.finditer(document.read_text()):
        yield Listing(match["language"], match["path"], match["text"])


def copy_repository(root: Path, target: Path) -> None:
    """Copy the files that git tracks or would add. The virtual environment, caches and data are left out."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=root, capture_output=True, check=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)


def apply(listing: Listing, root: Path) -> None:
    """Run the commands of a listing titled "run", write a new file, or apply a diff to a file."""
    if listing.path is None:
        return
    if listing.path == RUN:
        commands = listing.text.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
        subprocess.run(["sh", "-euc", commands], cwd=root, check=True)
        return
    path = root / listing.path
    if listing.language == "diff":
        text = path.read_text()
        for hunk in listing.text.split("@@\n"):
            text = _add(text, hunk, listing.path)
        path.write_text(text)
    elif path.exists():
        message = f"{listing.path} already exists: a guide must not overwrite it"
        raise ValueError(message)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(listing.text)


def _add(text: str, hunk: str, name: str) -> str:
    """Add the lines marked + after the lines above them, which must occur exactly once."""
    context, added = (_marked(hunk, mark) for mark in " +")
    if f"{hunk.rstrip()}\n" != "".join(f" {line}\n" for line in context) + "".join(f"+{line}\n" for line in added):
        message = f"{name}: write each hunk as lines to find, then lines to add"
        raise ValueError(message)
    anchor = "".join(f"{line}\n" for line in context)
    if text.count(f"\n{anchor}") != 1:
        message = f"{name}: these lines must occur exactly once:\n{anchor}"
        raise ValueError(message)
    return text.replace(f"\n{anchor}", f"\n{anchor}" + "".join(f"{line}\n" for line in added))


def _marked(hunk: str, mark: str) -> list[str]:
    return [line[1:] for line in hunk.splitlines() if line.startswith(mark)]


async def run(copy: Path, *command: str, **environment: str) -> str:
    """Run a command in the copy, with the programs of this environment first, and return its output."""
    inherited = {name: value for name, value in outside().items() if not name.startswith(("APP_", "PYTEST_", "COV"))}
    programs = f"{Path(sys.executable).parent}:{inherited['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=copy,
        env=inherited | {"PYTHONPATH": str(copy / "src"), "PATH": programs} | environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()
