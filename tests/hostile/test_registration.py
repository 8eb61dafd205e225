"""Invalid values in requests for registration and verification, and passwords that are expensive to check."""

import pytest

from app.core import product
from tests.core.recording import Recording
from tests.hostile.attack import API, BOUND, CANARY, PASSWORD, Attack, Target, check_refusals
from tests.hostile.test_accounts import BAD_ADDRESSES, BAD_LINKS, BAD_SECRETS, INVALID_ADDRESSES, of_body
from tests.hostile.test_costs import EMAIL, Costly, cost, member

REGISTER = f"{API}/auth/register"
VERIFY = f"{API}/auth/verify-email"
RESEND = f"{API}/auth/verify-email/resend"

ADDRESSES = [
    *(of_body(f"register {each}", REGISTER, {"email": each, "password": PASSWORD}) for each in INVALID_ADDRESSES),
    *(of_body(f"resend {each!a}", RESEND, {"email": each}) for each in BAD_ADDRESSES),
]
MEMBERS = [
    *(of_body(f"password {each!a}", REGISTER, {"email": EMAIL, "password": each}) for each in BAD_SECRETS),
    *(of_body(f"token {each!a}", VERIFY, {"token": each}) for each in BAD_SECRETS),
    of_body("no address, but a password", REGISTER, {"password": PASSWORD}, "missing"),
    *(
        of_body(
            f"the privilege {name}", REGISTER, {"email": EMAIL, "password": PASSWORD, name: value}, "extra_forbidden"
        )
        for name, value in {
            "role": "admin",
            "is_active": True,
            "email_verified_at": None,
            "scope": "users:write",
        }.items()
    ),
]
LINKS = [
    of_body(f"verify {name}", VERIFY, {"token": secret}, "invalid_token", status=400, problem="invalid-token")
    for name, secret in BAD_LINKS
]


def refused(password: str, code: str, **more: str) -> Attack:
    email = f"lovelace.{CANARY}@example.com"
    return of_body(f"password {password}", REGISTER, {"email": email, "password": password, **more}, code)


PASSWORDS = [
    refused(f"{CANARY} x x"[:14], "password_too_short"),
    refused("e\u0308" * 7 + "z", "password_too_short"),
    refused("q7 " * 85 + "zz", "password_too_long"),
    refused(f"{CANARY} " * 80, "password_too_long"),
    refused("x" * 1025, "too_long"),
    refused("", "too_short"),
    refused(" " * 15, "password_too_common"),
    refused("aaaaaaaaaaaaaaaa", "password_too_common"),
    refused("123456789012345", "password_too_common"),
    refused("abababababababab", "password_too_common"),
    refused(f"lovelace.{CANARY}@example.com", "password_contextual"),
    refused(f"Ada Lovelace {CANARY}", "password_contextual", full_name="Ada Lovelace"),
    refused(f"{product.SLUG} {product.SLUG} 1815 1852", "password_contextual"),
    refused(f"{CANARY} with\ttab in it", "unprintable"),
]


@pytest.mark.parametrize(
    "attacks", [ADDRESSES, MEMBERS, LINKS, PASSWORDS], ids=["addresses", "members", "links", "passwords"]
)
async def test_invalid_values_are_refused(
    target: Target, recording: Recording, subtests: pytest.Subtests, attacks: list[Attack]
) -> None:
    await check_refusals(target, recording, subtests, attacks)


def costly(name: str, password: str, full_name: str = "Ada") -> Costly:
    return member("password", name, REGISTER, email=EMAIL, password=password, full_name=full_name)


COSTLY = [
    costly("a row of one letter", "a" * 1023 + "\u00fc"),
    costly("a repeated piece", "abcd" * 255 + "xyzw"),
    costly("marks to put in order", "a" + "\u0316\u0301" * 511),
    costly("two letters in turns", "ab" * 511 + "cc"),
    costly("the name all over", "abcd" * 256, full_name="abcd " * 25),
    costly("many words", "x" * 1024, full_name="ab-c d" * 20),
    costly("spaces", " " * 1024),
]


async def test_no_password_blocks_the_event_loop(target: Target, subtests: pytest.Subtests) -> None:
    for each in COSTLY:
        with subtests.test(each.name):
            status, seconds = await cost(target, each)

            assert status < 500
            assert seconds < BOUND, f"{seconds * 1000:.1f} ms"
