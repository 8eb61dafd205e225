"""Hostile requests, sent without changes by a client, and the checks of each refusal."""

import asyncio
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import unquote, urlencode

import asyncpg
import pytest
from fastapi.routing import iter_route_contexts
from starlette.types import ASGIApp

from app.core.db.keyset import CursorSigner
from app.main import create_app
from tests import factories
from tests.conftest import make_settings
from tests.core.recording import Lines, Recording

API = "/api/v1"
TOKEN = f"{API}/auth/token"
REVOKE = f"{API}/auth/revoke"
FORGOT = f"{API}/auth/password/forgot"
RESET = f"{API}/auth/password/reset"
USERS = f"{API}/users"
ME = f"{API}/users/me"

# Seconds for which a refused request may hold the event loop. Measuring coverage takes time for each line; `.ci/run` also runs
# test_costs.py without it.
BOUND = 0.020 if sys.monitoring.get_tool(sys.monitoring.COVERAGE_ID) is None else 0.200
# Part of every value that is sent. No response and no log line may contain it.
CANARY = "canary7hq2"
PASSWORD = f"{CANARY} correct horse battery staple"
JSON = ("Content-Type", "application/json")
FORM = ("Content-Type", "application/x-www-form-urlencoded")

# Characters that are invisible in a line of text, or that change the direction of the text.
INVISIBLE = [
    *map(chr, (0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180E, 0x200B, 0x200E, 0x200F, 0x2028, 0x2029)),
    *map(chr, (*range(0x202A, 0x202F), *range(0x2060, 0x2065), *range(0x2066, 0x2070), 0x3164, 0xFEFF, 0xFFA0)),
    *map(chr, (0xFFF9, 0xFFFA, 0xFFFB, 0xFFFC, 0x1BCA0, 0x1D173, 0xE0001, 0xE0041, 0xE007F, 0xE0100, 0xFE00, 0x180B)),
]

type Header = tuple[str, str]

_MEMBERS = {"type", "title", "status", "detail", "instance", "request_id", "code"}
_OAUTH_MEMBERS = {"error", "error_description"}
_ERROR_MEMBERS = {"pointer", "code", "detail"}
_REQUEST_ID = "the-id-of-an-attack"
_INTERNAL_WORDS = re.compile(
    r"traceback|pydantic|sqlalchemy|asyncpg|starlette|fastapi|\bselect\b|\binsert\b|line \d", re.IGNORECASE
)


@dataclass(frozen=True)
class Attack:
    """A request and its expected refusal."""

    name: str
    status: int
    problem: str
    target: str | bytes
    method: str = "POST"
    body: bytes = b""
    headers: Sequence[Header] = (JSON,)
    who: str = "nobody"
    codes: Sequence[str] | None = None
    oauth: str | None = None
    expected_headers: Mapping[str, str] = field(default_factory=dict)
    # Tables that the attack may change. For example, a failed login is an audit event.
    writes: frozenset[str] = frozenset()


VALID_REQUEST = Attack("valid", 200, "", ME, "GET", headers=(), who="user")


@dataclass(frozen=True)
class Reply:
    """A response as the application sent it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """Return the only value of a header."""
        values = [value for given, value in self.headers if given == name]
        assert len(values) < 2, f"{name} is sent {len(values)} times"
        return values[0] if values else None

    @property
    def document(self) -> dict[str, Any]:
        """Return the parsed body."""
        document: dict[str, Any] = json.loads(self.body)
        return document


@dataclass(frozen=True)
class Target:
    """A running application with two accounts, and a separate connection to its database."""

    app: ASGIApp
    watcher: asyncpg.Connection
    tokens: dict[str, str]
    ids: Mapping[str, str]
    contract: Mapping[str, Any]
    signer: CursorSigner

    async def log_in(self, email: str) -> str:
        """Return an access token."""
        form = {"grant_type": "password", "username": email, "password": factories.PASSWORD}
        reply = await self.send(Attack("log in", 200, "", TOKEN, body=urlencode(form).encode(), headers=(FORM,)))
        token: str = reply.document["access_token"]
        return token

    async def send(self, attack: Attack, *, request_id: str = _REQUEST_ID) -> Reply:
        """Send a request exactly as written, without the corrections of an HTTP client."""
        target = attack.target.encode() if isinstance(attack.target, str) else attack.target
        headers = [("Host", "test"), *attack.headers]
        if attack.who in self.tokens:
            headers.append(("Authorization", f"Bearer {self.tokens[attack.who]}"))
        if not any(name.lower() == "x-request-id" for name, _ in headers):
            headers.append(("X-Request-ID", request_id))
        return await exchange(self.app, attack.method, target, headers, attack.body)

    async def rows(self) -> dict[str, str]:
        """Return a digest of the rows of each table."""
        tables = await self.watcher.fetch(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
        )
        digest = "md5(coalesce(string_agg(each::text, '|' ORDER BY each::text), ''))"
        parts = [f"SELECT '{name}' AS name, {digest} AS rows FROM \"{name}\" AS each" for (name,) in tables]  # noqa: S608  # Names of tables.
        return {row["name"]: row["rows"] for row in await self.watcher.fetch(" UNION ALL ".join(parts))}


async def exchange(
    app: ASGIApp, method: str, target: bytes, headers: Sequence[Header], body: bytes | Sequence[bytes]
) -> Reply:
    """Call the application as an ASGI server does."""
    raw_path, _, query = target.partition(b"?")
    chunks = [body] if isinstance(body, bytes) else list(body)
    started: dict[str, Any] = {}
    parts: list[bytes] = []

    async def receive() -> dict[str, Any]:
        if not chunks:
            # The request is complete, and the client waits for the response.
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            started.update(message)
        else:
            parts.append(message.get("body", b""))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": unquote(raw_path.decode("latin-1")),
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "scheme": "http",
        "server": ("test", 80),
        "client": ("127.0.0.1", 1),
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
    }
    # The event loop gets a turn before and after each request, as in a server, so that its time is not added to that of others.
    await asyncio.sleep(0)
    await app(scope, receive, send)
    await asyncio.sleep(0)
    response_headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in started["headers"]]
    return Reply(started["status"], response_headers, b"".join(parts))


@cache
def paths_with_oauth_errors() -> frozenset[str]:
    """Return the paths whose errors OAuth clients understand."""
    routes = iter_route_contexts(create_app(make_settings("postgresql://nobody@127.0.0.1/nothing")).routes)
    oauth = (route for route in routes if getattr(route.original_route, "has_oauth_errors", False))
    return frozenset(str(route.path) for route in oauth)


async def check_refusals(
    target: Target, recording: Recording, subtests: pytest.Subtests, attacks: Iterable[Attack]
) -> None:
    """Send each attack twice. Check each refusal, and that the application still works and no other table has changed."""
    before = await target.rows()
    lines = recording()
    lines()
    expected: set[str] = set()

    for attack in attacks:
        with subtests.test(attack.name.encode("unicode_escape").decode()):
            await _check_refusal(target, lines, attack)
        expected |= attack.writes

    assert (await target.send(VALID_REQUEST)).status == 200
    after = await target.rows()
    assert {name for name in after if after[name] != before[name]} == expected


async def _check_refusal(target: Target, lines: Lines, attack: Attack) -> None:
    first, second = [await target.send(attack) for _ in range(2)]

    written = lines()
    assert first.status == attack.status, first
    _assert_problem(attack, first)
    _assert_no_leak(first)
    assert _without_id(first) == _without_id(second)
    _assert_logged(attack, written)


def _assert_problem(attack: Attack, reply: Reply) -> None:
    if attack.method == "HEAD":
        assert reply.body == b""
        return
    assert reply.header("content-type") == "application/problem+json", reply
    document = reply.document
    members = _MEMBERS | (_OAUTH_MEMBERS if attack.oauth else set()) | ({"errors"} if reply.status == 422 else set())
    assert set(document) == members
    assert document["type"] == f"/problems/{attack.problem}", document
    assert document["status"] == reply.status
    assert document["request_id"] == reply.header("x-request-id")
    assert document["title"] == attack.problem.replace("-", " ").capitalize()
    assert reply.body.isascii()
    for error in document.get("errors", ()):
        assert set(error) == _ERROR_MEMBERS
        assert error["pointer"].startswith("#/")
    if attack.codes is not None:
        codes = [error["code"] for error in document["errors"]] if "errors" in document else [document["code"]]
        assert codes == list(attack.codes), document
    assert document.get("error") == attack.oauth, document
    for name, value in attack.expected_headers.items():
        assert reply.header(name) == value, name


def _assert_no_leak(reply: Reply) -> None:
    written = f"{reply.headers} {reply.body.decode()}"
    assert CANARY not in written.lower()
    assert not _INTERNAL_WORDS.search(written), written


def _without_id(reply: Reply) -> tuple[int, list[tuple[str, str]], bytes]:
    request_id = reply.header("x-request-id") or ""
    headers = [(name, value) for name, value in reply.headers if name != "x-request-id"]
    return reply.status, headers, reply.body.replace(request_id.encode(), b"")


def _assert_logged(attack: Attack, written: list[dict[str, Any]]) -> None:
    """Check that each request causes only one access line, without a traceback and without the values that were sent."""
    assert [line["event"] for line in written] == ["request"] * 2, written
    assert [line["status"] for line in written] == [attack.status] * 2
    assert CANARY not in json.dumps(written).lower()
