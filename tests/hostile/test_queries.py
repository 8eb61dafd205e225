"""Query parameters: filters, sort orders, pages and cursors."""

import base64
import json
from urllib.parse import quote

import pytest

from tests.core.recording import Recording
from tests.hostile.attack import CANARY, ME, USERS, Attack, Target, check_refusals

SESSIONS = f"{ME}/sessions"
LISTS = (USERS, SESSIONS)


def refused(query: str, pointer: str, target: str = USERS) -> Attack:
    return Attack(
        f"{target.rpartition('/')[2]} {pointer} {query[:40]}", 422, "validation-error", f"{target}?{query}", "GET",
        headers=(), who="admin",
    )  # fmt: skip


NUMBERS = (
    "-1", "0", "101", "abc", "1.5", "", "%D9%A1%D9%A0", "%2010", "10%20", "%2B10", "+10", "1e2", "0x10", "1_0", "10%00", "1%0a",
    "NaN", "null", str(2**31), str(2**63), str(2**64), "1" + "0" * 300, "9" * 5000, CANARY,
)  # fmt: skip
LIMITS = [
    *(refused(f"limit={text}", "limit", path) for path in LISTS for text in NUMBERS),
    *(
        refused(f"{name}={text}", name)
        for name in ("offset", "skip", "page", "per_page")
        for text in ("-1", "0", str(2**63))
    ),
]
REPEATED = [
    *(refused(f"{name}={value}&{name}={value}", name) for name, value in (
        ("limit", "5"), ("cursor", "x"), ("sort", "email"), ("email", "a%40example.com"), ("q", "a"), ("role", "user"),
        ("is_active", "true"), ("created_after", "2026-01-01T00:00:00Z"),
    )),
    refused("limit=5&limit=6", "limit"),
    refused("limit=5&%6cimit=6", "limit"),
    refused(f"email={CANARY}%40x.co&email=b%40x.co", "email"),
]  # fmt: skip
UNKNOWN_QUERIES = (
    "foo=1", f"foo={CANARY}", "LIMIT=1", "limit%5B%5D=1", "limit%00=1", "=", "x", "%00=1", "%FF=1", "order=ASC--",
)  # fmt: skip
UNKNOWN = [
    *(
        refused(query, "unknown", path)
        for path in LISTS
        for query in UNKNOWN_QUERIES
    ),
    *(refused(f"{name}=1", "unknown") for name in ("hashed_password", "name_key", "id", "__proto__", "$where", "fields", "include")),
    refused("&".join(f"p{number}={CANARY}" for number in range(10_000)), "10,000"),
    refused(f"foo={'x' * 65_000}", "64 KB"),
    refused("limit=5;limit=6", "semicolons"),
]  # fmt: skip
FILTERS = [
    *(refused(f"sort={text}", "sort") for text in (
        "password_hash", "hashed_password", "id", "id;drop", "-", "", "--email", "EMAIL", "email%20desc", "email%00", "name_key",
        "email,created_at", "email," * 100, CANARY,
    )),
    *(refused(f"email={text}", "email") for text in (
        "", "a", "a%40b", "a%00%40x.co", "%ED%A0%80%40x.co", "a" * 300 + "%40x.co", "%25", "a%40x.co%0aBcc:e%40evil.co", f"{CANARY}%40",
    )),
    *(refused(f"q={text}", "q") for text in ("", "%20", "%00", f"{CANARY}%0A", "x" * 129, "%EF%BF%BE", "%F0%9F%BF%BF", "%FF", "%ED%A0%80")),
    *(refused(f"role={text}", "role") for text in ("", "root", "ADMIN", "admin%20", "1", "null", CANARY)),
    *(refused(f"is_active={text}", "is_active") for text in ("", "1", "0", "yes", "True", "on", "null", "%20true", CANARY)),
    *(refused(f"{name}={text}", name) for name in ("created_after", "created_before") for text in (
        "", "2026-01-01", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z", "2026-02-30T00:00:00Z", "1767225600", "now", "infinity",
        "2026-01-01T24:00:00Z", "10000-01-01T00:00:00Z", "0001-01-01T00:00:00%2B14:00", "9999-12-31T23:59:59-14:00", CANARY,
    )),
]  # fmt: skip

CURSORS = [
    "", "x", "xx", "====", "a%20b", "%C3%A9", "%00", "%FF", "null", "0", "A" * 1024, "A" * 1025, "A" * 10_000, CANARY,
    *(
        quote(base64.urlsafe_b64encode(raw).rstrip(b"=").decode())
        for raw in (
            b"null", b"[]", b"{}", b"[" * 500, b"\x80\x04\x95", json.dumps([CANARY]).encode(), b"\x01" + b"\x00" * 16 + b'["a","b"]',
            b"\x02" + b"\x00" * 16, b"\x01", b"\x01" + b"\x00" * 16 + b"[" * 500, b"' OR 1=1--",
        )
    ),
]  # fmt: skip


def bad_cursor(address: str) -> Attack:
    codes = ("invalid_cursor",)
    return Attack(address[:70], 400, "invalid-cursor", address, "GET", headers=(), who="admin", codes=codes)


BAD_CURSORS = [bad_cursor(f"{path}?cursor={cursor}") for path in LISTS for cursor in CURSORS]
SECRETS = [
    Attack(
        f"{name} in the address of {path}", 400, "malformed-request", f"{path}?{name}={CANARY}", "GET",
        headers=(), who="admin", codes=("secret_in_url",),
    )
    for path in (USERS, ME, "/livez", "/nothing", "/docs")
    for name in ("access_token", "password", "token", "%74oken")
]  # fmt: skip


@pytest.mark.parametrize(
    "attacks", [LIMITS, REPEATED, UNKNOWN, FILTERS, BAD_CURSORS, SECRETS],
    ids=["limits", "repeated", "unknown", "filters", "cursors", "secrets"],
)  # fmt: skip
async def test_invalid_query_parameters_are_refused(
    target: Target, recording: Recording, subtests: pytest.Subtests, attacks: list[Attack]
) -> None:
    await check_refusals(target, recording, subtests, attacks)


async def test_a_cursor_is_refused_by_another_list_and_with_other_filters(
    target: Target, recording: Recording, subtests: pytest.Subtests
) -> None:
    recording()
    page = await target.send(Attack("page", 200, "", f"{USERS}?limit=1", "GET", headers=(), who="admin"))
    cursor = quote(page.document["next_cursor"])
    flipped = cursor[:8] + ("A" if cursor[8] != "A" else "B") + cursor[9:]
    addresses = [
        f"{USERS}?cursor={flipped}",
        f"{USERS}?cursor={cursor}&sort=email",
        f"{USERS}?cursor={cursor}&role=user",
        f"{USERS}?cursor={cursor}A",
        f"{SESSIONS}?cursor={cursor}",
    ]

    await check_refusals(target, recording, subtests, [bad_cursor(address) for address in addresses])
