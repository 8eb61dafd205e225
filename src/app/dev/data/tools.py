"""`make psql`, `make shell`, `make app` and `make reset`: tools for the database of `make run`."""

import ast
import asyncio
import code
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from types import CodeType, FunctionType
from typing import Any, override

import sqlalchemy
import typer

from app import features
from app.core.db.database import Database
from app.dev import run
from app.settings import load_settings

_BANNER = """Names: settings, database, session, sqlalchemy, and the services {services}.
`await` works. Nothing is stored before `await session.commit()`. Ctrl-D ends the prompt."""


def psql() -> int:
    """Start psql, or name the URL if psql is not installed."""
    with run.variables() as variables:
        url = variables["APP_DATABASE__URL"].replace("+asyncpg", "")
        if not (program := shutil.which("psql")):
            typer.echo(f"psql is not installed. While make run or make database runs, any client can connect to: {url}")
            return 1
        return subprocess.run([program, url], check=False).returncode


def app(arguments: list[str]) -> int:
    """Run a command of `app` with the settings of `make run`."""
    with run.variables() as variables:
        command = [sys.executable, "-m", "app", *arguments]
        return subprocess.run(command, env=os.environ | variables, check=False).returncode


def shell() -> None:
    """Start a Python prompt with a session, the settings and the services of the features."""
    with run.variables() as variables:
        os.environ.update(variables)
        settings = load_settings()
        database = Database(settings.database)
        with asyncio.Runner() as runner, suppress(SystemExit):
            session = database.sessions()
            services = {name: import_module(f"app.{name}.service") for name in _with_service()}
            names = {"settings": settings, "database": database, "session": session, "sqlalchemy": sqlalchemy}
            try:
                _Console(services | names, runner).interact(_BANNER.format(services=", ".join(services)), "")
            finally:
                runner.run(session.close())
                runner.run(database.dispose())


def _with_service() -> list[str]:
    return [name for name in features.names() if features.has(name, "service")]


class _Console(code.InteractiveConsole):
    """A prompt with `await`, as in `python -m asyncio`. The event loop runs while a statement awaits."""

    def __init__(self, names: Mapping[str, Any], runner: asyncio.Runner) -> None:
        super().__init__({"__name__": "__console__", **names})
        self.compile.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self._runner = runner

    @override
    def runcode(self, code: CodeType) -> None:
        try:
            result = FunctionType(code, self.locals)()
            if inspect.iscoroutine(result):
                self._runner.run(result)
        except SystemExit:
            raise
        except BaseException:  # noqa: BLE001  # A prompt shows each error and goes on.
            self.showtraceback()


def reset() -> str:
    """Delete the data of `make run`: the database, the keys and the mails. It must not be running."""
    with run.exclusive():
        if os.environ.get("YES") != "1" and not typer.confirm(f"Delete the database, keys and mails in {run.LOCAL}?"):
            return "Nothing was deleted."
        for name in ("postgres", "mail"):
            shutil.rmtree(run.LOCAL / name, ignore_errors=True)
        for name in ("keys.json", "database-url"):
            (run.LOCAL / name).unlink(missing_ok=True)
    return "Deleted. The next make run creates a new database and an administrator."
