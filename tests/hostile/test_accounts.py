"""Invalid addresses, passwords, tokens, links and logins."""

import json
from time import process_time
from urllib.parse import urlencode

import pytest

from app.core.http.routing import MAX_FORM_SIZE
from tests.core.recording import Recording
from tests.hostile.attack import (
    API,
    CANARY,
    FORGOT,
    FORM,
    INVISIBLE,
    JSON,
    ME,
    PASSWORD,
    RESET,
    REVOKE,
    TOKEN,
    USERS,
    Attack,
    Target,
    check_refusals,
)

REAUTHENTICATE = f"{API}/auth/reauthenticate"
OTHER_UUID = "0192f0c1-a2b3-7c4d-8e5f-60718293a4b5"


def of_body(
    name: str, target: str, body: object, *codes: str, method: str = "POST", who: str = "nobody",
    status: int = 422, problem: str = "validation-error",
) -> Attack:  # fmt: skip
    raw = json.dumps(body).encode()
    return Attack(
        name.encode("unicode_escape").decode()[:70], status, problem, target, method, raw, who=who, codes=codes or None
    )


INVALID_ADDRESSES = [
    "", " ", "a", "@", "a@", "@b", "a@b", "a@b..c", "a@.b.co", "a@b.co.", "a@-b.co", "a@b-.co", "a b@c.co", "a@b c.co", ".a@b.co",
    "a.@b.co", "a..b@c.co", "a@b@c.co", "a@b.c_o", "\u200b@b.co",
    "a" * 65 + "@b.co", "\u00e9" * 33 + "@b.co", "a@" + "b" * 64 + ".co", "a@" + "b." * 126 + "co", "a" * 250 + "@b.co",
    "a" * 10_000 + "@b.co", "a@" + "b." * 5000 + "co",
    "a@x.co,b@evil.co", "a@x.co;b@evil.co", "a@x.co b@evil.co", "a@x.co\nBcc: e@evil.co", "a@x.co\r\n", "\ta@x.co", " a@x.co", "a@x.co ",
    "<a@x.co>", "A <a@x.co>", "mailto:a@x.co", '"a b"@x.co', "a(comment)@x.co", "a@x.co%0aBcc:e@evil.co",
    "a@[127.0.0.1]", "a@127.0.0.1", "a@[IPv6:::1]", "a@localhost", "a@local", "a@x.test.", "a@x.invalid", "a@\u0430..com",
    *(f"a{character}b@x.co" for character in INVISIBLE), "a\u200cb@x.co", "a\u200db@x.co", "a\ufe0fb@x.co",
    "a@xn--.co", "a@xn--a.co", "a@\u2024.co", "a@x\uff0e\uff0eco", "a@" + "\u0390" * 10_000 + ".co", "a@" + "\u00fc" * 200 + ".co",
]  # fmt: skip
BAD_ADDRESSES = (
    ["v@x.co", "e@evil.co"], {"email": "v@x.co"}, None, 1, "", "v@x.co,e@evil.co", "v@x.co\u0000", f"{CANARY}@localhost",
)  # fmt: skip
BAD_SECRETS = ("", None, 1, True, [CANARY], {CANARY: CANARY}, f"{CANARY}\ud800")
BAD_PASSWORDS = ("x" * 257, CANARY * 1000, f"{CANARY}\0", f"{CANARY}\x1b", "\u202e", "a" + "\u0301\u0316" * 5000)
ADDRESSES = [
    *(of_body(f"forgot {address}", FORGOT, {"email": address}) for address in INVALID_ADDRESSES),
    *(
        of_body(f"{target.rpartition('/')[2]} {json.dumps(value)}", target, {"email": value}, who=who)
        for target, who in ((FORGOT, "nobody"), (USERS, "admin"))
        for value in BAD_ADDRESSES
    ),
]  # fmt: skip
MEMBERS = [
    *(
        of_body(f"{target.rpartition('/')[2]} {name} {json.dumps(value)}", target, body | {name: value}, method=method, who=who)
        for target, name, body, who, method in (
            (REAUTHENTICATE, "password", {}, "user", "POST"),
            (f"{ME}/password", "current_password", {"new_password": PASSWORD}, "user", "PUT"),
            (f"{ME}/password", "new_password", {"current_password": PASSWORD}, "user", "PUT"),
            (RESET, "token", {"new_password": PASSWORD}, "nobody", "POST"),
            (RESET, "new_password", {"token": CANARY}, "nobody", "POST"),
        )
        for value in BAD_SECRETS
    ),
    of_body("new_password of 1,025", f"{ME}/password", {"current_password": PASSWORD, "new_password": "x" * 1025}, "too_long",
            method="PUT", who="user"),
    of_body("new_password of 1,025 by a link", RESET, {"token": CANARY, "new_password": "x" * 1025}, "too_long"),
    *(
        of_body(f"new_password {value}", f"{ME}/password", {"new_password": value, "current_password": "x"}, "unprintable",
                method="PUT", who="user")
        for value in (f"{CANARY}\u0000", f"{CANARY}\ud800"[:10] + "\x7f", f"\n{CANARY}")
    ),
    *(
        of_body(f"{method} {target.rpartition('/')[2]} {body}", target, body, method=method, who=who)
        for target, method, who in ((ME, "PATCH", "user"), (f"{USERS}/{OTHER_UUID}", "PATCH", "admin"))
        for body in (
            {"full_name": ""}, {"full_name": " "}, {"full_name": 1}, {"full_name": "\u0000"}, {"full_name": "x" * 129}, {"id": CANARY},
            {"email": "v@example.com"}, {"hashed_password": CANARY}, {"version": 1}, {"authz_version": 9}, {"created_at": None},
        )
    ),
    *(
        of_body(f"own {name}", ME, {name: value}, "extra_forbidden", method="PATCH", who="user")
        for name, value in {"role": "admin", "is_active": True, "email_verified_at": None, "scopes": ["users:write"]}.items()
    ),
    *(
        of_body(f"{name} {json.dumps(value)}", f"{USERS}/{OTHER_UUID}", {name: value}, method="PATCH", who="admin")
        for name, value in (
            ("role", "root"), ("role", "ADMIN"), ("role", None), ("role", ["admin"]), ("role", 1), ("role", CANARY),
            ("is_active", "true"), ("is_active", 1), ("is_active", None), ("is_active", []),
        )
    ),
]  # fmt: skip
BAD_LINKS = (
    ("one character", "x"),
    ("a canary", CANARY),
    ("only the prefix", "lt1."),
    ("the right length", f"lt1.{CANARY}".ljust(70, "A")),
    ("another version", f"lt2.{CANARY}".ljust(70, "A")),
    ("a refresh token", f"rt1.{CANARY}".ljust(70, "A")),
    ("a JWT", "eyJhbGciOiJub25lIn0.e30."),
    ("padding", "lt1." + "A" * 65 + "="),
    ("another alphabet", "lt1." + "+/" * 33),
    ("beyond ASCII", "lt1.\u00e9" + "A" * 65),
    ("512 characters", "x" * 512),
    ("513 characters", "x" * 513),
    ("10 KB", f"lt1.{CANARY}".ljust(10_000, "A")),
    ("NUL", f"{CANARY}\0"),
    ("a control character", f"{CANARY}\x1b"),
    ("an invisible character", f"lt1.{CANARY}\u200b"),
    ("an id that does not exist", "lt1." + "A" * 66),
)
LINKS = [
    of_body(
        f"reset {name}", RESET, {"token": secret, "new_password": PASSWORD}, "invalid_token",
        status=400, problem="invalid-token",
    )
    for name, secret in BAD_LINKS
]  # fmt: skip


def form(
    name: str, body: bytes | dict[str, str], code: str = "invalid_request", error: str = "", target: str = TOKEN
) -> Attack:
    raw = body if isinstance(body, bytes) else urlencode(body).encode()
    problem = "invalid-grant" if code == "invalid_grant" else "malformed-request"
    return Attack(
        name[:60], 400, problem, target, body=raw, headers=(FORM,), codes=(code,), oauth=error or code,
        # A failed login is an audit event, without the address.
        writes=frozenset({"audit_events"} if code == "invalid_grant" and b"grant_type=password" in raw else ()),
    )  # fmt: skip


GOOD = f"grant_type=password&username={CANARY}%40example.com&password={CANARY}+horse".encode()
NUL, HIGH = b"%00", b"%ED%A0%80"
# Input that is not UTF-8, or not a form, is refused before its parameters are read.
SYNTAX = ("malformed_request", "invalid_request")
LOGINS = [
    *(form(f"grant_type {value}", {"grant_type": value}, "unsupported_grant_type") for value in (
        "authorization_code", "client_credentials", "PASSWORD", "password ", "\0", CANARY, "urn:ietf:params:oauth:grant-type:device_code",
    )),
    form("nothing", b""),
    form("separators", b"&" * 1000),
    form("equals signs", b"=" * 100),
    form("JSON as a form", b'{"grant_type": "password"}'),
    form("2,000 members", b"&".join(b"a%d=1" % number for number in range(2000)), *SYNTAX),
    form("grant_type missing", GOOD.partition(b"&")[2]),
    form("grant_type empty", GOOD.replace(b"=password&", b"=&")),
    *(form(f"{name} twice", GOOD + b"&" + name.encode() + b"=password") for name in ("grant_type", "username", "password")),
    *(form(f"{name} missing", b"&".join(part for part in GOOD.split(b"&") if not part.startswith(name.encode()))) for name in (
        "username", "password",
    )),
    *(form(f"{name} empty", b"&".join(
        part.partition(b"=")[0] + b"=" if part.startswith(name.encode()) else part for part in GOOD.split(b"&")
    )) for name in ("username", "password")),
    form("username an array", GOOD.replace(b"username=", b"username[]=")),
    *(form(f"an unknown member, {raw!r}", GOOD + b"&" + raw, "invalid_grant") for raw in (
        b"audience=x", b"is_superuser=true", b"resource=" + NUL, b"x", b"=", b"x=%0a", b"long=" + b"x" * 10_000, b"grant_type%00=x",
    )),
    form("an unknown member twice", GOOD + b"&audience=x&audience=y"),
    form("a member twice, once escaped", GOOD + b"&%67rant_type=password"),
    *(form(f"username with {raw!r}", GOOD.replace(b"username=", b"username=" + raw)) for raw in (
        NUL, b"%0a", b"%EF%BF%BE", b"%7F",
    )),
    *(form(f"username with {raw[:20]!r}", GOOD.replace(b"username=", b"username=" + raw), "invalid_grant") for raw in (
        b"a" * 400, b"a" * 10_000, b"%E2%80%AE", b"%E2%80%8B", b"%CD%B8",
    )),
    *(form(f"password with {raw[:20]!r}", GOOD + raw, "invalid_grant") for raw in (
        NUL, b"%C2%85", b"%0a", b"x" * 257, b"x" * 10_000, b"%CC%81%CC%96" * 1000, b"%E2%80%AE",
    )),
    *(form(f"scope {raw[:20]!r}", GOOD + b"&scope=" + raw, "invalid_scope") for raw in (
        NUL, b"%22", b"%5C", b"%0a", b"%C2%A0", b"%C3%A9", b"a" * 513, b"a" * 10_000,
    )),
    *(form(f"client_id {raw!r}", GOOD + b"&client_id=" + raw) for raw in (NUL, b"x" * 256, b"%0a")),
    *(form(f"{raw!r} in {name}", GOOD.replace(name.encode() + b"=", name.encode() + b"=" + raw), *SYNTAX)
      for name in ("grant_type", "username", "password") for raw in (HIGH, b"%FF", b"\xff", b"%C0%AF")),
    form("an unknown account", GOOD, "invalid_grant"),
    form("not an address", GOOD.replace(b"%40", b""), "invalid_grant"),
    form("a quote", GOOD.replace(b"%40", b"%27%20or%201=1--%40"), "invalid_grant"),
    form("a wildcard", GOOD.replace(b"canary7hq2%40", b"%25%40"), "invalid_grant"),
    form("a known account", GOOD.replace(CANARY.encode() + b"%40", b"user%40"), "invalid_grant"),
]  # fmt: skip
REFRESHES = [
    *(form(f"refresh {token[:40]!r}", {"grant_type": "refresh_token", "refresh_token": token}, "invalid_grant") for token in (
        "x", CANARY, "rt1.", "rt1." + "A" * 60, "rt1." + "A" * 86, f"rt2.{CANARY}" + "A" * 60, "A" * 4096, "A" * 10_000,
        "eyJhbGciOiJub25lIn0.e30.",
        f"lt1.{CANARY}".ljust(70, "A"), "rt1.\u00e9" + "A" * 60, "rt1." + "=" * 60, "x\0", "\x1b[0m",
    )),
    form("refresh nothing", {"grant_type": "refresh_token", "refresh_token": ""}),
    *(form(f"refresh with the scope {scope[:20]!r}", {"grant_type": "refresh_token", "refresh_token": "a", "scope": scope}, "invalid_scope")
      for scope in ('"', "\\", "\0", "a" * 10_000)),
    form("refresh a surrogate", b"grant_type=refresh_token&refresh_token=" + HIGH, *SYNTAX),
    form("refresh twice", b"grant_type=refresh_token&refresh_token=a&refresh_token=b"),
    form("refresh with a password", b"grant_type=refresh_token&refresh_token=a&password=" + CANARY.encode(), "invalid_grant"),
    *(form(f"revoke {raw!r}", raw, target=REVOKE) for raw in (
        b"", b"token=", b"token=a&token=b", b"tokens=a", b"token=a&foo=1&foo=2",
        b"token=a&token_type_hint=" + b"x" * 256, b"token=a&token_type_hint=%00",
    )),
    *(form(f"revoke {raw!r}", b"token=" + raw, *SYNTAX, target=REVOKE) for raw in (b"%FF", HIGH, b"\xff")),
]  # fmt: skip
SECRETS = [
    *(
        Attack(
            f"{target.rpartition('/')[2]} with {secret[:20]!a}", 403, "forbidden", target, method,
            json.dumps(body | {name: secret}).encode(), who="user", codes=("wrong_password",), writes=frozenset({"audit_events"}),
        )
        for target, method, name, body in (
            (REAUTHENTICATE, "POST", "password", {}),
            (f"{ME}/password", "PUT", "current_password", {"new_password": PASSWORD}),
        )
        for secret in BAD_PASSWORDS
    ),
    *(
        Attack(
            name, 413, "payload-too-large", target, body=body, headers=(FORM, *length), oauth="invalid_request",
            expected_headers={"connection": "close"},
        )
        for name, target, body in (
            ("a refresh token over the limit of forms", TOKEN, b"grant_type=refresh_token&refresh_token=".ljust(MAX_FORM_SIZE + 1, b"A")),
            ("a password of 500 KB", TOKEN, GOOD + b"x" * 500_000),
            ("a token to revoke", REVOKE, b"token=".ljust(MAX_FORM_SIZE + 1, b"A")),
            ("nothing but ampersands", REVOKE, b"&" * 1_000_000),
        )
        for length in ((), (("Content-Length", str(len(body))),))
    ),
]  # fmt: skip
FORBIDDEN = [
    Attack(
        f"a user at {method} {target.rpartition('/')[2]}",
        403,
        "forbidden",
        target,
        method,
        body,
        (JSON,),
        "user",
        ("insufficient_scope",),
    )
    for method, target, body in (
        ("GET", USERS, b""),
        ("POST", USERS, b'{"email": "v@example.com"}'),
        ("GET", f"{USERS}/{OTHER_UUID}", b""),
        ("PATCH", f"{USERS}/{OTHER_UUID}", b'{"role": "admin"}'),
        ("DELETE", f"{USERS}/{OTHER_UUID}", b""),
        ("DELETE", f"{USERS}/{OTHER_UUID}/sessions", b""),
        ("POST", f"{USERS}/{OTHER_UUID}/password-reset", b""),
    )
]


@pytest.mark.parametrize(
    "attacks", [ADDRESSES, MEMBERS, LINKS, LOGINS, REFRESHES, SECRETS, FORBIDDEN],
    ids=["addresses", "members", "links", "logins", "tokens", "secrets", "scopes"],
)  # fmt: skip
async def test_invalid_values_are_refused(
    target: Target, recording: Recording, subtests: pytest.Subtests, attacks: list[Attack]
) -> None:
    await check_refusals(target, recording, subtests, attacks)


@pytest.mark.parametrize("letters", ["\u0390", "\u00fc", "\u0130", "\ufdfa", "a\u0301"])
async def test_a_long_domain_is_refused_in_linear_time(target: Target, letters: str) -> None:
    body = json.dumps({"email": f"a@{letters * (10_000 // len(letters))}.co"}).encode()
    started = process_time()

    reply = await target.send(Attack("long", 422, "validation-error", FORGOT, body=body))

    assert reply.status == 422
    # Linear time is a millisecond; quadratic time is seconds.
    assert process_time() - started < 1
