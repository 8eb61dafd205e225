"""All operations that can give tokens, each against accounts that may not have them, and with the state of the database afterwards."""

import ast
import re
import textwrap
from collections.abc import AsyncIterator, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, override
from uuid import UUID

import asyncpg
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from httpx2 import Response
from pydantic import BaseModel, TypeAdapter

from app.auth import second_factor
from app.auth.schemas import TokenPair
from app.core.config import Settings
from app.core.db.database import Database
from app.core.http import routing
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from app.users.roles import granted
from tests.auth.code_factor import CodeFactor
from tests.auth.login_sessions import Pair
from tests.auth.minting import Change, Gives, Site, Way
from tests.conftest import ROOT, make_settings, running
from tests.volume import plain

SOURCE = ROOT / "src"
# The functions that make tokens. A method is named by the last two names of the expression that uses it.
DOORS = {
    "app.auth.service.complete_login",
    "app.auth.sessions.service.start",
    "app.auth.sessions.service.renew",
    "app.auth.sessions.service.issue",
    "app.auth.sessions.refresh_tokens.make",
    "access_tokens.issue",
}
_MENTIONS = re.compile(
    r"auth.*\b(sessions|service|refresh_tokens)\b|access_tokens|^(async )?def (start|renew|issue|make)\b", re.MULTILINE
)
# The members of a pair with which a client is logged in.
TOKENS = {"access_token", "refresh_token"} & TokenPair.model_fields.keys()
CHANGES: tuple[Change, ...] = get_args(Change.__value__)
SET_UP = {
    "disabled": "UPDATE users SET is_active = false WHERE id = $1",
    "unverified": "UPDATE users SET email_verified_at = NULL WHERE id = $1",
}


def modules() -> Iterator[ModuleType]:
    for path in sorted(ROOT.glob("tests/*/minting.py")):
        yield import_module(f"tests.{path.parent.name}.minting")


WAYS: dict[str, Way] = {name: way for module in modules() for name, way in module.WAYS.items()}
CALLERS: dict[str, set[str]] = {name: doors for module in modules() for name, doors in module.CALLERS.items()}


def minting_operations(app: FastAPI) -> set[str]:
    """Return the operations whose response has a token, at any depth. Operations outside the OpenAPI document count too."""
    return {
        f"{method} {route.path}"
        for route in iter_route_contexts(app.routes)
        if isinstance(original := route.original_route, APIRoute) and _has_token(original.response_model)
        for method in route.methods or ()
    }


def _has_token(response_model: Any) -> bool:
    return response_model is not None and _names_token(TypeAdapter(response_model).json_schema(mode="serialization"))


def _names_token(schema: Any) -> bool:
    if isinstance(schema, list):
        return any(map(_names_token, schema))
    if not isinstance(schema, dict):
        return False
    properties = schema.get("properties")
    has_token = isinstance(properties, dict) and bool(TOKENS & properties.keys())
    return has_token or any(map(_names_token, schema.values()))


def callers(source: Path) -> dict[str, set[str]]:
    """Return the functions that use a function of `DOORS`, with those that each uses."""
    found: dict[str, set[str]] = {}
    for path in sorted(source.rglob("*.py")):
        code = path.read_text()
        # To parse only the modules that can name such a function saves seconds.
        if not _MENTIONS.search(code):
            continue
        module = ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__")
        for name, door in _Uses(module, ast.parse(code)).found:
            found.setdefault(name, set()).add(door)
    return found


class _Uses(ast.NodeVisitor):
    """Finds the uses of `DOORS` in a module, and the function of each."""

    def __init__(self, module: str, tree: ast.Module) -> None:
        self.found: list[tuple[str, str]] = []
        self._scope = [module]
        own = {
            node.name: f"{module}.{node.name}"
            for node in tree.body
            if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef)
        }
        self._names = own
        self.visit(tree)

    @override
    def visit_Import(self, node: ast.Import) -> None:
        self._names |= {alias.asname: alias.name for alias in node.names if alias.asname}

    @override
    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self._names[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def _visit_scope(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self._scope.append(node.name)
        self.generic_visit(node)
        self._scope.pop()

    @override
    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_scope(node)

    @override
    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._visit_scope(node)

    @override
    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_scope(node)

    @override
    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._note(node)
        self.generic_visit(node)

    @override
    def visit_Name(self, node: ast.Name) -> None:
        self._note(node)

    def _note(self, node: ast.expr) -> None:
        name = self._resolved(node)
        for door in DOORS & {name, ".".join(name.split(".")[-2:])}:
            self.found.append((".".join(self._scope), door))

    def _resolved(self, node: ast.expr) -> str:
        if isinstance(node, ast.Attribute):
            return f"{self._resolved(node.value)}.{node.attr}"
        return self._names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def test_each_operation_that_gives_tokens_is_listed(settings: Settings) -> None:
    found, listed = minting_operations(create_app(settings)), {way.operation for way in WAYS.values()}

    assert found - listed == set(), (
        "these operations give tokens; add a `Way` for each to WAYS in tests/<feature>/minting.py, with what it gives to a disabled "
        "and to an unverified account, to one with a second factor, and to one whose role needs a second factor"
    )
    assert listed - found == set(), "these operations give no tokens; remove their ways from tests/<feature>/minting.py"


def test_each_function_that_makes_tokens_is_listed() -> None:
    assert callers(SOURCE) == CALLERS, (
        "each function that makes tokens needs a row in CALLERS of tests/<feature>/minting.py, and a `Way` in WAYS for the operation "
        "that uses it; remove rows of functions that are gone"
    )


def test_each_way_says_what_every_kind_of_account_gets() -> None:
    for name, way in WAYS.items():
        assert way.outcomes.keys() == set(CHANGES), name


class Nested(BaseModel):
    pairs: list[TokenPair]


class Without(BaseModel):
    scope: str


@pytest.mark.parametrize(("model", "is_found"), [(TokenPair, True), (Nested | None, True), (Without, False)])
def test_an_own_operation_that_gives_tokens_is_found(settings: Settings, model: Any, *, is_found: bool) -> None:
    router = routing.router()

    @router.post("/own", response_model=model, include_in_schema=False)
    async def own() -> None:
        """Give tokens."""

    app = create_app(settings)
    app.include_router(router)

    assert ("POST /own" in minting_operations(app)) is is_found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from app.auth.sessions import service as own\nasync def log_in(): await own.start()", "start"),
        ("from app.auth.sessions.service import start as begin\nasync def log_in(): await begin()", "start"),
        ("import app.auth.sessions.service as own\nasync def log_in(): return partial(own.renew)", "renew"),
        ("from app.auth.sessions import service\nasync def log_in(): service.end_all()", None),
    ],
)
def test_an_own_function_that_makes_tokens_is_found(tmp_path: Path, code: str, found: str | None) -> None:
    (tmp_path / "own.py").write_text(textwrap.dedent(code))

    assert callers(tmp_path) == ({"own.log_in": {f"app.auth.sessions.service.{found}"}} if found else {})


@pytest.fixture
async def site(
    way: Way, clone_url: str, hasher: PasswordHasher, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    """The application with real connections. Administrators need a second factor."""
    if not way.is_factor_real:
        monkeypatch.setattr(second_factor, "installed", CodeFactor)
    auth = {"mfa_required_roles": "admin", "require_verified_email": True}
    settings = make_settings(clone_url, auth=auth, rate_limit={"enabled": False})
    database = Database(settings.database)
    watcher = await asyncpg.connect(plain(clone_url))
    async with running(create_app(settings, database)) as client:
        yield Site(client, database, hasher, watcher)
    await watcher.close()
    await database.dispose()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_each_way_gives_only_what_the_account_may_have(site: Site, way: Way) -> None:
    for change in CHANGES:
        account = await site.account("admin" if change == "role" else "user")
        request = await way.begin(site, account)
        await site.execute(way.add_factor if change == "factor" else SET_UP.get(change, "SELECT $1::uuid"), account)
        # Disabling an account ends its sessions.
        before = await site.live_sessions(account)

        response = await send(site, way, request)

        after = await site.live_sessions(account)
        assert_outcome(way.outcomes[change], change, response, before, after)


async def send(site: Site, way: Way, request: Mapping[str, Any]) -> Response:
    method, _, url = way.operation.partition(" ")
    return await site.client.request(method, url, **request)


def assert_outcome(
    outcome: Any, change: Change, response: Response, before: Mapping[UUID, str], after: Mapping[UUID, str]
) -> None:
    if not isinstance(outcome, Gives):
        assert (response.status_code, response.json()["code"]) == (outcome.status, outcome.code), change
        assert not TOKENS & response.json().keys()
        assert after == before, change
        return
    assert response.status_code == 200, (change, response.text)
    pair = Pair(response.json())
    assert pair.claims["acr"] == outcome.acr == after[pair.session_id], change
    assert (pair.session_id not in before) is outcome.starts_session, change
    assert len(after) == len(before) + outcome.starts_session, change
    assert pair.body["scope"] == pair.claims["scope"] == scope(change, outcome), change


def scope(change: Change, outcome: Gives) -> str:
    """Return the scopes of a token: none while the role needs a second factor that the session has not given."""
    if change != "role":
        return " ".join(sorted(granted("user")))
    return " ".join(sorted(granted("admin"))) if outcome.acr == "aal2" else ""
