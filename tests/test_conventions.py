"""The conventions of this project that no linter checks. Each failure says what to do."""

import ast
import importlib
import itertools
import pkgutil
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeAliasType, get_args, get_origin

import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts
from fastapi.sse import EventSourceResponse
from pydantic import AfterValidator, BaseModel, SecretStr
from sqlalchemy import UniqueConstraint

import app as package
from app.auth.dependencies import CurrentPrincipal, SessionWatchDep, get_session_watch
from app.core.errors import AppError
from app.core.http import routing
from app.core.http.access import guards, public, undeclared_operations
from app.core.schemas.fields import (
    FormPayload,
    OpaqueSecret,
    Payload,
    Plain,
    Printable,
    PrintableLines,
    PrintableSecret,
)
from app.core.schemas.pages import OffsetQuery, PageQuery
from app.main import create_app
from app.models import Base
from app.settings import variables
from tests.conftest import ROOT, make_settings

SOURCE = ROOT / "src" / "app"
FILES = sorted(SOURCE.rglob("*.py"))

COMMITTERS = {
    "auth/sessions/rotation.py _end_stolen": "The session must stay ended although the request then fails.",
    "core/http/dependencies.py get_session": "One commit for each request that writes.",
    "core/db/database.py commit": "The method of the session. It records that the commit was done.",
    "core/db/database.py begin": "One commit for each command or job.",
    "migrations/env.py _connect_and_run": "The command line of Alembic.",
    "migrations/runner.py _exclusive": "Ends the transaction of the lock query. It contains no writes.",
}
_SLOW = "No connection is held while a password is hashed; the write needs a unit of its own afterwards."
_OUTLIVES = "The record or the count has to outlive the error that follows."
_COUNTED = "A failure is counted after this transaction has returned its connection, and outlives it."
# Services that open a unit of work of their own, instead of taking the session of the edge.
OWN_UNITS = {
    "registration/service.py verify_email": _COUNTED,
    "email_change/service.py confirm_email": _COUNTED,
    "account/service.py reset_password": _SLOW,
    "account/service.py change_password": _SLOW,
    "email_change/service.py change_email": _SLOW,
    "auth/service.py _log_in": _SLOW,
    "auth/service.py reauthenticate": _SLOW,
    "auth/service.py _reauthenticate_with_factor": _OUTLIVES,
    "auth/service.py _refresh": _COUNTED,
    "auth/service.py _record_refusal": _OUTLIVES,
    "auth/service.py _record_failure": _OUTLIVES,
    "auth/service.py confirm_password": _OUTLIVES,
    "factors/login/service.py complete": "The guess was counted in a transaction of its own before, because it outlives an error.",
    "factors/login/service.py _count": _OUTLIVES,
    "factors/login/failures.py record": _OUTLIVES,
    "factors/service.py confirm_totp": _COUNTED,
    "auth/second_factor.py record_failure": _OUTLIVES,
    "auth/access/tickets.py redeem": "A refused ticket is used up too, and an open socket holds no connection.",
    "auth/sessions/cutoff.py end_every_session": "A command: short transactions, so that it can be interrupted.",
    "core/security/rate_limits.py hit": _OUTLIVES,
    "core/security/rate_limits.py forgive": _OUTLIVES,
}
# The edges: HTTP, commands, jobs and the worker.
_EDGES = re.compile(r"(core/(db/|http/dependencies|commands)|jobs/|dev/|.*/(jobs|commands)\.py)")
DEFERRED_IMPORTS = {
    "__main__.py main": "All other imports run inside `loading`.",
    "cli.py serve": "The other commands need no FastAPI.",
    "cli.py check_health": "Only the check of a worker needs the database. It runs every ten seconds.",
    "cli.py run_worker": "Only the worker needs the job library and its driver.",
    "cli.py migrate": "Only migrations need Alembic.",
    "cli.py check_backup": "Only this check needs the models of all features.",
    "migrations/revisions.py _revisions": "Alembic reads the migration files only when they have changed.",
    "home/pages.py _environment": "Only a page for development loads Jinja.",
    "main.py _jobs": "Only a web process that runs jobs needs the job library.",
    "dev/serving.py _serve": "The application is imported when a file has changed, not before.",
    "core/security/passwords.py _common_passwords": "The list of common passwords takes 0.1 s to load.",
    "core/observability/tracing.py tracing_from_environment": "Only traces need the SDK of OpenTelemetry.",
}
OTHER_ROUTERS = {
    "core/http/routing.py": "Creates the routers.",
    "core/http/problems.py": "The HTML pages that explain errors. They are not in the OpenAPI document.",
}
# Inputs without a maximum length or without a rule for their characters, each with the reason why that is safe.
UNBOUNDED = {
    "cursor": "The decoder rejects a foreign cursor of any length with 400. A length limit would return 422.",
    **dict.fromkeys(
        ("If-Match", "If-None-Match"), "A condition that is too long matches no entity tag, and is not parsed."
    ),
}
FIXED_NAMES = {
    "GET /problems/{name} name": "Compared with a fixed list of names. Any other name gets 404.",
    "GET /local/mails/{name} name": "Only compared with the names of files.",
    "GET /local/mails/{name}/html name": "The same.",
}
VAGUE = {"base", "common", "helper", "helpers", "manager", "managers", "misc", "util", "utils"}


@pytest.fixture(scope="module")
def application() -> FastAPI:
    return create_app(make_settings("postgresql://nobody@127.0.0.1/nothing"))


def place(file: Path) -> str:
    return str(file.relative_to(SOURCE))


def calls(file: Path) -> Iterator[tuple[str, str, ast.Call]]:
    """Yield each call in a file: the enclosing function, the name of the called function, and the call."""
    for function, node in nodes(file):
        if isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            yield f"{place(file)} {function}", name, node


def nodes(file: Path) -> Iterator[tuple[str, ast.AST]]:
    """Yield each node of a file with the name of the innermost enclosing function."""

    def walk(node: ast.AST, function: str) -> Iterator[tuple[str, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            yield function, child
            inner = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
            yield from walk(child, inner)

    yield from walk(ast.parse(file.read_text()), "")


def test_only_listed_functions_commit() -> None:
    found = {where for file in FILES for where, name, _ in calls(file) if name == "commit"}

    assert found <= COMMITTERS.keys(), (
        f"{found - COMMITTERS.keys()} must not commit: the caller commits, so that two services make one atomic change. If "
        "a write must survive an error that follows, add the function to COMMITTERS with this reason"
    )
    assert found == COMMITTERS.keys(), f"{COMMITTERS.keys() - found} do not commit: remove them from COMMITTERS"


def test_only_the_edges_and_the_listed_services_open_a_unit_of_work() -> None:
    found = {
        where
        for file in FILES
        for where, name, node in calls(file)
        if name in {"begin", "unit"} and not _EDGES.match(where) and "database" in ast.unparse(node.func)
    }

    assert found == OWN_UNITS.keys(), (
        f"{found ^ OWN_UNITS.keys()}: a service takes the session as an argument. Only if a write has to outlive the error "
        "that follows, or slow work must not hold a connection, list it in OWN_UNITS with that reason"
    )


def all_errors() -> list[type[AppError]]:
    """Return all error classes of the application."""
    for module in pkgutil.walk_packages(package.__path__, "app."):
        if not module.name.startswith(("app.migrations.", "app.dev.", "app.__main__")):
            importlib.import_module(module.name)

    def below(kind: type[AppError]) -> Iterator[type[AppError]]:
        for error in kind.__subclasses__():
            yield error
            yield from below(error)

    return sorted(
        {error for error in below(AppError) if error.__module__.startswith("app.")},
        key=lambda one: (one.code, one.__qualname__),
    )


def test_an_error_code_belongs_to_one_error() -> None:
    owners: dict[tuple[str, int], type[AppError]] = {}
    for error in sorted(all_errors(), key=lambda one: len(one.__mro__)):
        # `invalid_token` is used twice: with 401 for an access token, and with 400 for the secret of a link.
        owner = owners.setdefault((error.code, error.status), error)

        # A class and its base class may share a code. Unrelated classes must not.
        assert issubclass(error, owner), (
            f"{error.__qualname__} and {owner.__qualname__} have the same code {error.code!r}: change one of them"
        )


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.__qualname__)
def test_an_error_follows_the_naming_rules(error: type[AppError]) -> None:
    name = error.__qualname__
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", error.code), f"write the code of {name} in snake_case"
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", error.problem), f"write the problem of {name} in kebab-case"
    assert error.detail.endswith("."), f"write the detail of {name} as a sentence"
    assert name.endswith("Error"), f"end the name of {name} in Error"


def test_each_operation_declares_who_may_call_it(application: FastAPI) -> None:
    assert list(undeclared_operations(application)) == [], (
        "add a dependency that authenticates, or openapi_extra=public"
    )


def operations(application: FastAPI) -> Iterator[tuple[str, Any, APIRoute]]:
    for context in iter_route_contexts(application.routes):
        route = context.original_route
        if isinstance(route, APIRoute):
            yield f"{' '.join(sorted(context.methods or ()))} {context.path}", context, route


def unwatched_streams(application: FastAPI) -> Iterator[str]:
    """Yield the event streams for callers who are logged in that do not watch the session of the caller."""
    for name, _, route in operations(application):
        is_stream = getattr(route.response_class, "media_type", None) == "text/event-stream"
        if is_stream and any(guards(route.dependant)) and not depends_on(route.dependant, get_session_watch):
            yield name


def depends_on(dependant: Dependant, call: Any) -> bool:
    return dependant.call is call or any(depends_on(one, call) for one in dependant.dependencies)


def test_each_event_stream_watches_the_session_of_its_caller(application: FastAPI) -> None:
    assert list(unwatched_streams(application)) == [], (
        "take SessionWatchDep, and read the events through watch.until_end: otherwise the stream outlives a logout"
    )


def test_an_event_stream_that_watches_no_session_is_found() -> None:
    application, router = FastAPI(), routing.router()

    @router.get("/unwatched", response_class=EventSourceResponse)
    async def unwatched(_principal: CurrentPrincipal) -> AsyncIterator[int]:
        yield 1

    @router.get("/public", response_class=EventSourceResponse, openapi_extra=public)
    async def anonymous() -> AsyncIterator[int]:
        yield 1

    @router.get("/watched", response_class=EventSourceResponse)
    async def watched(_watch: SessionWatchDep) -> AsyncIterator[int]:
        yield 1

    application.include_router(router)

    assert list(unwatched_streams(application)) == ["GET /unwatched"]


def test_each_router_is_created_by_routing(application: FastAPI) -> None:
    found = {place(file) for file in FILES for _, name, _ in calls(file) if name == "APIRouter"}
    lax = {
        name
        for name, context, route in operations(application)
        if context.include_in_schema and not isinstance(route, routing.Route)
    }

    assert found == OTHER_ROUTERS.keys(), (
        "create routers with app.core.http.routing.router: it validates requests strictly"
    )
    assert not lax, f"{lax} are not strict: create their router with app.core.http.routing.router"


def incoming(application: FastAPI) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the schemas of all parameters and bodies, with resolved references. Each has the name of its operation and place."""
    document = application.openapi()
    for path, item in document["paths"].items():
        for method, operation in item.items():
            where = f"{method.upper()} {path}"
            for parameter in operation.get("parameters", ()):
                if parameter["name"] not in UNBOUNDED:
                    yield f"{where} {parameter['name']}", _resolved(parameter["schema"], document)
            for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
                kind = "form" if media_type in {routing.FORM, routing.MULTIPART} else "body"
                yield f"{where} {kind}", _resolved(content["schema"], document)


def _resolved(schema: Any, document: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_resolved(one, document) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _resolved(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
    return {name: _resolved(value, document) for name, value in schema.items()}


def input_problems(where: str, schema: Any) -> Iterator[str]:
    """Yield the problems of an input schema, at any depth."""
    if isinstance(schema, list):
        for one in schema:
            yield from input_problems(where, one)
    if not isinstance(schema, dict):
        return
    # OAuth ignores unknown parameters in its forms (RFC 6749, section 3.2). Other forms refuse them, whatever the schema says.
    is_form = where.endswith(" form")
    if schema.get("type") == "object" and schema.get("additionalProperties") is not False and not is_form:
        yield f"{where} accepts unknown members: derive its model from app.core.schemas.fields.Payload"
    # The size of the body limits files, and secrets that are only compared. One that is too long is simply wrong.
    bounded = {"maxLength", "enum", "const"} & schema.keys() or schema.get("format") in {
        "uuid",
        "date",
        "date-time",
        "password",
        "binary",
    }
    bounded = bounded or "contentMediaType" in schema
    if schema.get("type") == "string" and not bounded:
        yield f"{where} has no maximum length: give the string a max_length"
    if schema.get("type") == "array" and "maxItems" not in schema:
        yield f"{where} has no maximum length: give the array a max_length"
    if schema.get("type") in {"integer", "number"} and not {"minimum", "maximum"} <= _bounds(schema):
        yield f"{where} has no limits: give the number ge (or gt) and le (or lt)"
    for name, value in schema.get("properties", {}).items():
        yield from input_problems(f"{where}.{name}", value)
    for name in ("anyOf", "oneOf", "allOf", "items", "prefixItems"):
        yield from input_problems(where, schema.get(name))


def _bounds(schema: dict[str, Any]) -> set[str]:
    return {{"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}.get(name, name) for name in schema}


def test_each_input_is_closed_and_bounded(application: FastAPI) -> None:
    schemas = list(incoming(application))
    found = [problem for where, schema in schemas for problem in input_problems(where, schema)]

    assert schemas
    assert not found, "; ".join(found)


def declared_inputs(where: str, dependant: Dependant) -> Iterator[tuple[str, Any]]:
    """Yield the name and the type of each input of an operation and of its dependencies."""
    given = (dependant.path_params, dependant.query_params, dependant.header_params, dependant.cookie_params)
    for field in (*itertools.chain(*given), *dependant.body_params):
        yield f"{where} {field.alias}", Annotated[field.field_info.annotation, field.field_info]
    for dependency in dependant.dependencies:
        yield from declared_inputs(where, dependency)


def texts(where: str, kind: Any, rules: Sequence[Any] = ()) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield the name and the rules of each text inside a type, at any depth."""
    if isinstance(kind, TypeAliasType):
        yield from texts(where, kind.__value__, rules)
    elif get_origin(kind) is Annotated:
        inner, *more = get_args(kind)
        yield from texts(
            where, inner, [*rules, *more, *(rule for one in more for rule in getattr(one, "metadata", ()))]
        )
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield from texts(f"{where}.{name}", field.annotation, field.metadata)
    elif isinstance(kind, type) and issubclass(kind, str | SecretStr) and not issubclass(kind, Enum):
        yield where, rules
    else:
        for argument in get_args(kind):
            yield from texts(where, argument, rules)


def is_ruled(rules: Sequence[Any]) -> bool:
    """Return whether the characters of a text are limited: by one of our types, by a pattern, or because it must be empty."""
    known = {Plain, Printable, PrintableLines, PrintableSecret, OpaqueSecret}
    ours = any(rule in known for rule in rules if isinstance(rule, AfterValidator))
    return ours or any(getattr(rule, "pattern", None) or getattr(rule, "max_length", None) == 0 for rule in rules)


def test_each_input_text_declares_its_allowed_characters(application: FastAPI) -> None:
    found = {
        where: is_ruled(rules)
        for name, _, route in operations(application)
        for place_, kind in declared_inputs(name, route.dependant)
        for where, rules in texts(place_, kind)
    }
    exempt = {where for where in found if where in FIXED_NAMES or where.rpartition(".")[2] in UNBOUNDED}

    assert any(found.values())
    loose = {where for where, ruled in found.items() if not ruled} - exempt
    assert not loose, (
        f"{loose} accept any characters, such as NUL or half a surrogate pair: use ShortText, or add Printable, PrintableSecret "
        "(stored secrets), OpaqueSecret (compared secrets) or Plain (no control characters) of app.core.schemas.fields"
    )
    assert FIXED_NAMES.keys() <= found.keys(), "remove outdated entries from FIXED_NAMES"


def test_each_stored_secret_has_a_maximum_length(application: FastAPI) -> None:
    found = {
        where: rules
        for name, _, route in operations(application)
        for place_, kind in declared_inputs(name, route.dependant)
        for where, rules in texts(place_, kind)
        if PrintableSecret in [rule for rule in rules if isinstance(rule, AfterValidator)]
    }

    assert found
    unbounded = {
        where for where, rules in found.items() if not any(getattr(rule, "max_length", None) for rule in rules)
    }
    assert not unbounded, f"{unbounded} have no maximum length: give the secret a max_length"


def test_each_request_body_is_a_payload(application: FastAPI) -> None:
    found = {
        (name, kind)
        for name, _, route in operations(application)
        for _, declared in declared_inputs(name, route.dependant)
        for kind in models_in(declared)
    }

    assert found
    lax = [
        f"{name} {kind.__name__}"
        for name, kind in found
        if not issubclass(kind, Payload | PageQuery | OffsetQuery)
        or kind.model_config.get("extra") != ("ignore" if issubclass(kind, FormPayload) else "forbid")
    ]
    assert not lax, f"{lax} take unknown members or coerce types: derive them from Payload, PageQuery or OffsetQuery"


def models_in(kind: Any) -> Iterator[type[BaseModel]]:
    """Yield each model inside a type, at any depth."""
    if isinstance(kind, TypeAliasType):
        yield from models_in(kind.__value__)
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
        for field in kind.model_fields.values():
            yield from models_in(field.annotation)
    else:
        for argument in get_args(kind):
            yield from models_in(argument)


def test_each_path_parameter_is_declared(application: FastAPI) -> None:
    for path, item in application.openapi()["paths"].items():
        named = set(re.findall(r"{(\w+)}", path))
        for method, operation in item.items():
            declared = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}

            assert declared == named, f"{method.upper()} {path} must declare each parameter of its path, and no other"


def test_each_unique_constraint_that_becomes_an_error_exists() -> None:
    named = {
        key.value
        for file in FILES
        for _, name, call in calls(file)
        if name == "on_unique_violation"
        for node in call.args[1:]
        for key in (node.keys if isinstance(node, ast.Dict) else ())
        if isinstance(key, ast.Constant)
    }
    tables = Base.metadata.tables.values()
    existing = {str(one.name) for table in tables for one in table.indexes if one.unique} | {
        str(one.name) for table in tables for one in table.constraints if isinstance(one, UniqueConstraint)
    }

    assert named
    assert named <= existing, (
        f"no unique constraint or index has the name {named - existing}: correct the name in on_unique_violation"
    )


def test_each_writer_is_confirmed_in_the_transaction_of_the_write() -> None:
    operations = {
        f"{place(file)} {function.name}": function
        for file in FILES
        if file.name == "router.py"
        for function in ast.walk(ast.parse(file.read_text()))
        if isinstance(function, ast.AsyncFunctionDef)
        and any(ast.unparse(one.annotation).endswith("Writer") for one in function.args.args if one.annotation)
    }
    unconfirmed = [
        name
        for name, function in operations.items()
        if not any(isinstance(node, ast.Attribute) and node.attr == "confirm" for node in ast.walk(function))
    ]

    assert operations
    assert not unconfirmed, (
        f"{unconfirmed} could write after the token was revoked: call `writer.confirm(session)`, or pass it to "
        "the service that locks the row first"
    )


def test_imports_are_at_the_top_of_the_file() -> None:
    found = {
        f"{place(file)} {function}"
        for file in FILES
        for function, node in nodes(file)
        if function and isinstance(node, ast.Import | ast.ImportFrom)
    }

    assert found == DEFERRED_IMPORTS.keys(), (
        "an import inside a function hides an error in the layers; if it saves start time, add it to "
        "DEFERRED_IMPORTS with the reason"
    )


def test_files_have_specific_names() -> None:
    paths = {place(file) for file in FILES} | {place(folder) for folder in SOURCE.rglob("*/") if folder.is_dir()}
    vague = [path for path in sorted(paths) if VAGUE & set(re.split(r"[/_.]", path))]

    assert not vague, f"{vague} have vague names: name each file after its content"


@pytest.mark.parametrize("setting", list(variables()), ids=lambda setting: setting[0])
def test_each_setting_has_a_description(setting: tuple[str, str, Any]) -> None:
    variable, name, model = setting
    description = model.model_fields[name].description or ""

    assert description.endswith((".", "`")), f"describe {variable} in full sentences"
