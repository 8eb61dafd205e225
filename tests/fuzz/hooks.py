"""Hooks for schemathesis: login, and rules that a JSON schema cannot express, such as printable characters and passwords."""

import os
from itertools import count
from typing import Any
from uuid import uuid4

import httpx2
import psycopg
import schemathesis
from schemathesis import GenerationMode

from app.core.http.routing import FORM
from app.core.schemas import characters
from app.core.schemas.emails import InvalidEmailError, normalize

_INSERT = """
    INSERT INTO users (id, email, email_key, hashed_password, role, email_verified_at)
    VALUES (%s, %s, %s, %s, %s, now())
"""
_PASSWORD = os.environ["FUZZ_PASSWORD"]
_numbers = count(1)
_client = httpx2.Client(base_url=os.environ["FUZZ_URL"])


class Account:
    """An account in the database, with an access token."""

    def __init__(self) -> None:
        self.email = f"fuzz{next(_numbers)}@example.com"
        with psycopg.connect(os.environ["FUZZ_DATABASE"]) as connection:
            values = (uuid4(), self.email, self.email, os.environ["FUZZ_HASH"], os.environ["FUZZ_ROLE"])
            connection.execute(_INSERT, values)
        form = {"grant_type": "password", "username": self.email, "password": _PASSWORD}
        self.token: str = _client.post("/api/v1/auth/token", data=form).raise_for_status().json()["access_token"]

    def is_usable(self) -> bool:
        return _client.get("/api/v1/users/me", headers={"Authorization": f"Bearer {self.token}"}).status_code == 200


class Caller:
    """The current account. A new one replaces it after a case has deleted, disabled or logged out the account."""

    def __init__(self) -> None:
        self._account = Account()
        self._must_check = False

    def account(self) -> Account:
        if self._must_check and not self._account.is_usable():
            self._account = Account()
        self._must_check = False
        return self._account

    def check(self) -> None:
        """Check the account before the next case."""
        self._must_check = True


_caller = Caller()


@schemathesis.auth(refresh_interval=None)
class Login:
    """Sends a token to the operations that require one. The token endpoint refuses requests with a token."""

    def get(self, _case: Any, _context: Any) -> str:
        return _caller.account().token

    def set(self, case: Any, token: str, context: Any) -> None:
        if context.operation.definition.raw.get("security"):
            case.headers["Authorization"] = f"Bearer {token}"


@schemathesis.hook
def before_call(_context: Any, case: Any, _options: Any) -> None:
    """Make cases that are valid by the schema really valid. Invalid cases are not changed."""
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    if isinstance(case.body, dict):
        if case.media_type == FORM:
            case.body = _once(case.body)
        case.body = _printable(case.body) | _known(case.body) | _addressed(case.body)
    if case.query:
        case.query = _printable(case.query) | _addressed(case.query)
    for name, value in case.headers.items():
        case.headers[name] = _clean(value)


@schemathesis.hook
def after_call(_context: Any, case: Any, response: Any) -> None:
    """Check the account again after a 401 response or a successful change."""
    if response.status_code == 401 or (case.method != "GET" and response.status_code < 300):
        _caller.check()


def _once(fields: dict[str, Any]) -> dict[str, Any]:
    """Send each field of a form once. A list or an object would become a repeated field, which a schema cannot forbid."""
    return {name: str(value) if isinstance(value, list | dict) else value for name, value in fields.items()}


def _printable(members: dict[str, Any]) -> dict[str, Any]:
    """Replace invisible characters and blank texts, which a schema cannot forbid."""
    return {name: _clean(value) if isinstance(value, str) else value for name, value in members.items()}


def _clean(text: str) -> str:
    kept = "".join(one if characters.is_printable(one) and characters.has_only_visible(one) else "x" for one in text)
    return "x" * len(kept) if characters.is_blank(kept) or characters.has_too_many_marks(kept) else kept


def _addressed(members: dict[str, Any]) -> dict[str, Any]:
    """Replace addresses in reserved domains, which a schema cannot forbid."""
    return {
        name: _deliverable(str(members[name])) for name in ("email", "new_email") if isinstance(members.get(name), str)
    }


def _deliverable(address: str) -> str:
    try:
        return normalize(address)
    except InvalidEmailError:
        return f"nobody{len(address)}@example.com"


def _known(body: dict[str, Any]) -> dict[str, Any]:
    """Insert valid passwords, which a schema cannot describe. Half of the logins get the right username."""
    account = _caller.account()
    known = {"new_password": _PASSWORD[::-1], "current_password": _PASSWORD, "password": _PASSWORD}
    if body.get("grant_type") == "password" and len(str(body.get("username"))) % 2:
        known["username"] = account.email
    return {name: value for name, value in known.items() if isinstance(body.get(name), str)}
