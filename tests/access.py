"""Rows of the access table: who may call an operation. Each feature lists its rows in `tests/<feature>/access.py`."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib import import_module
from typing import Any
from uuid import UUID

from app.core.db.database import WriteSession
from tests.conftest import ROOT

NEW_PASSWORD = "five quiet herons at dawn"
UNKNOWN_ID = "00000000-0000-7000-8000-000000000000"
TARGET = "target@example.com"
# Begins the rows of WebSockets.
WEBSOCKET = "WEBSOCKET "

type PerCaller = Mapping[str, Any] | Callable[[UUID], Mapping[str, Any]]
"""Values of a request, or a function that returns them for the id of the caller's account."""
type Prepare = Callable[[WriteSession, UUID], Awaitable[None]]


async def _nothing(_session: WriteSession, _caller: UUID) -> None:
    """Prepare nothing: the request is valid without further rows."""


@dataclass(frozen=True)
class Access:
    """Who may call an operation, and a request that is valid for an allowed caller."""

    scopes: frozenset[str] | None = frozenset()
    """None: the operation is public. Empty: all logged-in users may call it."""
    json: PerCaller | None = None
    form: Mapping[str, str] | None = None
    path: PerCaller = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `client.request`: `params`, `files`, or `content` with its `headers`."""
    is_found: bool = True
    """False: the path refers to nothing that exists, so an allowed caller gets 404."""
    is_known: bool = True
    """False: the secret in the body is invalid, so an allowed caller gets 400."""
    is_optional: bool = False
    """True: anonymous callers may call it too, and an invalid token is refused."""
    status: int | None = None
    """The status of an allowed caller's request, if it is none of the above."""
    statements: int | None = None
    """The number of SQL statements of an allowed caller's request. None: `test_statements.py` allows one for a read, five for a write."""
    prepare: Prepare = _nothing
    """Adds the rows that the request needs. For a refused or anonymous caller, it gets the id of another account."""

    def request(
        self, operation: str, caller: UUID, target: UUID, *, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Return the request as arguments of `client.request`. `{user_id}` in the path is the target."""
        method, _, template = operation.partition(" ")
        json, path = (values(caller) if callable(values) else values for values in (self.json, self.path))
        url = template.format(**{"user_id": target, **(path or {})})
        sent = {**(headers or {}), **self.options.get("headers", {})}
        return {"json": json, "data": self.form, **self.options, "method": method, "url": url, "headers": sent}

    def accepts(self, status: int) -> bool:
        """Return whether an allowed caller gets this status."""
        if self.is_found and self.is_known and self.status is None:
            return HTTPStatus(status).is_success
        refused = HTTPStatus.BAD_REQUEST if self.is_found else HTTPStatus.NOT_FOUND
        return status == (self.status or refused)


def public(**request: Any) -> Access:
    return Access(scopes=None, **request)


def optional(**request: Any) -> Access:
    return Access(is_optional=True, **request)


def authenticated(**request: Any) -> Access:
    return Access(**request)


def scoped(*scopes: str, **request: Any) -> Access:
    return Access(frozenset(scopes), **request)


def table() -> dict[str, Access]:
    """Return the rows of all `tests/<feature>/access.py`. The method of a WebSocket is `WEBSOCKET`."""
    found: dict[str, Access] = {}
    for path in sorted(ROOT.glob("tests/*/access.py")):
        rows: Mapping[str, Access] = import_module(f"tests.{path.parent.name}.access").ACCESS
        assert not found.keys() & rows.keys(), f"{path} lists an operation of another feature; remove the row"
        found |= rows
    return found
