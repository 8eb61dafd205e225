"""The import contracts follow from the folders. Each rule is broken once in a copy, and `make contracts` must fail."""

import asyncio
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, outside


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


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


# What is appended to which file, and the contract that must be broken by it.
BREAKS = {
    "a feature imports a higher one": (
        "users/service.py",
        "import app.auth.service",
        "Features build on those before them",
    ),
    "a lower feature imports a higher one for types only": (
        "audit/service.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import app.users.service",
        "Features build on those before them",
    ),
    "a service imports a router": (
        "users/service.py",
        "import app.users.router",
        "Inside a feature, imports point down",
    ),
    "models import a service": ("users/models.py", "import app.users.service", "Inside a feature, imports point down"),
    "a view imports queries": ("users/views.py", "import app.users.crud", "Inside a feature, imports point down"),
    "another feature uses the queries": (
        "account/service.py",
        "import app.users.crud",
        "The queries of users are private",
    ),
    "a router uses its own queries": ("users/router.py", "import app.users.crud", "The queries of users are private"),
    "queries in a subpackage are used outside": (
        "account/service.py",
        "import app.auth.sessions.crud",
        "The queries of auth are private",
    ),
    "a service raises FastAPI's errors": ("users/service.py", "import fastapi", "Business code does not know HTTP"),
    "a new module of a feature knows HTTP": (
        "users/new.py",
        "import starlette.requests",
        "Business code does not know HTTP",
    ),
    "core imports a feature": ("core/db/database.py", "import app.users.models", "core knows no feature"),
    "the database imports the HTTP package": (
        "core/db/database.py",
        "import app.core.http.etags",
        "The packages of core",
    ),
    "the application imports the server": ("main.py", "import app.server.serve", "The HTTP server is optional"),
    "a feature runs jobs itself": (
        "users/service.py",
        "import app.jobs.worker",
        "Features enqueue jobs and do not run them",
    ),
    "production imports the tools": (
        "worker.py",
        "import app.dev.run",
        "Production does not import the development tools",
    ),
}


# Each case takes seconds. `make test` runs these, `make test ALL=1` all.
QUICK = {"core imports a feature", "queries in a subpackage are used outside"}


@pytest.mark.parametrize(
    "broken", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in BREAKS]
)
async def test_a_broken_rule_fails_the_check(copy: Path, broken: str) -> None:
    name, added, contract = BREAKS[broken]
    with (copy / "src" / "app" / name).open("a") as file:
        file.write(f"\n{added}\n")

    code, output = await check(copy)

    assert code == 1, output
    assert [line for line in output.splitlines() if line.startswith(contract) and "BROKEN" in line], output


UNKNOWN = {
    "a package that is no feature": ("unlisted/service.py", "unlisted: add it to FEATURES in src/app/features.py"),
    "a module beside the features": ("extra.py", "extra: add it to FEATURES in src/app/features.py"),
    "a package of core": ("core/cache/redis.py", "cache: add it to _CORE in src/app/dev/contracts.py"),
}


@pytest.mark.parametrize("unknown", UNKNOWN)
async def test_a_module_that_no_contract_covers_fails_the_check(copy: Path, unknown: str) -> None:
    name, advice = UNKNOWN[unknown]
    path = copy / "src" / "app" / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    (path.parent / "__init__.py").touch()

    code, output = await check(copy)

    assert code == 1
    assert advice in output


async def test_a_feature_without_a_directory_fails_the_check(copy: Path) -> None:
    path = copy / "src" / "app" / "features.py"
    path.write_text(path.read_text().replace('    "health",\n', '    "health",\n    "absent",\n'))

    code, output = await check(copy)

    assert code == 1
    assert "there is no directory src/app/absent" in output


async def test_the_rules_hold_here(copy: Path) -> None:
    code, output = await check(copy)

    assert code == 0, output
