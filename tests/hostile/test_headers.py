"""Headers: unsupported values of known headers are refused, all other headers have no effect."""

import base64
import json
import re
from dataclasses import replace

import pytest

from app.core import product
from tests.core.recording import Recording
from tests.hostile.attack import (
    CANARY,
    FORGOT,
    FORM,
    JSON,
    ME,
    PASSWORD,
    RESET,
    TOKEN,
    USERS,
    VALID_REQUEST,
    Attack,
    Header,
    Reply,
    Target,
    check_refusals,
)

BODY = json.dumps({"token": CANARY, "new_password": PASSWORD}).encode()
LOGIN = f"grant_type=password&username={CANARY}%40example.com&password={CANARY}".encode()


def unread(name: str, *headers: Header) -> Attack:
    return Attack(name, 415, "unsupported-media-type", RESET, body=BODY, headers=headers)


MEDIA_TYPES = [
    unread("no type"),
    *(
        unread(f"the type {kind[:60]}", ("Content-Type", kind))
        for kind in (
            "",
            " ",
            "text/plain",
            "text/json",
            "text/html",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
            "multipart/form-data; boundary=x",
            f"multipart/form-data; boundary={'x' * 10_000}",
            "application/vnd.api+json",
            "application/problem+json",
            "application/jsonp",
            "application/json5",
            "application/json, text/html",
            "application/json; charset=latin-1",
            "application/json; charset=utf-16",
            "application/json; charset=utf-8; charset=utf-8",
            "application/json; version=2",
            "application/json\x00",
            "*/*",
            CANARY,
            "x" * 10_000,
        )
    ),
    unread("the type twice", JSON, JSON),
    unread("two types", JSON, ("Content-Type", "text/plain")),
    *(
        unread(f"the encoding {encoding}", JSON, ("Content-Encoding", encoding))
        for encoding in ("gzip", "br", "deflate", "zstd", "compress", "identity, gzip", "gzip, gzip", "x", "", CANARY)
    ),
    unread("two encodings", JSON, ("Content-Encoding", "identity"), ("Content-Encoding", "gzip")),
    *(
        replace(
            unread(f"a form of the type {kind[:40]}", ("Content-Type", kind)),
            target=TOKEN,
            body=LOGIN,
            oauth="invalid_request",
        )
        for kind in (
            "application/json",
            "text/plain",
            "multipart/form-data; boundary=x",
            f"multipart/form-data; boundary={'x' * 10_000}",
        )
    ),
]


def unauthorized(name: str, value: str, code: str = "invalid_token") -> Attack:
    challenge = f'Bearer realm="{product.SLUG}"'
    if code == "invalid_token":
        challenge += ', error="invalid_token", error_description="The access token is not valid"'
    headers = (("Authorization", value),)
    answers = {"www-authenticate": challenge}
    return Attack(name, 401, "unauthorized", ME, "GET", headers=headers, codes=(code,), expected_headers=answers)


JWT = ".".join(
    base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (b'{"alg":"none"}', b'{"sub":"x"}', b"")
)
CREDENTIALS = [
    *(unauthorized(f"unsupported scheme: {value[:30]!r}", value, "unauthorized") for value in (
        "", " ", f"Basic {CANARY}", f"Digest {CANARY}", f"Token {CANARY}", CANARY, f"Bearer:{CANARY}", f"Bearer\t{CANARY}",
        f"B\u00ebarer {CANARY}", f"{CANARY} Bearer x",
    )),
    *(unauthorized(f"invalid token: {value[:40]!r}", value) for value in (
        "Bearer", "Bearer ", f"Bearer {CANARY}", f"bearer {CANARY}", f"Bearer  {CANARY}", f"Bearer {CANARY} {CANARY}",
        f"Bearer {JWT}", f"Bearer {JWT}{CANARY}", f"Bearer {'.' * 10_000}", f"Bearer {'a' * 100_000}", f"Bearer a.b.c,{CANARY}",
        "Bearer \x00", "Bearer \xff\xfe", f"Bearer lt1.{CANARY * 7}", f"Bearer rt1.{CANARY * 7}", 'Bearer "a.b.c"', "Bearer null",
    )),
    Attack(
        "two credentials", 400, "malformed-request", ME, "GET",
        headers=(("Authorization", f"Bearer {CANARY}"),), who="user", codes=("malformed_request",),
    ),
    *(
        Attack(
            f"client credentials: {value[:20]}", 401, "unauthorized", TOKEN, body=LOGIN, headers=(FORM, ("Authorization", value)),
            codes=("invalid_client",), oauth="invalid_client", expected_headers={"www-authenticate": f'Basic realm="{product.SLUG}"'},
        )
        for value in ("Basic", "Basic ===", f"Basic {CANARY}", "Basic AAAA", "Basic //8=", f"Basic {'A' * 65_000}", f"basic {CANARY}")
    ),
    Attack(
        "client credentials beside a token", 401, "unauthorized", TOKEN, body=LOGIN,
        headers=(FORM, ("Authorization", f"Bearer {CANARY}"), ("Authorization", f"Basic {CANARY}")),
        codes=("invalid_client",), oauth="invalid_client", expected_headers={"www-authenticate": f'Basic realm="{product.SLUG}"'},
    ),
    *(
        Attack(
            f"ignored at a login: {values}"[:60], 400, "invalid-grant", TOKEN, body=LOGIN,
            headers=(FORM, *(("Authorization", value) for value in values)), codes=("invalid_grant",), oauth="invalid_grant",
            writes=frozenset({"audit_events"}),
        )
        for values in (
            [f"Bearer {CANARY}"], [f"Bearer {JWT}"], ["Bearer"], [""], [f"Bearer {'a' * 60_000}"], ["Bearer \x00"], [f"Digest {CANARY}"],
            [CANARY],
            [f"Bearer {CANARY}", f"Bearer {JWT}"], [f"Basics {CANARY}"],
        )
    ),
    *(
        Attack("a token in a cookie", 401, "unauthorized", ME, "GET", headers=(("Cookie", f"{name}={JWT}"),), codes=("unauthorized",))
        for name in ("access_token", "session", "__Host-rt", "Authorization")
    ),
]  # fmt: skip


@pytest.mark.parametrize("attacks", [MEDIA_TYPES, CREDENTIALS], ids=["media types", "credentials"])
async def test_unsupported_media_types_and_credentials_are_refused(
    target: Target, recording: Recording, subtests: pytest.Subtests, attacks: list[Attack]
) -> None:
    await check_refusals(target, recording, subtests, attacks)


WITHOUT_EFFECT: list[Header] = [
    *(("Accept-Encoding", value) for value in ("*", "gzip;q=0", CANARY, "x" * 10_000)),
    *(("Accept-Language", value) for value in ("de", "x" * 10_000, "../../etc/passwd")),
    *(("Range", value) for value in ("bytes=0-1", "bytes=" + "0-," * 1000, "bytes=-1", CANARY)),
    *(
        ("X-Request-ID", value)
        for value in (
            f"{CANARY}\r\nX-Evil: 1",
            "a" * 1_000_000,
            f"\x1b[31m{CANARY}",
            "\x00" * 8,
            "",
            CANARY[:7],
            "\xff" * 10,
        )
    ),
    *(
        ("traceparent", value)
        for value in (CANARY, f"00-{'0' * 32}-{'0' * 16}-01", f"ff-{'1' * 32}-{'1' * 16}-01", "00-1-1-1", "x" * 10_000)
    ),
    *(("tracestate", value) for value in (f"{CANARY}=1", "x" * 10_000, "a=1," * 1000)),
    ("baggage", "x" * 1_000_000),
    *(
        ("Origin", value)
        for value in (
            "null",
            "https://app.example.evil",
            "http://test",
            "https://app.example.com.evil",
            CANARY,
            "x" * 10_000,
        )
    ),
    *(
        ("Cookie", value)
        for value in ("x" * 65_536, "a=1; " * 1000, "=;;=", f"__Host-rt={CANARY}; __Host-rt=x", "\xff=\xff")
    ),
    *(("X-Forwarded-Host", value) for value in ("evil.example", "test\x00", "a" * 10_000)),
    *(("X-Forwarded-Proto", value) for value in ("http", "javascript", CANARY)),
    *(("X-Forwarded-For", value) for value in ("127.0.0.1", "x" * 10_000, "1," * 10_000, "::1%eth0", "' OR 1=1--")),
    *(("Forwarded", value) for value in ("host=evil.example", "for=_x;proto=javascript", CANARY)),
    *(("User-Agent", value) for value in ("", "x" * 10_000, "\xff\xfe", f"\x1b]0;{CANARY}", "${jndi:ldap://x}")),
    ("Sec-Fetch-Site", "cross-site"),
    ("Expect", "x"),
    ("Upgrade", "h2c"),
    ("HTTP2-Settings", "AAMAAABkAAQAoAAAAAIAAAAA"),
    ("If-Modified-Since", "yesterday"),
    ("X-Original-URL", USERS),
    ("X-Rewrite-URL", USERS),
    ("Content-Encoding", "gzip"),
    ("Content-Type", CANARY),
]


async def test_other_headers_have_no_effect(target: Target, recording: Recording, subtests: pytest.Subtests) -> None:
    lines = recording()
    before = await target.rows()
    plain = await target.send(VALID_REQUEST)
    lines()

    for header in WITHOUT_EFFECT:
        with subtests.test(f"{header[0]}: {header[1][:30]!r}"):
            reply = await target.send(replace(VALID_REQUEST, headers=(header,)))

            assert (reply.status, reply.body) == (200, plain.body)
            assert _without_id(reply) == _without_id(plain)
            assert re.fullmatch(r"[A-Za-z0-9_-]{8,64}", reply.header("x-request-id") or "")
            # The log may also contain one warning about a header of an untrusted proxy.
            (line,) = [line for line in lines() if line["event"] == "request"]
            assert line["status"] == 200
            assert CANARY not in f"{reply.headers}{line}"
    assert await target.rows() == before


def _without_id(reply: Reply) -> list[tuple[str, str]]:
    return [header for header in reply.headers if header[0] != "x-request-id"]


PRECONDITIONS = [
    *(
        Attack(
            f"If-Match: {value[:40]}", 412, "precondition-failed", ME, "PATCH", json.dumps({"full_name": CANARY}).encode(),
            (JSON, ("If-Match", value)), "user",
        )
        for value in ('"', '""', '"x', "x", "W/", ",,,", '"1' + "0" * 30 + '"', '"-1"', '"\u00b2"', f'"{CANARY}"', "1", 'W/"1"',
            ", ".join([f'"{CANARY}"'] * 1000))
    ),
    *(
        Attack(
            f"{name}: {value[:20]}", 422, "validation-error", ME, method, b'{"full_name": "x"}', (JSON, (name, value)), "user",
        )
        for name, method in (("If-Match", "PATCH"), ("If-None-Match", "GET"))
        for value in ('"\x00"', '"\x7f"', '"\x85"')
    ),
]  # fmt: skip


async def test_a_precondition_with_an_unknown_version_fails(
    target: Target, recording: Recording, subtests: pytest.Subtests
) -> None:
    await check_refusals(target, recording, subtests, PRECONDITIONS)


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"']
)
async def test_json_with_its_media_type_is_accepted(target: Target, kind: str) -> None:
    body = json.dumps({"email": "nobody@example.com"}).encode()

    reply = await target.send(Attack("good", 202, "", FORGOT, body=body, headers=(("Content-Type", kind),)))

    assert reply.status == 202
