"""The security documents agree with the code, and the tests that they name exist."""

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
from app.core.http.access import PUBLIC_KEY, has_optional_caller
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
# Number of requirements in each complete chapter of ASVS 5.0.
COMPLETE = {2: 13, 4: 16, 6: 47, 7: 19, 8: 13, 9: 7, 13: 21, 14: 13, 16: 17}
# The modules that use network libraries, with the purpose of each.
CONNECTING = {
    "auth/access/revocation.py": "PostgreSQL: the revocation listener.",
    "core/notifications/broadcasts.py": "PostgreSQL: the listener for messages.",
    "core/db/connections.py": "PostgreSQL: the two pools.",
    "core/db/database.py": "PostgreSQL: creates the two pools.",
    "core/notifications/direct.py": "PostgreSQL: the connection of each listener.",
    "core/db/failures.py": "Uses only the exceptions of the driver.",
    "core/standby/positions.py": "PostgreSQL: asks the primary for its position.",
    "core/standby/reading.py": "PostgreSQL: the pool of the standby.",
    "core/observability/exposition.py": "Listens for Prometheus, and requests the metrics of the other processes of the service.",
    "core/listening.py": "Only listens.",
    "core/db/reads.py": "PostgreSQL: uses the read pool.",
    "core/db/tls.py": "PostgreSQL: opens the connections of the pools, the listener and the migrations.",
    "server/supervisor.py": "Only talks to its worker processes.",
    "jobs/library.py": "PostgreSQL: the worker.",
    "mail/transports.py": "The configured mail server.",
    "migrations/env.py": "PostgreSQL: the command line of Alembic.",
    "migrations/runner.py": "PostgreSQL: migrations.",
    "server/serve.py": "Only listens.",
    "systemd.py": "Tells the service manager of this machine, by a Unix socket.",
    "healthcheck.py": "The HTTP server on this machine.",
    "jobs/service.py": "Only asks for the name of this machine.",
}
_CONNECTORS = {"aiohttp", "aiosmtplib", "asyncpg", "http.client", "httpx", "httpx2", "psycopg", "requests", "smtplib"}
_CONNECTORS |= {"socket", "urllib.request"}
_FACTORIES = {"create_async_engine", "create_engine", "open_connection", "create_connection"}

OURS = {"audit", "auth", "core", "factors", "jobs", "users"}


@cache
def nodes() -> list[tuple[str, ast.AST]]:
    """Return all nodes of the production code with their files."""
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


def problems(number: str) -> Iterator[str]:
    """Yield the problems of the entry of a requirement."""
    requirement = REQUIREMENTS[number]
    tests = requirement.get("tests", [])
    if requirement["status"] not in STATUSES or requirement["level"] not in {1, 2, 3}:
        yield f"{number}: the status or the level is invalid"
    if not requirement["about"].endswith("."):
        yield f"{number}: explain it in sentences"
    if bool(tests) != (requirement["status"] == "met"):
        yield f"{number}: a met requirement needs a test, and no other one has tests"
    yield from (f"{number}: there is no test {test}" for test in tests if not exists(test))


def exists(test: str) -> bool:
    path, _, name = test.partition("::")
    return (ROOT / path).is_file() and name in named_in(path)


def test_each_requirement_has_a_status_and_an_explanation() -> None:
    assert [problem for number in REQUIREMENTS for problem in problems(number)] == []


def test_the_chapters_for_services_are_complete() -> None:
    counted = {chapter: sum(number.split(".")[0] == str(chapter) for number in REQUIREMENTS) for chapter in COMPLETE}

    assert counted == COMPLETE


def test_level_one_has_no_gap() -> None:
    assert [number for number, one in REQUIREMENTS.items() if one["level"] == 1 and one["status"] == "gap"] == []


def test_each_column_has_a_class() -> None:
    # Features of an adopter may have their columns there, but need not.
    columns = {
        mapper.local_table.name: {column.name for column in mapper.local_table.columns}
        for mapper in Base.registry.mappers
        if mapper.class_.__module__.split(".")[1] in OURS and isinstance(mapper.local_table, Table)
    }
    classes = {kind for table in DATA["columns"].values() for kind in table.values()}

    assert models.__all__
    assert {name: set(table) for name, table in DATA["columns"].items()} == columns, "add it to docs/security/data.toml"
    assert classes <= DATA["classes"].keys()


def test_each_secret_setting_is_documented() -> None:
    secret = {
        variable
        for variable, name, model in variables()
        if SecretStr in {model.model_fields[name].annotation, *get_args(model.model_fields[name].annotation)}
    }

    assert DATA["secrets"].keys() == secret, "add to docs/security/data.toml what it protects and when to change it"


def test_each_audit_event_is_documented() -> None:
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

    assert named - foreign_keys == DATA["events"].keys(), "add to docs/security/data.toml when it is written"


def test_each_operation_that_issues_credentials_is_documented() -> None:
    application = create_app(make_settings("postgresql://nobody@127.0.0.1/nothing"))
    operations = [
        (
            f"{method} {context.path}",
            bool((context.openapi_extra or {}).get(PUBLIC_KEY)) or has_optional_caller(context.dependant),
        )
        for context in iter_route_contexts(application.routes)
        if isinstance(context.original_route, APIRoute)
        for method in context.methods or ()
    ]
    # These operations request mail or end a session. They issue no credentials.
    harmless = {"revoke", "resend", "forgot"}
    public = {
        name
        for name, is_open in operations
        if is_open and name.startswith("POST") and name.rpartition("/")[2] not in harmless
    }

    assert DATA["pathways"].keys() <= {name for name, _ in operations}
    assert public <= DATA["pathways"].keys(), "add to docs/security/data.toml its input and result"


def test_only_listed_modules_open_connections() -> None:
    found = set()
    for file, node in nodes():
        imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        called = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
        if called in _FACTORIES or _CONNECTORS.intersection(imported):
            found.add(file)

    assert found == CONNECTING.keys(), "add the module to CONNECTING, and its connection to docs/security.md"


def test_no_regular_expression_is_built_from_input() -> None:
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
    assert built == {"core/schemas/fields.py _matching", "core/schemas/fields.py _written"}


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

    pauses = {
        "auth/access/revocation.py",
        "core/notifications/broadcasts.py",
        "core/db/retries.py",
        "core/standby/positions.py",
        "jobs/queue.py",
        "migrations/runner.py",
    }
    assert used == {(file, "uniform") for file in pauses}, "`random` is only for pauses; create secrets with os.urandom"
    assert imported == set()


def test_no_password_expires() -> None:
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
def test_each_dependency_is_pinned_with_hashes(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text().replace("\\\n", " ")
    pins = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]

    assert pins
    assert [pin for pin in pins if "==" not in pin or "--hash=sha256:" not in pin] == []


def test_the_package_contains_only_the_application(tmp_path: Path) -> None:
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    made = subprocess.run([sys.executable, "-c", build, tmp_path], cwd=ROOT, check=True, capture_output=True, text=True)
    with zipfile.ZipFile(tmp_path / made.stdout.split()[-1]) as wheel:
        names = wheel.namelist()

    assert "app/main.py" in names
    assert {str(path.relative_to(ROOT / "src")) for path in DATA_FILES} <= set(names)
    assert {Path(name).parts[0] for name in names} <= {"app", next(n for n in names if ".dist-info" in n).split("/")[0]}
    assert [name for name in names if re.search(r"\.git|\.pem|\.env|keys\.json|test_", name)] == []
