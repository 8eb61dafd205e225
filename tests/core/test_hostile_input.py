"""Hostile input, table by table: what anybody may send over HTTP, and exactly what comes back.

Every case is sent twice to the whole application and must be answered twice alike: never by a 5xx, with a problem document
of the promised form that repeats nothing of what was sent, one line in the log, no traceback, and no row written.

Not here: what no HTTP client can send (broken request lines, framing, header floods: they need a raw socket), races
(`tests/races`), and crafted access tokens (`tests/auth/test_tokens.py`). Social login, API keys, cookies and files do not
exist, so what attacks them does not apply.
"""

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest
from httpx2 import AsyncClient, Response
from sqlalchemy import text

from app.core.database import Database
from app.core.security import PasswordHasher
from app.main import create_app
from tests.conftest import cloned, log_in, make_settings, running
from tests.core.recording import Recording
from tests.factories import make_user

CANARY = "kAnArY7qX"
REGISTER, TOKEN, USERS = "/api/v1/auth/register", "/api/v1/auth/token", "/api/v1/users"
RESET, EVENTS = "/api/v1/auth/password/reset", "/api/v1/audit-events"
SESSIONS = f"{USERS}/me/sessions"
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
GOOD = {"email": "ada@example.com", "password": "five quiet herons at dawn"}
MALFORMED, INVALID, NOT_FOUND = (400, "malformed-request"), (422, "validation-error"), (404, "not-found")
TOO_LARGE, MEDIA_TYPE = (413, "payload-too-large"), (415, "unsupported-media-type")
METHOD, CURSOR = (405, "method-not-allowed"), (400, "invalid-cursor")
# A failed login is recorded, and is the one row that hostile input may leave.
_ROWS = text("""
    SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM sessions), (SELECT count(*) FROM account_links),
           (SELECT count(*) FROM procrastinate_jobs), (SELECT count(*) FROM rate_limits),
           (SELECT count(*) FROM audit_events WHERE event <> 'auth.login_failed')
""")


@dataclass(frozen=True)
class Case:
    """A request, and the answer it must have: status and problem type, or a status alone where it is let in."""

    name: str
    method: str
    path: str
    expected: tuple[int, str] | int
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    is_admin: bool = False
    oauth: str | None = None
    """`error` of RFC 6749, where an OAuth client reads it."""


def body(
    name: str, content: bytes | str, expected: tuple[int, str] | int, path: str = REGISTER, **headers: str
) -> Case:
    """Post a body as JSON."""
    raw = content if isinstance(content, bytes) else content.encode()
    return Case(name, "POST", path, expected, raw, JSON | headers)


def register(name: str, members: dict[str, Any]) -> Case:
    """Register with these members in place of the good ones; `...` leaves one out."""
    document = {key: value for key, value in {**GOOD, **members}.items() if value is not ...}
    return body(name, json.dumps(document), INVALID)


def form(
    name: str, content: str | bytes, error: str, *, status: int = 400, headers: dict[str, str] | None = None
) -> Case:
    """Post a form to the token endpoint."""
    raw = content if isinstance(content, bytes) else content.encode()
    kinds = {"invalid_grant": "invalid-grant", "invalid_client": "unauthorized"}
    return Case(
        name, "POST", TOKEN, (status, kinds.get(error, "malformed-request")), raw, FORM | (headers or {}), oauth=error
    )


def get(name: str, path: str, expected: tuple[int, str] | int, **headers: str) -> Case:
    """Read something as an administrator."""
    return Case(name, "GET", path, expected, headers=headers, is_admin=True)


def bodies() -> Iterator[Case]:
    """Bodies that are no JSON, or not the JSON that is wanted."""
    yield body("empty", "", MALFORMED)
    for value in ("null", "true", "1", '"x"', "[]", "[{}]"):
        yield body(f"not an object: {value}", value, INVALID)
    broken = ["{", '{"email"', '{"email":', '{"email":"a', "{} x", "{}{}", "{'email': 1}", "{email: 1}", '{"email":1,}']
    broken += [
        '/* x */{"email":1}',
        '{"email":1 // x\n}',
        "NaN",
        "nul",
        "{]",
        "[}",
        '{"a" "b"}',
        "\x00",
        "\ufeff{}",
        "+1",
        "01",
    ]
    broken += ['{"email":NaN}', '{"email":Infinity}', '{"email":-Infinity}', '{"email":1e999}', '{"email":0x10}']
    broken += [
        '{"email":1_000}',
        '{"email":+1}',
        '{"email":01}',
        '{"email":"\t"}',
        '{"email":"\x01"}',
        '{"email":"\\x"}',
    ]
    broken += ['{"email":"\\u12"}', '{"email":.5}', '{"email":1.}', "{\u00a0}", "undefined", "{} // x", '"\n"']
    for number, text_ in enumerate(broken):
        yield body(f"broken {number}: {text_[:20]!r}", text_, MALFORMED)
    for number, raw in enumerate(
        [b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b'{"email":"\xff"}']
    ):
        yield body(f"not UTF-8 {number}", raw, MALFORMED)
    for name, encoding in (("UTF-16", "utf-16"), ("UTF-32", "utf-32"), ("UTF-16 without a mark", "utf-16-le")):
        yield body(name, json.dumps(GOOD).encode(encoding), MALFORMED)
    yield body("a member twice", '{"email":"a@x.co","email":"b@x.co","password":"p"}', MALFORMED)
    yield body("a member of a member twice", '{"email":{"a":1,"a":2},"password":"p"}', MALFORMED)
    yield body("a member twice by escape", '{"email":"a@x.co","\\u0065mail":"b@x.co"}', MALFORMED)
    for name, opening, closing in (("arrays", "[", "]"), ("objects", '{"a":', "}")):
        for depth in (33, 1_000, 20_000, 100_000):
            yield body(f"{depth} {name} deep", opening * depth + "1" + closing * depth, MALFORMED)
            yield body(f"{depth} {name} deep and never closed", opening * depth, MALFORMED)
    many = ",".join(f'"k{number}":1' for number in range(50_000))
    yield body("fifty thousand members", f"{{{many}}}", INVALID)
    yield body("a megabyte and a byte", b" " * 1_048_577, TOO_LARGE)
    yield body("ten megabytes of password", json.dumps({**GOOD, "password": "x" * 10_485_760}), TOO_LARGE)
    for encoding in ("gzip", "br", "deflate", "zstd", "identity, gzip", "gzip, gzip", "x" * 200):
        yield body(f"encoded: {encoding[:20]}", b"\x1f\x8b\x08", MEDIA_TYPE, **{"Content-Encoding": encoding})


def members() -> Iterator[Case]:
    """Members that are unknown, missing, of another type, or hold what no text should."""
    privileged = ("is_superuser", "role", "roles", "email_verified", "id", "created_at", "authz_version", "is_active")
    for name in (*privileged, "foo", "__proto__", "constructor", "hashed_password", "email_key", "version", "scope"):
        yield register(f"unknown: {name}", {name: CANARY})
    yield register("an empty name of a member", {"": 1})
    yield register("a long name of a member", {"k" * 20_000: 1})
    others: list[Any] = [1, 1.5, True, False, [], {}, None, ["a@x.co", "b@x.co"], {"a": 1}, 10**400, -0, [[[]]]]
    for name in ("email", "password"):
        yield register(f"without {name}", {name: ...})
        for value in others:
            yield register(f"{name} is {str(value)[:20]}", {name: value})
    for value in (1, True, [], {}, 1e300):
        yield register(f"full_name is {value}", {"full_name": value})
    yield register("a password that is a number", {"password": 12345678901234567})
    for name in ("email", "password", "full_name"):
        for label, code in (
            ("NUL", "\x00"), ("a bell", "\x07"), ("a newline", "\n"), ("delete", "\x7f"), ("next line", "\x85"),
            ("a lone surrogate", "\ud800"), ("another", "\udfff"), ("a non-character", "\ufffe"),
            ("one beyond", "\U0001ffff"), ("private use", "\ue000"), ("unassigned", "\u0378"),
        ):  # fmt: skip
            yield register(f"{label} in {name}", {name: f"{CANARY} of the five quiet herons{code}@example.com"})
    for label, name in (
        ("nothing", ""),
        ("129 characters", "x" * 129),
        ("spaces", "   "),
        ("no-break spaces", "\xa0\u2003"),
    ):
        yield register(f"a name of {label}", {"full_name": name})
    yield register("without a password", {"email": f"{CANARY}@x", "password": ...})
    yield body("without the new password", json.dumps({"token": CANARY}), INVALID, path=RESET)
    yield body(
        "a token of ten thousand", json.dumps({"token": CANARY * 1200, "new_password": "x"}), INVALID, path=RESET
    )


def addresses() -> Iterator[Case]:
    """Addresses that are none, or more than one, or of somebody else's machine."""
    for address in (
        *(
            "",
            " ",
            "a",
            "@",
            "a@",
            "@b",
            "a@b",
            "a@b..c",
            "a@.b",
            "a@-b.co",
            "a@b-.co",
            "a b@c.co",
            "a@b c.co",
            "a@@b.co",
        ),
        *("a@x.co,b@evil.co", "a@x.co;b@evil.co", "a@x.co b@evil.co", "a@x.co\nBcc: e@evil.co", "a@x.co\r\nX: y"),
        *("<a@x.co>", "A <a@x.co>", "mailto:a@x.co", "a@[127.0.0.1]", "a@127.0.0.1", "a@localhost", "a@[IPv6:::1]"),
        *(
            "a@x.co\x00",
            "a@x.co.",
            ".a@x.co",
            "a.@x.co",
            "a..b@x.co",
            '"a b"@x.co',
            "a@x_y.co",
            "a@\u202ex.co",
            "a(b)@x.co",
        ),
        *(
            f"{'a' * 65}@x.co",
            f"a@{'b' * 64}.co",
            f"a@{'b.' * 130}co",
            "a" * 10_000,
            f"a@{'ü' * 5_000}.de",
            "a@xn--.co",
        ),
        *("a%40x.co", "a@x.co%00", "a@x.co/../../", "' or 1=1--@x", "a@x.co?x=1", "a@x.co#", "{{7*7}}@x", "${a}@x"),
    ):
        yield register(f"address {address[:30]!r}, {len(address)} long", {"email": address})


def passwords() -> Iterator[Case]:
    """Passwords too short, too long, too common, or about their owner."""
    for label, password in (
        ("14 characters", "five quiet her"), ("257 characters", "5 quiet herons " * 17 + "at"), ("of the address", "ada@example.com"),
        ("common", "123456789012345"), ("a row", "qwertyuiopasdfgh"), ("one character", "a" * 15), ("spaces", " " * 15),
        ("of the service", "bedplatebedplate"), ("a thousand", "5 quiet herons " * 68), ("too long for its type", "x" * 5000),
    ):  # fmt: skip
        yield register(f"password: {label}", {"password": password})


def media_types() -> Iterator[Case]:
    """Bodies of another type, or of none: a page of somebody else's can send these without asking."""
    good = json.dumps(GOOD).encode()
    for kind in (
        *(
            "",
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
            "multipart/form-data; boundary=x",
        ),
        *(
            "application/vnd.api+json",
            "application/json, text/html",
            "application/json; charset=latin-1",
            "*/*",
            "json",
        ),
        *("application/json; charset=utf-16", "application/jsonp", "text/json", "application/json\\", "x" * 10_000),
    ):
        headers = {"Content-Type": kind} if kind else {}
        yield Case(f"JSON as {kind[:40] or 'nothing'}", "POST", REGISTER, MEDIA_TYPE, good, headers)
    for kind in ("application/json", "text/plain", "multipart/form-data; boundary=x", "multipart/form-data", ""):
        headers = {"Content-Type": kind} if kind else {}
        yield Case(f"a login as {kind or 'nothing'}", "POST", TOKEN, MEDIA_TYPE, b"grant_type=password", headers)
    parts = (
        b"".join(b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' for _ in range(10_000)) + b"--x--\r\n"
    )
    multipart = {"Content-Type": "multipart/form-data; boundary=x"}
    yield Case("ten thousand parts", "POST", TOKEN, MEDIA_TYPE, parts, multipart)


def paths() -> Iterator[Case]:
    """Addresses that lead nowhere, and ids that are none."""
    for path in (
        *(
            "/nothing",
            "/api",
            "/api/v1",
            "/api/v1/",
            "/api/v1//users/me",
            "/api/v1/users/me/",
            "/API/V1/USERS/ME",
            "/V1/ME",
        ),
        *("/api/v1/users/me;x=1", "/api/v1/users/me%2f", "/api/v1/users/me%00", "/api/v1/users/me%0d%0aX:1", "/.env"),
        *("/api/v1/users/me.css", "/api/v1/users/me/x.css", "/wp-login.php", "/%2e%2e/etc/passwd", "/api/v1/users/%ff"),
        *(
            "/problems/nothing",
            "/problems/..%2f",
            "/docs/nothing",
            "/docs/..%2f..%2fapp.py",
            "/account/nothing",
            "/" + "x" * 8_000,
        ),
    ):
        yield get(f"path {path[:40]}", path, NOT_FOUND)
    ids = [
        "abc",
        "0",
        "-1",
        str(2**31),
        str(2**63),
        "9" * 300,
        "1.0",
        "١٢٣",
        "null",
        "undefined",
        "\x00",
        "' or 1=1--",
        "../admin",
    ]
    ids += [
        str(UUID(int=7)).upper().replace("0", "A"),
        UUID(int=7).hex,
        f"{{{UUID(int=7)}}}",
        f"urn:uuid:{UUID(int=7)}",
        "x" * 8_000,
    ]
    ids += [str(UUID(int=7)), f"{UUID(int=7)}%00", f" {UUID(int=7)}", f"{UUID(int=7)}\n"]
    for number, identifier in enumerate(ids):
        for method in ("GET", "DELETE"):
            name = f"{method} id {number}: {identifier[:20]!r}"
            yield Case(name, method, f"{USERS}/{quote(identifier, safe='%')}", NOT_FOUND, is_admin=True)
    for method in ("PUT", "TRACE", "FOO", "POST", "OPTIONS"):
        yield Case(f"{method} on an account", method, f"{USERS}/{UUID(int=7)}", METHOD, is_admin=True)
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        yield Case(f"{method} on the token endpoint", method, TOKEN, METHOD)
        yield Case(f"{method} on registration", method, REGISTER, METHOD)
        yield Case(f"{method} on verification", method, "/api/v1/auth/verify-email", METHOD)
    override = {"X-HTTP-Method-Override": "DELETE", "X-Method-Override": "DELETE"}
    yield get("another method in a header", f"{USERS}/me", 200, **override)
    for secret in ("access_token", "password", "token"):
        for path in (f"{USERS}/me", "/livez", "/nothing", TOKEN):
            yield get(f"{secret} in the address of {path}", f"{path}?{secret}={CANARY}", MALFORMED)


def queries() -> Iterator[Case]:
    """Parameters of lists: unknown, repeated, out of range, forged."""
    limits = [
        "-1",
        "0",
        "101",
        "abc",
        "1.5",
        "",
        "\u0661\u0660",
        "%2010",
        "+10",
        "%2B10",
        "1e2",
        str(2**31),
        str(2**63),
        "9" * 300,
        "0x10",
        "1_0",
    ]
    for path in (USERS, SESSIONS, EVENTS):
        for limit in limits:
            yield get(f"limit={limit[:20]} of {path}", f"{path}?limit={limit}", INVALID)
        for query in (
            "limit=5&limit=6",
            f"foo={CANARY}",
            "offset=-1",
            "skip=1",
            "page=2",
            "limit=5&LIMIT=6",
            "=1",
            "limit[]=1",
        ):
            yield get(f"{query} of {path}", f"{path}?{query}", INVALID)
        for cursor in (
            "",
            "x",
            "%21",
            "A" * 1_000,
            "A" * 8_000,
            "bnVsbA",
            "W10",
            "gASVAAAAAAAAAA",
            "AQ",
            "%00",
            "ü",
            "AA==",
        ):
            yield get(f"cursor={cursor[:20]}, {len(cursor)} long, of {path}", f"{path}?cursor={cursor}", CURSOR)
    for sort in (
        "password_hash",
        "hashed_password",
        "id;drop",
        "-",
        "email," * 100,
        "email;--",
        "EMAIL",
        "",
        "--email",
        "1",
    ):
        yield get(f"sort={sort[:20]}", f"{USERS}?sort={quote(sort)}", INVALID)
    filters = [
        "email=a%40x.co&email=b%40x.co",
        "email=nothing",
        "email=",
        "role=root",
        "role=",
        "role=ADMIN",
        "is_active=1",
        "is_active=True",
    ]
    filters += [
        "q=",
        "q=%00",
        "q=%ED%A0%80",
        "q=%FF",
        f"q={'x' * 129}",
        "created_after=yesterday",
        "created_after=2026-01-01",
    ]
    filters += [
        "created_after=0000-01-01T00:00:00Z",
        "created_before=9999-99-99T00:00:00Z",
        "created_after=1e9",
        "created_after=",
    ]
    for query in filters:
        yield get(f"users: {query[:40]}", f"{USERS}?{query}", INVALID)
    for query in (
        "actor_id=1",
        "subject_id=null",
        f"actor_id={UUID(int=7).hex}",
        "after=now",
        "event=",
        "event=%00",
        f"event={'x' * 200}",
    ):
        yield get(f"events: {query[:40]}", f"{EVENTS}?{query}", INVALID)
    yield get("a search that is SQL", f"{USERS}?q={quote("%' or 1=1; drop table users--")}", 200)
    yield get("ten thousand parameters", f"{USERS}?" + "&".join(f"a{number}=1" for number in range(2_000)), INVALID)


def tokens() -> Iterator[Case]:
    """Requests to the token endpoint that no client should send."""
    request = "invalid_request"
    yield form("no form at all", "", request)
    for name, content in (
        ("no grant type", "username=a&password=b"), ("an empty grant type", "grant_type=&username=a&password=b"),
        ("no password", "grant_type=password&username=a"), ("no username", "grant_type=password&password=b"),
        ("an empty username", "grant_type=password&username=&password=b"),
        ("an empty password", "grant_type=password&username=a&password="), ("no refresh token", "grant_type=refresh_token"),
        ("an empty refresh token", "grant_type=refresh_token&refresh_token="),
        ("a username twice", "grant_type=password&username=a&username=b&password=c"),
        ("a grant type twice", "grant_type=password&grant_type=password&username=a&password=c"),
        ("an array of usernames", "grant_type=password&username[]=a&password=b"),
        ("an unknown parameter", "grant_type=password&username=a&password=b&foo=1"),
        ("a username of ten thousand", f"grant_type=password&username={'a' * 10_000}&password=b"),
        ("a password of ten thousand", f"grant_type=password&username=a&password={'b' * 10_000}"),
        ("NUL in the username", "grant_type=password&username=a%00&password=b"),
        ("a scope of ten thousand", f"grant_type=password&username=a&password=b&scope={'s ' * 5_000}"),
    ):  # fmt: skip
        yield form(name, content, request)
    for kind in (
        "authorization_code",
        "client_credentials",
        "PASSWORD",
        "implicit",
        "urn:ietf:params:oauth:grant-type:jwt-bearer",
    ):
        yield form(f"grant type {kind[:20]}", f"grant_type={quote(kind)}", "unsupported_grant_type")
    for name, raw in (
        ("surrogate bytes", b"%ED%A0%80"),
        ("bytes that are no UTF-8", b"%FF"),
        ("raw bytes", b"\xff\xfe"),
    ):
        yield form(name, b"grant_type=password&password=b&username=" + raw, request)
    refused = "invalid_grant"
    for token in (
        "x",
        "rt1.",
        "rt1." + "A" * 76,
        "rt1." + "A" * 75,
        "rt1." + "_" * 76,
        "rt2." + "A" * 76,
        "é",
        CANARY,
        "A" * 4_000,
        "%00",
    ):
        yield form(
            f"refresh token {token[:20]}, {len(token)} long",
            f"grant_type=refresh_token&refresh_token={quote(token, safe='%')}",
            refused,
        )
    yield form("an unknown account", f"grant_type=password&username={CANARY}%40example.com&password={CANARY}", refused)
    for header in (
        "Basic " + "=" * 8,
        "Basic",
        "Basic YQ==",
        "Basic AAA=",
        "Basic \xff",
        "Basic " + "A" * 8_000,
        "basic YTpi",
    ):
        content = "grant_type=password&username=a&password=b"
        credentials = {"Authorization": header}
        yield form(f"{header[:14]!r}", content, "invalid_client", status=401, headers=credentials)


def headers() -> Iterator[Case]:
    """Headers that mean nothing here, or are nonsense."""

    def me(name: str, **headers: str) -> Case:
        return get(name, f"{USERS}/me", 200, **headers)

    yield me(
        "another host", **{"Host": "evil.example", "X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"}
    )
    yield me("another scheme", **{"X-Forwarded-Proto": "javascript"})
    yield me("another address", **{"X-Forwarded-For": "1, 2, ' or 1=1--", "X-Real-IP": CANARY})
    yield me("a request id of ANSI codes", **{"X-Request-ID": "\x1b[31m" + CANARY})
    yield me("a request id of eight thousand", **{"X-Request-ID": "a" * 8_000})
    yield me("a broken traceparent", traceparent="00-0-0-00", tracestate="x" * 5_000, baggage="y" * 5_000)
    yield me("ranges", Range="bytes=" + ",".join(["0-"] * 1_000))
    yield me("encodings", **{"Accept-Encoding": "*, br;q=9, \x7f"})
    yield me("cookies", Cookie="; ".join(f"c{number}=1" for number in range(1_000)))
    yield me("another origin", Origin="null")
    for accept in (
        "*/*",
        "application/json",
        "text/html, */*;q=0.1",
        "application/*",
        "nonsense",
        "",
        ";;q=0",
        "Application/JSON;q=0.5",
    ):
        yield me(f"Accept: {accept}", Accept=accept)
    for accept in (
        "text/html",
        "application/xml;q=1",
        "image/png",
        "application/json;q=0, */*",
        "*/*;q=0.000",
        "x/" + "y" * 10_000,
    ):
        yield get(f"Accept: {accept[:30]}", f"{USERS}/me", (406, "not-acceptable"), Accept=accept)
    yield me("an If-None-Match that is none", **{"If-None-Match": "W/" + '"' * 100})
    yield get("an If-None-Match of two thousand", f"{USERS}/me", INVALID, **{"If-None-Match": "x" * 2_000})
    for value in (
        "Bearer",
        "Bearer ",
        "Bearer a.b.c",
        f"Bearer {CANARY}",
        "Bearer \xff",
        "Bearer a b",
        "Bearer " + "A" * 5_000,
    ):
        case = Case(
            f"Authorization: {value[:20]!r}",
            "GET",
            f"{USERS}/me",
            (401, "unauthorized"),
            headers={"Authorization": value},
        )
        yield case
    for value in ("", "Basic YTpi", "Digest x", "bearer", "Token x", CANARY):
        yield Case(
            f"Authorization: {value!r}", "GET", f"{USERS}/me", (401, "unauthorized"), headers={"Authorization": value}
        )


CASES = [*bodies(), *members(), *addresses(), *passwords(), *media_types(), *paths(), *queries(), *tokens(), *headers()]


@dataclass
class Site:
    """The application on a database of its own, an administrator, and eyes on the rows from outside."""

    client: AsyncClient
    database: Database
    admin: dict[str, str]
    at_first: tuple[int, ...] = ()

    async def rows(self) -> tuple[int, ...]:
        """Count the rows of each table that a refused request must leave alone."""
        async with self.database.read_sessions() as session:
            return tuple((await session.execute(_ROWS)).one())

    async def send(self, case: Case) -> Response:
        """Send a case as it is written."""
        given = {**(self.admin if case.is_admin else {}), **case.headers}
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in given.items()]
        return await self.client.request(case.method, case.path, content=case.content, headers=encoded)


@pytest.fixture(scope="module")
async def site(template_url: str, hasher: PasswordHasher) -> AsyncIterator[Site]:
    """Nothing is limited here: how often is for other tests."""
    async with cloned(template_url) as url:
        settings = make_settings(url, rate_limit={"enabled": False})
        database = Database(settings.database)
        async with database.begin() as session:
            admin = await make_user(session, hasher, role="admin")
        async with running(create_app(settings, database)) as client:
            site = Site(client, database, await log_in(client, admin.email))
            site.at_first = await site.rows()
            yield site
        await database.dispose()


def test_there_are_enough_cases_and_each_has_its_name() -> None:
    assert len(CASES) * 2 >= 500
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.encode("unicode_escape").decode()[:60])
async def test_what_is_hostile_gets_the_answer_it_should(site: Site, recording: Recording, case: Case) -> None:
    lines = recording()
    first, second = await site.send(case), await site.send(case)
    written = lines()

    assert _without_id(first) == _without_id(second)
    if isinstance(case.expected, int):
        assert first.status_code == case.expected, first.text
    else:
        _assert_problem(first, *case.expected, case.oauth)
    assert await site.rows() == site.at_first
    assert CANARY not in f"{first.text}{first.headers}{written}"
    assert [line["event"] for line in written] == ["request", "request"]
    assert not any("exception" in line for line in written)


def _without_id(response: Response) -> tuple[int, str]:
    return response.status_code, response.text.replace(response.headers["x-request-id"], "")


def _assert_problem(response: Response, status: int, kind: str, oauth: str | None) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == f"/problems/{kind}"
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]
    assert {"title", "detail", "instance", "code"} <= problem.keys()
    assert problem.get("error") == (oauth or ("invalid_request" if problem["instance"] == TOKEN else None))
    for error in problem.get("errors", ()):
        assert error.keys() == {"pointer", "code", "detail"}
        assert error["pointer"].startswith("#/")
