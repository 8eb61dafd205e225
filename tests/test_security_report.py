"""What the documents about security claim: it must be so in the code, and the tests they name must exist."""

import ast
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import SecretStr
from sqlalchemy import Table

from app import models
from app.core.db.database import Base
from app.core.http.access import PUBLIC_KEY
from app.dev.security import STATUSES, read, requirements_of
from app.main import create_app
from app.settings import variables
from tests.conftest import ROOT, make_settings

SOURCE = ROOT / "src" / "app"
DATA_FILES = [
    file
    for file in sorted(SOURCE.rglob("*"))
    if file.is_file() and file.suffix != ".py" and "__pycache__" not in file.parts
]
PRODUCTION = [file for file in sorted(SOURCE.rglob("*.py")) if file.relative_to(SOURCE).parts[0] != "dev"]
REQUIREMENTS = requirements_of(read("asvs.toml"))
DATA = read("data.toml")
# Chapter: how many requirements ASVS 5.0 has in it.
COMPLETE = {2: 13, 4: 16, 6: 47, 7: 19, 8: 13, 9: 7, 13: 21, 14: 13, 16: 17}
# Who may open a connection, and to what.
CONNECTING = {
    "auth/access/revocation.py": "PostgreSQL: the listener of revocations.",
    "core/db/connections.py": "PostgreSQL: the two pools.",
    "core/db/database.py": "Asks for those two.",
    "core/db/failures.py": "Names the driver's errors; connects to nothing.",
    "core/observability/exposition.py": "Listens for Prometheus, and asks the other processes of the service for their metrics.",
    "core/listening.py": "Listens; connects to nothing.",
    "core/db/reads.py": "Asks the pool for reading.",
    "core/db/tls.py": "PostgreSQL: opens each connection of the pools, the listener and the migrations.",
    "server/supervisor.py": "Talks to its own worker processes; connects to nothing.",
    "jobs/library.py": "PostgreSQL: the worker.",
    "mail/transports.py": "The configured mail server.",
    "migrations/env.py": "PostgreSQL: Alembic's own command line.",
    "migrations/runner.py": "PostgreSQL: migrations.",
    "server/serve.py": "Listens; connects to nothing.",
}
_CONNECTORS = {"aiohttp", "aiosmtplib", "asyncpg", "http.client", "httpx", "httpx2", "psycopg", "requests", "smtplib"}
_CONNECTORS |= {"socket", "urllib.request"}
_FACTORIES = {"create_async_engine", "create_engine", "open_connection", "create_connection"}


OURS = {"audit", "auth", "core", "jobs", "users"}


@cache
def nodes() -> list[tuple[str, ast.AST]]:
    """Give every node of the code that runs in production, with the file it stands in."""
    return [
        (str(file.relative_to(SOURCE)), node) for file in PRODUCTION for node in ast.walk(ast.parse(file.read_text()))
    ]


@cache
def named_in(path: str) -> set[str]:
    return {
        node.name
        for node in ast.parse((ROOT / path).read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def faults(number: str) -> Iterator[str]:
    """Yield what is wrong with the account given of one requirement."""
    requirement = REQUIREMENTS[number]
    tests = requirement.get("tests", [])
    if requirement["status"] not in STATUSES or requirement["level"] not in {1, 2, 3}:
        yield f"{number} has no status or level"
    if not requirement["about"].endswith("."):
        yield f"{number} is not explained in sentences"
    if bool(tests) != (requirement["status"] == "met"):
        yield f"{number}: met is what a test proves, and nothing else is"
    yield from (f"{number} names {test}" for test in tests if not exists(test))


def exists(test: str) -> bool:
    path, _, name = test.partition("::")
    return (ROOT / path).is_file() and name in named_in(path)


def test_every_requirement_is_accounted_for() -> None:
    assert [fault for number in REQUIREMENTS for fault in faults(number)] == []


def test_the_chapters_that_bind_a_service_are_complete() -> None:
    counted = {chapter: sum(number.split(".")[0] == str(chapter) for number in REQUIREMENTS) for chapter in COMPLETE}

    assert counted == COMPLETE


def test_the_first_level_has_no_gap() -> None:
    assert [number for number, one in REQUIREMENTS.items() if one["level"] == 1 and one["status"] == "gap"] == []


def test_every_column_has_a_class() -> None:
    # A feature of the reader's own is free to name its columns there.
    columns = {
        mapper.local_table.name: {column.name for column in mapper.local_table.columns}
        for mapper in Base.registry.mappers
        if mapper.class_.__module__.split(".")[1] in OURS and isinstance(mapper.local_table, Table)
    }
    classes = {kind for table in DATA["columns"].values() for kind in table.values()}

    assert models.__all__
    assert {name: set(table) for name, table in DATA["columns"].items()} == columns, "say in docs/security/data.toml"
    assert classes <= DATA["classes"].keys()


def test_every_secret_setting_is_in_the_document() -> None:
    secret = {
        variable
        for variable, name, model in variables()
        if SecretStr in {model.model_fields[name].annotation, *get_args(model.model_fields[name].annotation)}
    }

    assert DATA["secrets"].keys() == secret, "say in docs/security/data.toml what it protects and when it is changed"


def test_every_audit_event_is_in_the_document() -> None:
    foreign_keys = {
        key.target_fullname
        for table in Base.metadata.sorted_tables
        for key in table.foreign_keys
        if key.target_fullname
    }
    named = {
        node.value
        for _, node in nodes()
        if isinstance(node, ast.Constant) and re.fullmatch(r"(auth|users)\.[a-z_]+", str(node.value))
    }

    assert named - foreign_keys == DATA["events"].keys(), "say in docs/security/data.toml when it is written"


def test_every_pathway_in_the_document_exists() -> None:
    application = create_app(make_settings("postgresql://nobody@127.0.0.1/nothing"))
    operations = [
        (f"{method} {context.path}", context.openapi_extra or {})
        for context in iter_route_contexts(application.routes)
        if isinstance(context.original_route, APIRoute)
        for method in context.methods or ()
    ]
    # What asks for mail or ends a session leads to no credential.
    harmless = {"revoke", "resend", "forgot"}
    public = {
        name
        for name, extra in operations
        if extra.get(PUBLIC_KEY) and name.startswith("POST") and name.rpartition("/")[2] not in harmless
    }

    assert DATA["pathways"].keys() <= {name for name, _ in operations}
    assert public <= DATA["pathways"].keys(), "say in docs/security/data.toml what it takes and gives"


def test_only_the_named_modules_open_connections() -> None:
    found = set()
    for file, node in nodes():
        imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        called = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
        if called in _FACTORIES or _CONNECTORS.intersection(imported):
            found.add(file)

    assert found == CONNECTING.keys(), "name it in CONNECTING, and in docs/security.md where it connects to"


def test_no_pattern_is_built_from_input() -> None:
    built = {
        f"{file} {function.name}"
        for file, function in nodes()
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).startswith("re.")
        and not isinstance(node.args[0], ast.Constant)
    }

    # Called while modules are loaded, with the constants that stand there.
    assert built == {"core/schemas/fields.py _matching"}


def test_secrets_come_from_the_operating_system() -> None:
    used = {
        (file, node.attr)
        for file, node in nodes()
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random"
    }
    imported = {
        file
        for file, node in nodes()
        if isinstance(node, ast.ImportFrom)
        and node.module in {"random", "uuid"}
        and {alias.name for alias in node.names} - {"UUID"}
    }

    pauses = {"auth/access/revocation.py", "core/db/retries.py", "jobs/queue.py", "migrations/runner.py"}
    assert used == {(file, "uniform") for file in pauses}, "a pause may be random; a secret comes from os.urandom"
    assert imported == set()


def test_no_password_ages() -> None:
    columns = {column.name for table in Base.metadata.sorted_tables for column in table.columns}
    settings = {variable for variable, _, _ in variables()}

    assert {name for name in columns if "password" in name or "hint" in name or "question" in name} == {
        "hashed_password"
    }
    assert {name for name in settings if "PASSWORD" in name} == {
        "APP_AUTH__PASSWORD_HASH",
        "APP_AUTH__BREACHED_PASSWORDS_FILE",
        "APP_AUTH__PASSWORD_MIN_LENGTH",
    }


def test_the_deadlines_for_dependencies_are_published() -> None:
    assert re.search(r"\b\d+ days when it is critical\b", (ROOT / "SECURITY.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("name", ["base.txt", "dev.txt"])
def test_every_dependency_is_pinned_with_hashes(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text().replace("\\\n", " ")
    pins = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]

    assert pins
    assert [pin for pin in pins if "==" not in pin or "--hash=sha256:" not in pin] == []


def test_the_package_ships_nothing_but_itself(tmp_path: Path) -> None:
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    made = subprocess.run([sys.executable, "-c", build, tmp_path], cwd=ROOT, check=True, capture_output=True, text=True)
    with zipfile.ZipFile(tmp_path / made.stdout.split()[-1]) as wheel:
        names = wheel.namelist()

    assert "app/main.py" in names
    assert {str(path.relative_to(ROOT / "src")) for path in DATA_FILES} <= set(names)
    assert {Path(name).parts[0] for name in names} <= {"app", next(n for n in names if ".dist-info" in n).split("/")[0]}
    assert [name for name in names if re.search(r"\.git|\.pem|\.env|keys\.json|test_", name)] == []
