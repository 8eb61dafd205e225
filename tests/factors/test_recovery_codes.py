"""The form of recovery codes, and the ways in which people type them."""

import re
from hashlib import sha256

import pytest

from app.factors import recovery_codes

CODE = "0123-4567-89AB-CDEF-GHJK-1110"
DIGEST = sha256(b"0123456789ABCDEFGHJK1110").digest()


def test_there_are_ten_different_codes_of_120_bits() -> None:
    codes = recovery_codes.new_codes()

    assert len(set(codes)) == 10
    # 24 letters of an alphabet of 32.
    assert all(re.fullmatch(r"([0-9A-HJKMNP-TV-Z]{4}-){5}[0-9A-HJKMNP-TV-Z]{4}", code) for code in codes)


def test_every_letter_of_the_alphabet_is_used() -> None:
    letters = {letter for _ in range(50) for code in recovery_codes.new_codes() for letter in code}

    assert len(letters - {"-"}) == 32


@pytest.mark.parametrize(
    "typed",
    [
        CODE,
        CODE.lower(),
        CODE.replace("-", ""),
        CODE.replace("-", " "),
        "O123-4567-89AB-CDEF-GHJK-IL1o",
        "o123-4567-89ab-cdef-ghjk-il1O",
    ],
)
def test_a_code_is_read_as_people_type_it(typed: str) -> None:
    assert recovery_codes.digest(typed) == DIGEST


@pytest.mark.parametrize(
    "typed", ["", CODE[:-1], CODE + "0", CODE.replace("A", "U"), CODE.replace("A", "é"), "0" * 10_000]
)
def test_a_text_that_cannot_be_a_code_has_no_digest(typed: str) -> None:
    assert recovery_codes.digest(typed) is None
