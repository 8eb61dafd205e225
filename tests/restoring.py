"""Runs the commands of docs/operations/backups.md: dumps a database, and restores it into another one."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

import asyncpg

from app.dev.postgres.binaries import find_binaries
from tests.conftest import KEY_SET, ROOT, cloned
from tests.volume import plain

EMPTY = "DROP SCHEMA public CASCADE; CREATE SCHEMA public"
PAGE = ROOT / "docs" / "operations" / "backups.md"


def documented(program: str) -> str:
    """Return the only block of commands of the page that begins with this program."""
    blocks = re.findall(r"^( *)```bash\n(.*?)^\1```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    (block,) = [text for text in (dedent(block) for _, block in blocks) if text.startswith(f"{program} ")]
    return block


@dataclass
class Restore:
    """A database, its dump in a directory, and an empty database to restore it into."""

    source: str
    target: str
    directory: Path
    keys: str = KEY_SET
    variables: dict[str, str] = field(default_factory=dict)

    def run(self, commands: str) -> subprocess.CompletedProcess[str]:
        """Run commands of the page as an operator does."""
        programs = (str(Path(sys.executable).parent), str(find_binaries().directory), os.environ["PATH"])
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("APP_", "DATABASE_"))}
        environment = {
            **inherited,
            "PATH": os.pathsep.join(programs),
            "DATABASE": plain(self.source),
            "RESTORED": plain(self.target),
            "DATABASE_URL": self.target,
            "APP_ENVIRONMENT": "test",
            "APP_AUTH__SIGNING_KEYS": self.keys,
            **self.variables,
        }
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.directory,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def succeed(self, commands: str) -> str:
        ended = self.run(commands)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def dump(self) -> None:
        self.succeed(documented("pg_dump"))

    def restore(self) -> None:
        self.succeed(documented("pg_restore"))

    def prepare(self) -> str:
        """Migrate, check and end all sessions. Return what the commands print."""
        return self.succeed(documented("app"))

    def check(self) -> tuple[int, str, list[str]]:
        """Return exit code, output and the sentences of `app backup-check`."""
        ended = self.run("app backup-check")
        return ended.returncode, ended.stdout, [line.removeprefix("app: ") for line in ended.stderr.splitlines()]


@asynccontextmanager
async def restoring(template_url: str, source: str, directory: Path) -> AsyncIterator[Restore]:
    async with cloned(template_url) as target:
        await execute(target, EMPTY)
        yield Restore(source, target, directory)


async def execute(url: str, statement: str) -> None:
    """Run a statement on a separate connection."""
    connection = await asyncpg.connect(plain(url))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
