from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core import product
from app.core.errors import FieldError, InvalidInputError
from app.core.security.passwords import MAX_LENGTH, refuse_weak

PASSPHRASE = "correct horse battery staple"


def refused(password: str, *, min_length: int = 15, about: Collection[str] = ()) -> str | None:
    """Give the code a password is refused with, or None."""
    try:
        refuse_weak(password, min_length=min_length, about=about)
    except InvalidInputError as error:
        (one,) = error.errors
        return one.code
    return None


@pytest.mark.parametrize(
    "password",
    [
        PASSPHRASE,
        "Tr0ub4dor&3 and more",
        "ein langer Satz über Vögel",
        "съешь ещё этих булок",
        " leading and trailing ",
        "👩‍👩‍👧 family 🦊 fox 🐳",
    ],
)
def test_a_good_passphrase_passes(password: str) -> None:
    assert refused(password, about=["ada@example.com", "Ada Lovelace"]) is None


@pytest.mark.parametrize("letter", ["x", "ü", "🦊"])
def test_length_is_counted_in_code_points(letter: str) -> None:
    assert refused("qwzv mkpt ghrs" + letter) is None
    assert refused("qwzv mkpt ghr" + letter) == "password_too_short"


def test_the_longest_password_has_256_code_points() -> None:
    longest = ("🦊" + PASSPHRASE * 10)[:MAX_LENGTH]

    assert refused(longest) is None
    assert refused(longest + "x") == "password_too_long"


@pytest.mark.parametrize("password", ["password", "PassWord", "qwertyuiop", "123456789"])
def test_a_common_password_is_refused_in_any_case(password: str) -> None:
    assert refused(password, min_length=8) == "password_too_common"


@pytest.mark.parametrize("password", ["sunshineprincess", "Passwordiloveyou", "superman123456789", "letmeinstarwars1"])
def test_two_common_passwords_joined_are_refused(password: str) -> None:
    assert refused(password) == "password_too_common"


@pytest.mark.parametrize("password", ["sunshine princess", "sunshinevprincess", "qsunshineprincess"])
def test_what_is_more_than_two_common_passwords_is_accepted(password: str) -> None:
    assert refused(password) is None


@pytest.mark.parametrize(
    "password", ["123456789012345", "987654321098765", "abcdefghijklmno", "ZYXWVUTSRQPONML", "qwertyuiopasdfghj"]
)
def test_a_row_of_keys_is_refused_however_long(password: str) -> None:
    assert refused(password) == "password_too_common"


def test_length_is_counted_in_composed_characters() -> None:
    assert refused("qwzv mkpt ghrsu\u0308") is None
    assert refused("qwzv mkpt ghru\u0308") == "password_too_short"


@pytest.mark.parametrize("password", ["a" * 15, " " * 15, "🦊" * 15, "ab" * 9, "abcabcabcabcabcab", "1234" * 4 + "123"])
def test_a_repeated_piece_is_refused_however_long(password: str) -> None:
    assert refused(password) == "password_too_common"


@pytest.mark.parametrize(
    "password",
    [
        "ada.lovelace@example.com",
        "ADA.LOVELACE@EXAMPLE.COM",
        "Lovelace-Lovelace-1815",
        f"{product.SLUG} {product.SLUG} 1815 1852",
        "example lovelace 99",
        "lovelace!!!!lovelace",
    ],
)
def test_a_password_made_of_the_account_is_refused(password: str) -> None:
    assert refused(password, about=["ada.lovelace@example.com", "Ada Lovelace"]) == "password_contextual"


@pytest.mark.parametrize("password", ["lovelace wrote the first program", "my example battery staple"])
def test_a_passphrase_that_only_mentions_the_account_passes(password: str) -> None:
    assert refused(password, about=["ada.lovelace@example.com", "Ada Lovelace"]) is None


def test_an_empty_name_refuses_nothing() -> None:
    assert refused(PASSPHRASE, about=["", "a@b.co"]) is None


def test_the_refusal_says_where_and_what_and_not_the_password() -> None:
    with pytest.raises(InvalidInputError) as caught:
        refuse_weak("CANARY", min_length=15, pointer="#/new_password")

    assert caught.value.errors == (
        FieldError(
            "#/new_password",
            "password_too_short",
            "This must have at least 15 characters; a few words make a good one.",
        ),
    )


@given(st.text(max_size=300), st.lists(st.text(max_size=30), max_size=3))
def test_any_text_is_either_accepted_or_refused(password: str, about: list[str]) -> None:
    assert refused(password, about=about) in {
        None,
        "password_too_short",
        "password_too_long",
        "password_too_common",
        "password_contextual",
    }
