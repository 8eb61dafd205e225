"""Parts of features are found by the names of their files. Some tests add the feature of `docs/feature-parts.md` to a copy."""

import asyncio
import re
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from app import cli, features, main, settings, worker
from app.core.commands import command_group
from app.core.config import SettingsGroup, loading
from app.core.config.settings import with_groups
from app.core.db.database import Base
from app.core.errors import ConfigurationError
from app.core.resources import Foundation, Resources, opened
from app.users import roles
from tests.conftest import ROOT, outside
from tests.listings import apply, copy_repository, listings

SOURCE = ROOT / "src" / "app"
PAGE = ROOT / "docs" / "feature-parts.md"
NOT_FEATURES = {"core", "dev", "migrations", "server"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the repository that has the feature of the page."""
    copy = tmp_path_factory.mktemp("parts")
    copy_repository(ROOT, copy)
    for listing in listings(PAGE):
        apply(listing, copy)
    return copy


async def run(copy: Path, *command: str, **environment: str) -> tuple[int, str]:
    """Run a Python program in the copy. Return its exit code and its output."""
    inherited = {name: value for name, value in outside().items() if not name.startswith(("APP_", "PYTEST_", "COV"))}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        cwd=copy,
        env=inherited | {"PYTHONPATH": str(copy / "src"), "APP_ENVIRONMENT": "local"} | environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


def test_each_package_with_a_part_is_a_feature() -> None:
    found = {
        path.parent.name
        for part in features.PARTS
        for path in (*SOURCE.glob(f"*/{part}.py"), *SOURCE.glob(f"*/{part}/"))
        if path.parent.name not in NOT_FEATURES
    }

    assert found == set(features.names())


@pytest.mark.parametrize("part", [part for part in features.PARTS if part != "templates"])
def test_parts_are_found_in_the_order_of_the_features(part: str) -> None:
    found = [name for name, module in features.parts(part) if module.__name__ == f"app.{name}.{part}"]

    assert found == [name for name in features.names() if (SOURCE / name / f"{part}.py").exists()]


async def test_the_command_lists_all_parts_of_a_feature(copy: Path) -> None:
    code, output = await run(copy, "-m", "app", "features")

    assert code == 0
    (line,) = (line for line in output.splitlines() if line.startswith("greetings"))
    assert line.split()[1:] == ["router", "jobs", "scopes", "settings", "commands", "resources", "export", "templates"]


async def test_a_command_of_a_feature_reads_a_setting_of_a_feature(copy: Path, database_url: str) -> None:
    code, output = await run(
        copy, "-m", "app", "greetings", "show", DATABASE_URL=database_url, APP_GREETINGS__WORD="Good morning"
    )

    assert (code, output) == (0, "Good morning\n")


async def test_an_unknown_setting_of_a_feature_is_reported(copy: Path, database_url: str) -> None:
    code, output = await run(
        copy, "-m", "app", "greetings", "show", DATABASE_URL=database_url, APP_GREETINGS__WORT="Hi"
    )

    assert code == 1
    assert "APP_GREETINGS__WORT: there is no such setting; did you mean APP_GREETINGS__WORD?" in output


async def test_a_missing_required_setting_of_a_feature_is_reported(
    copy: Path, tmp_path: Path, database_url: str
) -> None:
    shutil.copytree(copy, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "src/app/greetings/settings.py"
    path.write_text(path.read_text().replace('default="Hello", ', ""))

    code, output = await run(tmp_path, "-m", "app", "greetings", "show", DATABASE_URL=database_url)

    assert code == 1
    assert "APP_GREETINGS__WORD: is missing" in output


BREAKS = {
    "two groups of settings": (
        "settings.py",
        "\n\nclass OtherSettings(SettingsGroup):\n    other: int = 0\n",
        "app.greetings.settings must declare exactly one subclass of SettingsGroup, not 2",
    ),
    "a scope of another feature": (
        "scopes.py",
        'SCOPES["users:read"] = "Read"\n',
        "another feature already declares the scope users:read; rename it in app.greetings.scopes",
    ),
    "a router that is not listed": (
        "router.py",
        "del ROUTERS\n",
        "app.greetings.router has neither ROUTERS nor ROOT_ROUTERS: add `ROUTERS = (router,)`",
    ),
    "jobs that are not listed": (
        "jobs.py",
        "del JOBS\n",
        "app.greetings.jobs has neither JOBS nor PERIODIC: list its jobs in one of them",
    ),
    "a command of another feature": (
        "commands.py",
        'keys = command_group("keys", "Other keys.")\nkeys.command("list")(print)\nCOMMANDS = (keys,)\n',
        "another feature already has the command keys list; rename it in app.greetings.commands",
    ),
}


@pytest.mark.parametrize("broken", BREAKS)
async def test_an_invalid_part_stops_the_start_with_an_error(
    copy: Path, tmp_path: Path, database_url: str, broken: str
) -> None:
    name, added, message = BREAKS[broken]
    shutil.copytree(copy, tmp_path, dirs_exist_ok=True)
    with (tmp_path / "src/app/greetings" / name).open("a") as file:
        file.write(added)
    program = (
        "import app.cli, app.worker; from app.main import create_app; from app.settings import load_settings; "
        "create_app(load_settings())"
    )

    code, output = await run(tmp_path, "-c", program, DATABASE_URL=database_url)

    assert code == 1
    assert output.splitlines()[-1].endswith(message)


async def test_two_features_cannot_open_resources_with_the_same_name(copy: Path, tmp_path: Path) -> None:
    shutil.copytree(copy, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "src/app/greetings/resources.py"
    path.write_text(path.read_text().replace('"greetings"', '"auth"'))

    code, output = await run(tmp_path, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "tests/greetings")

    assert code == 1
    assert "two features open a resource with the same name: auth" in output


async def test_the_feature_of_the_page_passes_its_tests_and_the_access_tests(copy: Path, template_url: str) -> None:
    code, output = await run(
        copy,
        *("-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "tests/greetings", "tests/test_access.py"),
        *("-k", "greeting or table_names"),
        DATABASE_URL=template_url,
    )

    assert code == 0, output
    assert re.search(r"^([6-9]|\d\d) passed", output, re.MULTILINE), output


async def test_the_settings_of_a_feature_are_documented(copy: Path) -> None:
    code, output = await run(copy, "-c", "from app.dev import docs; print(docs.configuration())")

    assert code == 0, output
    assert "| `APP_GREETINGS__WORD` |" in output


@pytest.mark.parametrize("command", [("ruff", "check"), ("ruff", "format", "--check")])
async def test_the_listings_of_the_page_pass_the_linter(copy: Path, command: tuple[str, ...]) -> None:
    files = [listing.path for listing in listings(PAGE) if listing.path and listing.path.endswith(".py")]

    code, output = await run(copy, "-m", *command, *files)

    assert code == 0, output


class ProbeSettings(SettingsGroup):
    """A group with a required setting."""

    needed: int


class OtherSettings(SettingsGroup):
    """A second group of the same module."""


def with_part(monkeypatch: pytest.MonkeyPatch, part: str, **members: Any) -> None:
    """Add a feature `probe` that has one part with these members."""
    found = list(features.parts(part))
    probe = ModuleType(f"app.probe.{part}")
    vars(probe).update(members)
    monkeypatch.setattr(features, "parts", lambda name: iter([*found, ("probe", probe)] if name == part else []))


def test_unusable_parts_are_errors_that_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = command_group("keys", "Keys.")
    keys.command("list")(print)
    for part, members, read, message in (
        ("commands", {"COMMANDS": (keys,)}, cli._add_commands, "app.probe.commands"),
        ("scopes", {"SCOPES": {"users:read": "Read"}}, roles._declared, "app.probe.scopes"),
        ("router", {}, lambda: list(main._routers()), "app.probe.router has neither ROUTERS nor ROOT_ROUTERS"),
        ("jobs", {}, lambda: list(worker._listed("JOBS")), "app.probe.jobs has neither JOBS nor PERIODIC"),
        ("sealed", {}, features.sealed_columns, "app.probe.sealed has no SEALED"),
    ):
        with monkeypatch.context() as changed:
            with_part(changed, part, **members)
            with pytest.raises((TypeError, ValueError), match=message):
                read()


def test_each_column_whose_name_says_sealed_is_declared() -> None:
    columns = (column for table in Base.metadata.tables.values() for column in table.columns)
    named = {f"{column.table}.{column.name}" for column in columns if re.search("(^|_)sealed$", column.name)}

    missing = named - {sealed.name for sealed in features.sealed_columns()}
    assert not missing, (
        f"{missing}: list it in SEALED of the feature's sealed.py, so that its seal keys can be replaced"
    )


def test_a_module_with_several_groups_of_settings_is_refused() -> None:
    with pytest.raises(TypeError, match="exactly one subclass of SettingsGroup, not 4"):
        settings._group(globals(), __name__)


class ExtendingSettings(ProbeSettings):
    """A group of a later feature."""

    more: str = "first"


class FurtherSettings(ProbeSettings):
    """A group of another later feature."""

    further: str = "second"


def test_settings_of_several_features_can_be_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {
        "DATABASE_URL": "postgresql://a@b/c",
        "APP_ENVIRONMENT": "test",
        "APP_PROBE__NEEDED": "1",
    }.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("APP_PROBE__MORE", "given")
    declared: dict[str, type[SettingsGroup]]
    declared = {"probe": ProbeSettings, "more": ExtendingSettings, "further": FurtherSettings, "other": OtherSettings}

    groups = settings.combined(declared)
    loaded = loading.load(with_groups(groups), {})

    assert [*groups] == ["probe", "other"]
    assert groups["probe"].__doc__ == ProbeSettings.__doc__
    assert loaded.of(ProbeSettings).needed == 1
    assert loaded.of(ExtendingSettings).more == "given"
    assert loaded.of(FurtherSettings).further == "second"


def test_a_feature_cannot_take_the_name_of_a_group_of_core() -> None:
    with pytest.raises(ValueError, match="log"):
        with_groups({"log": OtherSettings})


def test_a_missing_setting_of_a_missing_group_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://a@b/c")
    monkeypatch.setenv("APP_ENVIRONMENT", "test")

    with pytest.raises(ConfigurationError, match="APP_PROBE__NEEDED: is missing"):
        loading.load(with_groups({"probe": ProbeSettings}), {})


async def test_two_resources_of_one_name_are_an_error() -> None:
    @asynccontextmanager
    async def open_one(_core: Foundation) -> AsyncIterator[Resources]:
        yield Resources(state={"one": 1})

    with pytest.raises(ValueError, match="one"):
        async with opened([open_one, open_one], Foundation(Any, Any, Any)):  # type: ignore[arg-type]  # Not used.
            pass


def test_the_features_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    cli.list_features()

    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(features.names())
