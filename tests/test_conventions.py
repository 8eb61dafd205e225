"""The rules of the house that no linter knows. Each failure says what to do."""

import ast
import importlib
import itertools
import pkgutil
import re
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeAliasType, get_args, get_origin

import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import AfterValidator, BaseModel, SecretStr

import app as package
from app.core.errors import AppError
from app.core.http import routing
from app.core.http.access import undeclared_operations
from app.core.schemas.fields import (
    FormPayload,
    OpaqueSecret,
    Payload,
    Plain,
    Printable,
    PrintableLines,
    PrintableSecret,
)
from app.core.schemas.pages import PageQuery
from app.main import create_app
from app.settings import variables
from tests.conftest import ROOT, make_settings

SOURCE = ROOT / "src" / "app"
FILES = sorted(SOURCE.rglob("*.py"))

COMMITTERS = {
    "auth/sessions/rotation.py _end_stolen": "The session must stay ended although an error about the stolen token follows.",
    "core/http/dependencies.py get_session": "The edge of HTTP: one commit for each request that writes.",
    "core/db/database.py commit": "The session's own, which remembers that it was done.",
    "core/db/database.py begin": "The edge of commands and jobs.",
    "migrations/env.py _connect_and_run": "Alembic's own command line.",
    "migrations/runner.py _exclusive": "Ends the transaction that the question for the lock began; it has written nothing.",
}
_SLOW = "No connection is held while a password is hashed; the write needs a unit of its own afterwards."
_OUTLIVES = "The record or the count has to outlive the error that follows."
_COUNTED = "A failure is counted after this transaction has returned its connection, and outlives it."
# Services that open a unit of work of their own, instead of taking the session of the edge.
OWN_UNITS = {
    "account/service.py verify_email": _COUNTED,
    "account/service.py confirm_email": _COUNTED,
    "account/service.py reset_password": _SLOW,
    "account/service.py change_password": _SLOW,
    "account/service.py change_email": _SLOW,
    "auth/service.py log_in": _SLOW,
    "auth/service.py reauthenticate": _SLOW,
    "auth/service.py _refresh": _COUNTED,
    "auth/service.py _record_refusal": _OUTLIVES,
    "auth/service.py _record_failure": _OUTLIVES,
    "auth/service.py confirm_password": _OUTLIVES,
    "auth/sessions/cutoff.py end_every_session": "A command: short transactions, so that it can be interrupted.",
    "core/security/rate_limits.py hit": _OUTLIVES,
    "core/security/rate_limits.py forgive": _OUTLIVES,
}
# The edges: HTTP, commands, jobs and the worker.
_EDGES = re.compile(r"(core/(db/|http/dependencies|commands)|jobs/|dev/|.*/jobs\.py)")
DEFERRED_IMPORTS = {
    "__main__.py main": "Everything else is loaded inside `loading`.",
    "cli.py serve": "The other commands need no FastAPI.",
    "cli.py run_worker": "Only the worker needs the job library and its driver.",
    "cli.py migrate": "Only migrations need Alembic.",
    "migrations/revisions.py _revisions": "Alembic reads the migration files only when they have changed.",
    "main.py _jobs": "The job library, where jobs run in the web process: on a developer's machine.",
    "core/security/passwords.py _common": "The list of common passwords takes 0.1 s to load.",
    "core/observability/tracing.py tracing_from_environment": "OpenTelemetry's SDK is loaded only where traces are asked for.",
}
OTHER_ROUTERS = {
    "core/http/routing.py": "Where routers are made.",
    "core/http/problems.py": "The pages that explain errors: HTML, without parameters, outside the document.",
}
# Text in a request that declares no length, or no rule for its characters either, and why that does no harm.
UNENDING = {
    "cursor": "Its decoder says 400 to what it has not written, whatever the length: 422 would be another answer.",
    **dict.fromkeys(("If-Match", "If-None-Match"), "A condition that is too long matches nothing, and is not parsed."),
}
LOOKED_UP = {
    "GET /problems/{name} name": "Looked up among the names there are; anything else is not found.",
    "GET /account/{name} name": "As above.",
}
VAGUE = {"base", "common", "helper", "helpers", "manager", "managers", "misc", "util", "utils"}


@pytest.fixture(scope="module")
def application() -> FastAPI:
    return create_app(make_settings("postgresql://nobody@127.0.0.1/nothing"))


def place(file: Path) -> str:
    return str(file.relative_to(SOURCE))


def calls(file: Path) -> Iterator[tuple[str, str, ast.Call]]:
    """Yield every call in a file: the function it stands in, the name of what is called, and the call."""
    for function, node in nodes(file):
        if isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            yield f"{place(file)} {function}", name, node


def nodes(file: Path) -> Iterator[tuple[str, ast.AST]]:
    """Yield every node of a file, with the name of the innermost function it stands in."""

    def walk(node: ast.AST, function: str) -> Iterator[tuple[str, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            yield function, child
            inner = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
            yield from walk(child, inner)

    yield from walk(ast.parse(file.read_text()), "")


def test_only_the_edges_commit() -> None:
    found = {where for file in FILES for where, name, _ in calls(file) if name == "commit"}

    assert found <= COMMITTERS.keys(), (
        f"{found - COMMITTERS.keys()} must not commit: leave it to the edge, so that two services make one change. Only if "
        "a write has to outlive the error that follows, name it in COMMITTERS with that reason"
    )
    assert found == COMMITTERS.keys(), f"{COMMITTERS.keys() - found} commit no longer: take them out of COMMITTERS"


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
    """Give every error of the application, whatever module declares it."""
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


def test_an_error_code_means_one_error() -> None:
    owners: dict[tuple[str, int], type[AppError]] = {}
    for error in sorted(all_errors(), key=lambda one: len(one.__mro__)):
        # The status tells an access token that is refused from the secret of a link that is: both are `invalid_token`.
        owner = owners.setdefault((error.code, error.status), error)

        # A kind and its plainest case may share a code; two cases may not.
        assert issubclass(error, owner), (
            f"{error.__qualname__} and {owner.__qualname__} have the same code {error.code!r}: give one of them its own"
        )


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.__qualname__)
def test_an_error_is_named_and_explained(error: type[AppError]) -> None:
    name = error.__qualname__
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", error.code), f"write the code of {name} in snake_case"
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", error.problem), f"write the problem of {name} in kebab-case"
    assert error.detail.endswith("."), f"write the detail of {name} as a sentence"
    assert name.endswith("Error"), f"end the name of {name} in Error"


def test_every_operation_declares_who_may_call_it(application: FastAPI) -> None:
    assert list(undeclared_operations(application)) == [], "depend on a principal, or say openapi_extra=public"


def operations(application: FastAPI) -> Iterator[tuple[str, Any, APIRoute]]:
    for context in iter_route_contexts(application.routes):
        route = context.original_route
        if isinstance(route, APIRoute):
            yield f"{' '.join(sorted(context.methods or ()))} {context.path}", context, route


def test_every_router_is_made_by_ours(application: FastAPI) -> None:
    found = {place(file) for file in FILES for _, name, _ in calls(file) if name == "APIRouter"}
    lax = {
        name
        for name, context, route in operations(application)
        if context.include_in_schema and not isinstance(route, routing.Route)
    }

    assert found == OTHER_ROUTERS.keys(), (
        "make routers with app.core.http.routing.router: it refuses what the others let in"
    )
    assert not lax, f"{lax} are not strict: make their router with app.core.http.routing.router"


def incoming(application: FastAPI) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield everything a client may send: where it stands, and its schema with the references filled in."""
    document = application.openapi()
    for path, item in document["paths"].items():
        for method, operation in item.items():
            where = f"{method.upper()} {path}"
            for parameter in operation.get("parameters", ()):
                if parameter["name"] not in UNENDING:
                    yield f"{where} {parameter['name']}", _resolved(parameter["schema"], document)
            for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
                kind = "form" if media_type == routing.FORM else "body"
                yield f"{where} {kind}", _resolved(content["schema"], document)


def _resolved(schema: Any, document: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_resolved(one, document) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _resolved(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
    return {name: _resolved(value, document) for name, value in schema.items()}


def faults(where: str, schema: Any) -> Iterator[str]:
    """Yield what is wrong with a schema of something that comes in, at any depth."""
    if isinstance(schema, list):
        for one in schema:
            yield from faults(where, one)
    if not isinstance(schema, dict):
        return
    # OAuth has unknown members of its forms ignored (RFC 6749, 3.2).
    is_form = where.endswith(" form")
    if schema.get("type") == "object" and schema.get("additionalProperties") is not False and not is_form:
        yield f"{where} takes unknown members: derive its model from app.core.schemas.fields.Payload"
    # A secret that is only compared ends with the body: one that is too long is a wrong one.
    bounded = {"maxLength", "enum", "const"} & schema.keys() or schema.get("format") in {
        "uuid",
        "date-time",
        "password",
    }
    if schema.get("type") == "string" and not bounded:
        yield f"{where} has no end: give the string a max_length"
    if schema.get("type") == "array" and "maxItems" not in schema:
        yield f"{where} has no end: give the array a max_length"
    if schema.get("type") in {"integer", "number"} and not {"minimum", "maximum"} <= _bounds(schema):
        yield f"{where} has no bounds: give the number ge (or gt) and le (or lt)"
    for name, value in schema.get("properties", {}).items():
        yield from faults(f"{where}.{name}", value)
    for name in ("anyOf", "oneOf", "allOf", "items", "prefixItems"):
        yield from faults(where, schema.get(name))


def _bounds(schema: dict[str, Any]) -> set[str]:
    return {{"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}.get(name, name) for name in schema}


def test_whatever_comes_in_is_closed_and_has_an_end(application: FastAPI) -> None:
    schemas = list(incoming(application))
    found = [fault for where, schema in schemas for fault in faults(where, schema)]

    assert schemas
    assert not found, "; ".join(found)


def declared_inputs(where: str, dependant: Dependant) -> Iterator[tuple[str, Any]]:
    """Yield what an operation and all it depends on take from a request: where it stands, and its type."""
    given = (dependant.path_params, dependant.query_params, dependant.header_params, dependant.cookie_params)
    for field in (*itertools.chain(*given), *dependant.body_params):
        yield f"{where} {field.alias}", Annotated[field.field_info.annotation, field.field_info]
    for dependency in dependant.dependencies:
        yield from declared_inputs(where, dependency)


def texts(where: str, kind: Any, rules: Sequence[Any] = ()) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield every text inside a type, at any depth: where it stands, and the rules it is declared with."""
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
    """Say whether the characters of a text are ruled: by one of our types, by a pattern, or because it has none."""
    known = {Plain, Printable, PrintableLines, PrintableSecret, OpaqueSecret}
    ours = any(rule in known for rule in rules if isinstance(rule, AfterValidator))
    return ours or any(getattr(rule, "pattern", None) or getattr(rule, "max_length", None) == 0 for rule in rules)


def test_every_text_that_comes_in_says_which_characters_it_may_hold(application: FastAPI) -> None:
    found = {
        where: is_ruled(rules)
        for name, _, route in operations(application)
        for place_, kind in declared_inputs(name, route.dependant)
        for where, rules in texts(place_, kind)
    }
    exempt = {where for where in found if where in LOOKED_UP or where.rpartition(".")[2] in UNENDING}

    assert any(found.values())
    loose = {where for where, ruled in found.items() if not ruled} - exempt
    assert not loose, (
        f"{loose} may hold anything: NUL, controls, half a character; use ShortText, or add Printable (PrintableSecret for what is "
        "kept, OpaqueSecret for what is only compared, Plain for what nobody reads) from app.core.schemas.fields"
    )
    assert LOOKED_UP.keys() <= found.keys(), "take what is gone out of LOOKED_UP"


def test_every_secret_that_is_kept_has_an_end(application: FastAPI) -> None:
    found = {
        where: rules
        for name, _, route in operations(application)
        for place_, kind in declared_inputs(name, route.dependant)
        for where, rules in texts(place_, kind)
        if PrintableSecret in [rule for rule in rules if isinstance(rule, AfterValidator)]
    }

    assert found
    endless = {where for where, rules in found.items() if not any(getattr(rule, "max_length", None) for rule in rules)}
    assert not endless, f"{endless} has no end: give the secret a max_length"


def test_every_body_that_comes_in_is_a_payload(application: FastAPI) -> None:
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
        if not issubclass(kind, Payload | PageQuery)
        or kind.model_config.get("extra") != ("ignore" if issubclass(kind, FormPayload) else "forbid")
    ]
    assert not lax, f"{lax} take unknown members or coerce types: derive them from Payload, or PageQuery"


def models_in(kind: Any) -> Iterator[type[BaseModel]]:
    """Yield every model inside a type, at any depth."""
    if isinstance(kind, TypeAliasType):
        yield from models_in(kind.__value__)
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
        for field in kind.model_fields.values():
            yield from models_in(field.annotation)
    else:
        for argument in get_args(kind):
            yield from models_in(argument)


def test_a_path_parameter_is_described_by_its_type(application: FastAPI) -> None:
    for path, item in application.openapi()["paths"].items():
        named = set(re.findall(r"{(\w+)}", path))
        for method, operation in item.items():
            declared = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}

            assert declared == named, f"{method.upper()} {path} does not declare what stands in its path"


def test_nothing_is_loaded_lazily() -> None:
    lazy = [
        where
        for file in FILES
        for where, name, call in calls(file)
        if name == "relationship"
        and not any(
            one.arg == "lazy" and isinstance(one.value, ast.Constant) and one.value.value == "raise"
            for one in call.keywords
        )
    ]

    assert not lazy, f'say relationship(…, lazy="raise") in {lazy}: async code cannot load on access'


def test_whoever_writes_for_others_is_confirmed_in_the_same_transaction() -> None:
    operations = {
        f"{place(file)} {function.name}": function
        for file in FILES
        if file.name == "router.py"
        for function in ast.walk(ast.parse(file.read_text()))
        if isinstance(function, ast.AsyncFunctionDef)
        and any(ast.unparse(one.annotation).endswith("Writer") for one in function.args.args if one.annotation)
    }
    careless = [
        name
        for name, function in operations.items()
        if not any(isinstance(node, ast.Attribute) and node.attr == "confirm" for node in ast.walk(function))
    ]

    assert operations
    assert not careless, (
        f"{careless} could write by a token that has been revoked meanwhile: call `writer.confirm(session)`, or hand it to "
        "the service that locks the row first"
    )


def test_imports_stand_at_the_top() -> None:
    found = {
        f"{place(file)} {function}"
        for file in FILES
        for function, node in nodes(file)
        if function and isinstance(node, ast.Import | ast.ImportFrom)
    }

    assert found == DEFERRED_IMPORTS.keys(), (
        "an import inside a function hides that the layers are wrong; if it saves time that counts, name it in "
        "DEFERRED_IMPORTS with the reason"
    )


def test_files_are_named_after_what_they_know() -> None:
    paths = {place(file) for file in FILES} | {place(folder) for folder in SOURCE.rglob("*/") if folder.is_dir()}
    vague = [path for path in sorted(paths) if VAGUE & set(re.split(r"[/_.]", path))]

    assert not vague, f"{vague} could hold anything: name each after what it knows"


@pytest.mark.parametrize("setting", list(variables()), ids=lambda setting: setting[0])
def test_every_setting_is_explained(setting: tuple[str, str, Any]) -> None:
    variable, name, model = setting
    description = model.model_fields[name].description or ""

    assert description.endswith((".", "`")), f"say in the description of {variable} what it does, in sentences"
