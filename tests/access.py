"""Rows of the access table: who may call an operation. Each feature lists its rows in `tests/<feature>/access.py`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from tests.conftest import ROOT

NEW_PASSWORD = "five quiet herons at dawn"
UNKNOWN_ID = "00000000-0000-7000-8000-000000000000"
TARGET = "target@example.com"


@dataclass(frozen=True)
class Access:
    """Who may call an operation, and a request that is valid for an allowed caller."""

    scopes: frozenset[str] | None = frozenset()
    """None: the operation is public. Empty: all logged-in users may call it."""
    json: Mapping[str, Any] | None = None
    form: Mapping[str, str] | None = None
    path: Mapping[str, str] = field(default_factory=dict)
    is_found: bool = True
    """False: the path refers to nothing that exists, so an allowed caller gets 404."""
    is_known: bool = True
    """False: the secret in the body is invalid, so an allowed caller gets 400."""
    is_optional: bool = False
    """True: anonymous callers may call it too, and an invalid token is refused."""


def public(**request: Any) -> Access:
    return Access(scopes=None, **request)


def optional(**request: Any) -> Access:
    return Access(is_optional=True, **request)


def authenticated(**request: Any) -> Access:
    return Access(**request)


def scoped(*scopes: str, **request: Any) -> Access:
    return Access(frozenset(scopes), **request)


def table() -> dict[str, Access]:
    """Return the rows of all `tests/<feature>/access.py`."""
    found: dict[str, Access] = {}
    for path in sorted(ROOT.glob("tests/*/access.py")):
        rows: Mapping[str, Access] = import_module(f"tests.{path.parent.name}.access").ACCESS
        assert not found.keys() & rows.keys(), f"{path} lists an operation of another feature; remove the row"
        found |= rows
    return found
