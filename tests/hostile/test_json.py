"""Bodies that are not JSON, and JSON that an operation does not accept."""

import json
from typing import Any

import pytest

from tests.core.recording import Recording
from tests.hostile.attack import CANARY, FORGOT, INVISIBLE, ME, PASSWORD, RESET, USERS, Attack, Target, check_refusals

EMAIL = f"{CANARY}@example.com"
# A body of the operation that most attacks are sent to. Anybody may call it.
GOOD = {"token": CANARY, "new_password": PASSWORD}
TEXT = json.dumps(GOOD)


def reset(name: str, status: int, problem: str, body: str | bytes, *codes: str) -> Attack:
    raw = body.encode() if isinstance(body, str) else body
    return Attack(name, status, problem, RESET, body=raw, codes=codes or None)


def malformed(name: str, body: str | bytes, code: str = "malformed_request") -> Attack:
    return reset(name, 400, "malformed-request", body, code)


def invalid(name: str, body: Any, *codes: str) -> Attack:
    return reset(name, 422, "validation-error", json.dumps(body), *codes)


def instead(member: str, value: str) -> str:
    """Return the valid body with the value of one member replaced by raw JSON."""
    others = {name: given for name, given in GOOD.items() if name != member}
    return f'{{"{member}": {value}, {json.dumps(others)[1:]}'


def of_text(member: str, value: str, *codes: str) -> Attack:
    """Send a raw text as a member of an operation that has such a member and no other, or as one of `GOOD`."""
    name = f"{member} {value[:70]}"
    if member in GOOD:
        return reset(name, 422, "validation-error", instead(member, f'"{value}"'), *codes)
    target, method, who = (FORGOT, "POST", "nobody") if member == "email" else (ME, "PATCH", "user")
    raw = f'{{"{member}": "{value}"}}'.encode()
    return Attack(name, 422, "validation-error", target, method, raw, who=who, codes=codes or None)


def of_name(text: str, code: str) -> Attack:
    return of_text("full_name", json.dumps(text)[1:-1], code)


MALFORMED = [
    malformed("empty", ""),
    malformed("blank", " \n\t"),
    malformed("truncated object", "{"),
    malformed("truncated member", TEXT[:-1]),
    malformed("truncated string", TEXT[:-3]),
    malformed("trailing garbage", f"{TEXT} x"),
    malformed("two documents", TEXT + TEXT),
    malformed("two documents on lines", f"{TEXT}\n{TEXT}"),
    malformed("a comment", f"/* {CANARY} */ {TEXT}"),
    malformed("a line comment", f"{TEXT} // {CANARY}"),
    malformed("a trailing comma", TEXT[:-1] + ",}"),
    malformed("single quotes", TEXT.replace('"', "'")),
    malformed("unquoted keys", f'{{token: "{CANARY}"}}'),
    malformed("a form as JSON", f"token={CANARY}&new_password={CANARY}"),
    malformed("XML as JSON", f"<token>{CANARY}</token>"),
    malformed("a function call", f"callback({TEXT})"),
    malformed("a prefix against hijacking", f")]}}',\n{TEXT}"),
    *(
        malformed(f"{value} as {member}", instead(member, value))
        for member in GOOD
        for value in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999")
    ),
    *(
        malformed(f"the number {value}", instead("token", value))
        for value in ("01", "+1", "0x10", "1_000", ".5", "1.", "1e", "--1", "1,5", "1 000", "\u0661")
    ),
    malformed("a number of 5000 digits", instead("token", "9" * 5000)),
    *(malformed(f"the word {word}", instead("token", word)) for word in ("undefined", "True", "None", "nil", "NULL")),
    malformed("a member twice", f'{{"token": "{CANARY}", {TEXT[1:]}', "duplicate_member"),
    malformed("a member twice, once escaped", f'{{"\\u0074oken": "{CANARY}", {TEXT[1:]}', "duplicate_member"),
    malformed("an unknown member twice", f'{{"x": 1, "x": 2, {TEXT[1:]}', "duplicate_member"),
    malformed("a member twice further down", instead("token", '{"x": {"y": 1, "y": 2}}'), "duplicate_member"),
    malformed("100,000 arrays", "[" * 100_000, "too_deep"),
    malformed("100,000 arrays, closed", "[" * 100_000 + "]" * 100_000, "too_deep"),
    malformed("20,000 objects", '{"token":' * 20_000, "too_deep"),
    malformed("1,000 objects, closed", '{"token":' * 1000 + "1" + "}" * 1000, "too_deep"),
    malformed("33 levels in a member", instead("token", "[" * 33 + "]" * 33), "too_deep"),
    malformed("a byte order mark", b"\xef\xbb\xbf" + TEXT.encode()),
    malformed("UTF-16", TEXT.encode("utf-16")),
    malformed("UTF-16 without a mark", TEXT.encode("utf-16-le")),
    malformed("UTF-32", TEXT.encode("utf-32")),
    malformed("UTF-7", TEXT.replace("{", "+AHs-")),
    *(
        malformed(f"the bytes {raw.hex()} in {member}", instead(member, f'"{CANARY}#"').encode().replace(b"#", raw))
        for member in GOOD
        for raw in (b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\x80", b"\xe2\x82", b"\xf4\x90\x80\x80", b"\x80")
    ),
    *(
        malformed(f"a bare control {ord(raw):02x} in {member}", instead(member, f'"{CANARY}{raw}"'))
        for member in GOOD
        for raw in ("\x00", "\t", "\n", "\x1f")
    ),
    *(
        malformed(f"the escape {escape} in a text", instead("new_password", f'"{CANARY}{escape}"'))
        for escape in (r"\x41", r"\u12", r"\u", r"\uZZZZ", r"\'", r"\0", "\\")
    ),
]

NOT_OBJECTS: list[Any] = [None, True, False, 1, 1.5, CANARY, "", [], [GOOD], [[]], [CANARY] * 100]
NOT_AN_OBJECT = [
    invalid(f"the document {json.dumps(body)[:20]}", body, "model_attributes_type") for body in NOT_OBJECTS
]

MEMBERS = [
    *(
        invalid(f"without {name}", {other: value for other, value in GOOD.items() if other != name}, "missing")
        for name in GOOD
    ),
    invalid("without any", {}, "missing", "missing"),
    invalid("an unknown member", GOOD | {"foo": 1}, "extra_forbidden"),
    invalid("an unknown member without a name", GOOD | {"": CANARY}, "extra_forbidden"),
    invalid("a member in other case", GOOD | {"Token": CANARY}, "extra_forbidden"),
    invalid("a member of JavaScript", GOOD | {"__proto__": {"is_admin": True}}, "extra_forbidden"),
    invalid("a member of Python", GOOD | {"__class__": CANARY}, "extra_forbidden"),
    invalid("a long name", GOOD | {"n" * 10_000: 1}, "extra_forbidden"),
    invalid("2,000 members", GOOD | {f"k{number}": 0 for number in range(2000)}, *["extra_forbidden"] * 20),
    invalid("50,000 members", GOOD | {f"k{number}": 0 for number in range(50_000)}, "too_many_values"),
    invalid("50,000 elements", GOOD | {"token": [""] * 50_000}, "too_many_values"),
    *(
        invalid(f"the privilege {name}", GOOD | {name: value}, "extra_forbidden")
        for name, value in {
            "is_superuser": True,
            "is_admin": True,
            "is_active": True,
            "role": "admin",
            "roles": ["admin"],
            "scope": "users:write",
            "email_verified": True,
            "email_verified_at": "2026-01-01T00:00:00Z",
            "id": "0192f0c1-a2b3-7c4d-8e5f-60718293a4b5",
            "created_at": "2026-01-01T00:00:00Z",
            "authz_version": 0,
            "version": 1,
            "disabled_at": None,
            "hashed_password": CANARY,
            "email_key": EMAIL,
        }.items()
    ),
    *(
        invalid(f"{member} as {json.dumps(value)[:20]}", GOOD | {member: value}, "string_type")
        for member in GOOD
        for value in (None, 1, 0, -1, 1.0, True, False, [], [EMAIL], {}, {"$ne": None}, 12345678901234567, 10**400)
    ),
]


# Characters that no person types, as JSON escapes.
UNPRINTABLE = [
    *(r"\u0000", r"\u0001", r"\u0008", r"\u0009", r"\u000a", r"\u000d", r"\u001b", r"\u007f", r"\u0085", r"\u009f"),
    *(r"\ufffe", r"\uffff", r"\ufdd0", r"\ue000", r"\ud83f\udfff", r"\udbff\udfff", r"\ufffd"),
]
MEMBERS_WITH_TEXT = ("token", "new_password", "email", "full_name")
TEXTS = [
    *(
        # Passwords report this with another code.
        of_text(member, f"{CANARY}{text}", "unprintable" if member == "new_password" else "string_unicode")
        for member in MEMBERS_WITH_TEXT
        for text in (r"\ud800", r"\udfff", r"\udc00\ud800", r"\ud83e x")
    ),
    *(
        of_text(member, f"{CANARY}{escape}@example.com")
        for member in ("full_name", "new_password", "email")
        for escape in UNPRINTABLE
    ),
    *(of_name(f"Ada{one} Lovelace", "unprintable") for one in INVISIBLE),
    *(
        of_name(text, code)
        for text, code in (
            ("Ad\u200da", "unprintable"),  # A joiner between Latin letters.
            ("Ad\u200ca", "unprintable"),
            ("\u200d", "unprintable"),
            ("\U0001f469\u200d", "unprintable"),  # A joiner at the end.
            ("\u0639\u200c \u0639", "unprintable"),
            ("\u0639\u200c\u200c\u0639", "unprintable"),
            ("A\ufe0fda", "unprintable"),  # A variation selector after a letter.
            ("\U0001f3f4\U000e0041", "unprintable"),  # A tag after a flag.
            ("\U0001f3f4\U000e0068\U000e0069\U000e007f", "unprintable"),
            ("A" + "\u0301" * 5, "too_many_marks"),
            ("A" + "\u0316\u0301" * 60, "too_many_marks"),
            ("\u2800 \u2800", "blank"),  # Braille without dots.
            ("", "string_too_short"),
            (" ", "blank"),
            ("\u3000\u2003\u00a0", "blank"),
            ("x" * 129, "string_too_long"),
            ("🦊" * 129, "string_too_long"),
            ("x" * 10_000, "string_too_long"),
        )
    ),
    reset("a lone surrogate as a name", 422, "validation-error", r'{"\ud800": 1, ' + TEXT[1:], "string_unicode"),
]

# If a refusal quoted the whole body, it would reveal the secret next to the error.
SECRETS = [
    Attack(
        "no token, but a password", 422, "validation-error", RESET, body=json.dumps({"new_password": PASSWORD}).encode()
    ),
    Attack(
        "no new password, but a token",
        422,
        "validation-error",
        RESET,
        body=json.dumps({"token": f"lt1.{CANARY}"}).encode(),
        codes=("missing",),
    ),
    Attack(
        "a password where none is expected",
        422,
        "validation-error",
        USERS,
        body=json.dumps({"email": EMAIL, "password": PASSWORD}).encode(),
        who="admin",
        codes=("extra_forbidden",),
    ),
    Attack(
        "a token of the wrong type",
        422,
        "validation-error",
        RESET,
        body=json.dumps({"token": [CANARY], "new_password": {CANARY: CANARY}}).encode(),
    ),
]

LARGE = [
    Attack(
        name,
        413,
        "payload-too-large",
        RESET,
        body=body.encode(),
        headers=(("Content-Type", "application/json"), *([("Content-Length", str(len(body)))] if announced else [])),
        expected_headers={"connection": "close"},
    )
    for name, body in (
        ("a byte more than a megabyte", TEXT.ljust(1_048_577)),
        ("a password of 10 MB", json.dumps(GOOD | {"new_password": "x" * 10_000_000})),
        ("100,000 long members", json.dumps({f"member{number}": number for number in range(100_000)})),
    )
    for announced in (True, False)
]


@pytest.mark.parametrize(
    "attacks", [MALFORMED, NOT_AN_OBJECT, MEMBERS, TEXTS, SECRETS, LARGE],
    ids=["malformed", "not an object", "members", "texts", "secrets", "large"],
)  # fmt: skip
async def test_an_invalid_body_is_refused_and_changes_nothing(
    target: Target, recording: Recording, subtests: pytest.Subtests, attacks: list[Attack]
) -> None:
    await check_refusals(target, recording, subtests, attacks)
