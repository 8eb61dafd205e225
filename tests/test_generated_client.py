import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from sqlalchemy import select

from app.core.config import Settings
from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from app.users.models import User
from tests.conftest import ROOT, make_settings
from tests.factories import PASSWORD, make_user
from tests.servers import real_server

SCENARIO = ROOT / "tests" / "client_scenario.py"
# The generator only knows the media type application/json.
CONFIGURATION = {"content_type_overrides": {"application/problem+json": "application/json"}}


async def run(directory: Path, *arguments: str | Path) -> None:
    """Run a Python module or file that can import the generated client."""
    # The generator formats its output with the first ruff on the path.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *map(str, arguments)),
        cwd=directory,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(directory)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


async def check_types(directory: Path, scenario: Path) -> None:
    cache = ROOT / ".mypy_cache" / "generated_client"
    await run(directory, *("-m", "mypy", "--strict", "--config-file=", f"--cache-dir={cache}"), scenario)


async def generate(directory: Path, document: Any) -> None:
    """Generate `generated_client` in this directory."""
    (directory / "openapi.json").write_text(json.dumps(document))
    (directory / "configuration.yml").write_text(json.dumps(CONFIGURATION))
    await run(
        directory,
        *("-m", "openapi_python_client", "generate", "--path", "openapi.json", "--config", "configuration.yml"),
        *("--meta", "none", "--output-path", "generated_client", "--fail-on-warning"),
    )


@pytest.fixture(scope="module")
async def generated(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generate `generated_client` from the OpenAPI document, and return its directory."""
    directory = tmp_path_factory.mktemp("generated")
    await generate(directory, create_app(settings).openapi())
    return directory


def test_the_openapi_document_is_valid(settings: Settings) -> None:
    errors = OpenAPIV31SpecValidator(create_app(settings).openapi()).iter_errors()

    assert [error.message for error in errors] == []


async def test_a_generated_client_passes_mypy_and_works_with_a_running_server(
    hasher: PasswordHasher, clone_url: str, generated: Path
) -> None:
    database = Database(make_settings(clone_url).database)
    async with database.begin() as session:
        await make_user(session, hasher, email="admin@example.com", role="admin")

    async with real_server(clone_url) as server:
        await check_types(generated, SCENARIO)
        await run(generated, SCENARIO, server.base_url, "admin@example.com", PASSWORD)

    async with database.sessions() as session:
        rows = (await session.execute(select(User.email, User.full_name).order_by(User.email))).all()
    await database.dispose()
    assert [tuple(row) for row in rows] == [
        ("admin@example.com", None),
        ("grace0@example.com", None),
        ("grace2@example.com", "Grace Hopper"),
    ]


def test_generated_names_are_readable(generated: Path) -> None:
    code = {path.stem: path.read_text() for path in generated.glob("generated_client/**/*.py")}

    assert {"user_page", "user_read", "problem", "field_problem", "list_users", "update_me"} <= code.keys()
    assert [name for name, text in code.items() if "VALUE_" in text or "_type_1" in text] == []


@pytest.mark.parametrize("place", ["query", "header", "path"])
def test_no_parameter_can_be_null(settings: Settings, place: str) -> None:
    operations = [operation for path in create_app(settings).openapi()["paths"].values() for operation in path.values()]
    parameters = [
        parameter
        for operation in operations
        for parameter in operation.get("parameters", [])
        if parameter["in"] == place
    ]

    assert parameters
    assert [parameter["name"] for parameter in parameters if "null" in json.dumps(parameter["schema"])] == []
