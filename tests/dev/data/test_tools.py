"""`make shell`, `make app`, `make psql` and `make reset`, on a database of the tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from sqlalchemy import text

from app.core.db.database import Database
from app.dev import run as make_run
from app.dev.data import tools
from tests.conftest import ROOT, make_settings

EMAIL = "ada@example.com"


def dev(*arguments: str, url: str, given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("APP_", "COV"))}
    return subprocess.run(
        [sys.executable, "-m", "app.dev", *arguments],
        cwd=ROOT,
        env=inherited | {"DATABASE_URL": url} | environment,
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )


async def test_a_command_of_app_runs_with_the_settings_of_make_run(clone_url: str) -> None:
    ended = dev("app", "users", "create-admin", EMAIL, url=clone_url, given="correct horse battery\n" * 2)

    assert ended.returncode == 0, ended.stderr
    database = Database(make_settings(clone_url).database)
    async with database.sessions() as session:
        assert await session.scalar(text("SELECT email FROM users")) == EMAIL
    await database.dispose()


def test_the_prompt_awaits_and_survives_errors(clone_url: str) -> None:
    lines = (
        'print("one", settings.environment, users.__name__)\n'
        "1 / 0\n"
        'print("two", await session.scalar(sqlalchemy.text("SELECT 6 * 7")))\n'
        "raise SystemExit\n"
        'print("three")\n'
    )

    ended = dev("shell", url=clone_url, given=lines)

    assert ended.returncode == 0, ended.stderr
    assert "one local app.users.service" in ended.stdout
    assert "two 42" in ended.stdout
    assert "three" not in ended.stdout
    assert "ZeroDivisionError" in ended.stderr


def test_without_psql_its_url_is_named(
    clone_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", clone_url)
    monkeypatch.setenv("PATH", "")

    assert tools.psql() == 1
    assert capsys.readouterr().out.strip().endswith(clone_url.replace("+asyncpg", ""))


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The data of a run."""
    monkeypatch.setattr(make_run, "LOCAL", tmp_path)
    (tmp_path / "postgres").mkdir()
    (tmp_path / "keys.json").write_text("{}")
    return tmp_path


def test_reset_deletes_the_data_of_a_run(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YES", "1")

    assert tools.reset().startswith("Deleted.")
    assert not (local / "postgres").exists()
    assert not (local / "keys.json").exists()


def test_reset_asks_first(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("YES", raising=False)
    monkeypatch.setattr(typer, "confirm", lambda _question: False)

    assert tools.reset() == "Nothing was deleted."
    assert (local / "postgres").exists()


def test_reset_refuses_while_the_application_runs(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YES", "1")

    with make_run.exclusive(), pytest.raises(make_run.AlreadyRunningError, match="Stop it first"):
        tools.reset()

    assert (local / "postgres").exists()
