"""What schemathesis loads: who is calling. `SCHEMATHESIS_HOOKS` names this module; see `__main__`."""

import os
import time
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import psycopg
import requests
import schemathesis
from schemathesis.openapi.checks import RejectedPositiveData

from app.core.security import BcryptSha256Hasher
from tests.factories import PASSWORD

_URL = os.environ["FUZZ_URL"]
_ROLE = os.environ["FUZZ_ROLE"]
_COST = 4
# Sensitive operations ask for a login of the last five minutes.
_FRESH = 240.0
# What a request may hold by its description and is refused for all the same, since no JSON Schema can state the rule:
# values that only this server can have made, a version that has moved on, and texts by what their characters are.
_BEYOND_A_SCHEMA = {
    "invalid_cursor",
    "invalid_grant",
    "invalid_token",
    "precondition_failed",
    "unprintable",
    "blank",
    "email_invalid",
    "password_too_short",
    "password_too_long",  # Counted in composed characters, as it is hashed.
    "password_too_common",
    "password_contextual",
}
_INSERT = """
    INSERT INTO users (id, email, email_key, role, hashed_password, email_verified_at)
    VALUES (%(id)s, %(email)s, %(email)s, %(role)s, %(hash)s, now())
"""


@schemathesis.hook
def filter_failure(_context: object, failure: object, _case: object, response: Any) -> bool:
    """Let a refusal pass whose every reason is a rule beyond a schema; any other reason is a gap in the description."""
    if not isinstance(failure, RejectedPositiveData):
        return True
    problem = response.json()
    codes = {error["code"] for error in problem.get("errors", ())} or {problem["code"]}
    return not codes <= _BEYOND_A_SCHEMA


@schemathesis.auth(refresh_interval=None)
class Login:
    """Logs in as an account of the role, and as a new one when that has been deleted, demoted or logged out meanwhile."""

    # Whether the last request may have ended the token.
    is_unsure = True

    def __init__(self) -> None:
        self._database = psycopg.connect(os.environ["FUZZ_DATABASE_URL"], autocommit=True)
        self._hash = BcryptSha256Hasher(_COST).hash(PASSWORD)
        self._http = requests.Session()
        self._token = ""
        self._since = 0.0

    def get(self, _case: object, _context: object) -> str:
        """Give a token that is accepted at this moment."""
        if time.monotonic() - self._since > _FRESH or (Login.is_unsure and not self._is_accepted()):
            self._token, self._since = self._log_in(), time.monotonic()
        Login.is_unsure = False
        return self._token

    def set(self, case: Any, token: str, _context: object) -> None:
        """Put the token where the description says it belongs."""
        case.headers["Authorization"] = f"Bearer {token}"

    def _is_accepted(self) -> bool:
        answer = self._http.get(f"{_URL}/api/v1/users/me", headers={"Authorization": f"Bearer {self._token}"})
        return answer.status_code == HTTPStatus.OK

    def _log_in(self) -> str:
        email = f"{uuid4().hex}@example.com"
        self._database.execute(_INSERT, {"id": uuid4(), "email": email, "role": _ROLE, "hash": self._hash})
        form = {"grant_type": "password", "username": email, "password": PASSWORD}
        answer = self._http.post(f"{_URL}/api/v1/auth/token", data=form)
        answer.raise_for_status()
        token: str = answer.json()["access_token"]
        return token


@schemathesis.hook
def after_call(_context: object, case: Any, _response: object) -> None:
    """Note that reading ends no token."""
    Login.is_unsure |= case.method != "GET"
