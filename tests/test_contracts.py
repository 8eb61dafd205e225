"""The import contracts follow from the folders. Each rule is broken in a copy, and `make contracts` must fail."""

import asyncio
import re
import shutil
import sys
from pathlib import Path

import pytest

from app.dev.contracts import UnknownModuleError, contracts
from tests.conftest import ROOT, outside


def copy_source(target: Path) -> Path:
    shutil.copytree(ROOT / "src", target / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return target


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return copy_source(tmp_path)


async def check(copy: Path) -> tuple[int, str]:
    """Run what `make contracts` runs; return the exit code and the output."""
    command = "python -m app.dev contracts > contracts.toml && lint-imports --no-cache --config contracts.toml"
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", command),
        cwd=copy,
        env={
            **{name: value for name, value in outside().items() if not name.startswith("COV")},
            "PYTHONPATH": str(copy / "src"),
            "PATH": f"{Path(sys.executable).parent}:{outside()['PATH']}",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


# Which module imports which one, and the contract that must be broken by it.
BREAKS = {
    "a feature imports a higher one": (
        "users/service.py",
        "app.auth.service",
        "Features build on those before them",
    ),
    "a lower feature imports a higher one for types only": (
        "audit/service.py",
        "app.users.service",
        "Features build on those before them",
    ),
    "a service imports a router": (
        "users/service.py",
        "app.users.router",
        "Inside a feature, imports point down",
    ),
    "models import a service": ("users/models.py", "app.users.service", "Inside a feature, imports point down"),
    "a view imports queries": ("users/views.py", "app.users.crud", "Inside a feature, imports point down"),
    "another feature uses the queries": (
        "account/service.py",
        "app.users.crud",
        "The queries of users are private",
    ),
    "a router uses its own queries": ("users/router.py", "app.users.crud", "The queries of users are private"),
    "queries in a subpackage are used outside": (
        "account/service.py",
        "app.auth.sessions.crud",
        "The queries of auth are private",
    ),
    "a service raises FastAPI's errors": ("users/service.py", "fastapi", "Business code does not know HTTP"),
    "a new module of a feature knows HTTP": (
        "users/new.py",
        "starlette",
        "Business code does not know HTTP",
    ),
    "core imports a feature": ("core/db/database.py", "app.users.models", "core knows no feature"),
    "the database imports the HTTP package": (
        "core/db/database.py",
        "app.core.http.etags",
        "The packages of core",
    ),
    "the application imports the server": ("main.py", "app.server.serve", "The HTTP server is optional"),
    "a feature runs jobs itself": (
        "users/service.py",
        "app.jobs.worker",
        "Features enqueue jobs and do not run them",
    ),
    "production imports the tools": (
        "worker.py",
        "app.dev.run",
        "Production does not import the development tools",
    ),
}


FOR_TYPES = "a lower feature imports a higher one for types only"


@pytest.fixture(scope="module")
async def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, str]]:
    """The exit code and the output about each broken contract, of a copy that breaks all rules at once: a check takes seconds."""
    copy = copy_source(tmp_path_factory.mktemp("broken"))
    for number, (broken, (name, imported, _)) in enumerate(BREAKS.items()):
        # Inside a function: at the top, these imports together would be circular.
        header = "if TYPE_CHECKING:" if broken == FOR_TYPES else f"def broken_{number}() -> None:"
        with (copy / "src" / "app" / name).open("a") as file:
            file.write(f"\nfrom typing import TYPE_CHECKING\n\n{header}\n    import {imported}\n")
    code, output = await check(copy)
    _, _, found = output.partition("\nBroken contracts\n")
    sections = re.split(r"\n\n(.+)\n-+\n\n", found)
    return code, dict(zip(sections[1::2], sections[2::2], strict=True))


@pytest.mark.parametrize("name", BREAKS)
async def test_a_broken_rule_fails_the_check(broken: tuple[int, dict[str, str]], name: str) -> None:
    path, imported, contract = BREAKS[name]
    module = f"app.{path.removesuffix('.py').replace('/', '.')}"
    code, sections = broken

    (section,) = (text for title, text in sections.items() if title.startswith(contract))

    assert code == 1
    assert re.search(rf"^- +{re.escape(module)} -> {re.escape(imported)}(\.\w+)* \(l\.\d+\)", section, re.MULTILINE), (
        section
    )


UNKNOWN = {
    "a package that is no feature": ("unlisted/service.py", "unlisted: add it to FEATURES in src/app/features.py"),
    "a module beside the features": ("extra.py", "extra: add it to FEATURES in src/app/features.py"),
    "a package of core": ("core/cache/redis.py", "cache: add it to _CORE in src/app/dev/contracts.py"),
}


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_a_module_that_no_contract_covers_is_an_error(tmp_path: Path, unknown: str) -> None:
    name, advice = UNKNOWN[unknown]
    source = copy_source(tmp_path) / "src" / "app"
    path = source / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    (path.parent / "__init__.py").touch()

    with pytest.raises(UnknownModuleError, match=re.escape(advice)):
        contracts(source)


async def test_a_feature_without_a_directory_fails_the_check(copy: Path) -> None:
    path = copy / "src" / "app" / "features.py"
    path.write_text(path.read_text().replace('    "health",\n', '    "health",\n    "absent",\n'))

    code, output = await check(copy)

    assert code == 1
    assert "there is no directory src/app/absent" in output


async def test_the_rules_hold_here(copy: Path) -> None:
    code, output = await check(copy)

    assert code == 0, output
