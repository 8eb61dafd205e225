from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core import product
from app.core.errors import FieldError, InvalidInputError
from app.core.security.passwords import MAX_LENGTH, refuse_weak

PASSPHRASE = "correct horse battery staple"


def error_code(password: str, *, min_length: int = 15, about: Collection[str] = ()) -> str | None:
    """Return the error code for a password, or None if it is accepted."""
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
def test_a_good_passphrase_is_accepted(password: str) -> None:
    assert error_code(password, about=["ada@example.com", "Ada Lovelace"]) is None


@pytest.mark.parametrize("letter", ["x", "ü", "🦊"])
def test_length_is_counted_in_code_points(letter: str) -> None:
    assert error_code("qwzv mkpt ghrs" + letter) is None
    assert error_code("qwzv mkpt ghr" + letter) == "password_too_short"


def test_the_longest_password_has_256_code_points() -> None:
    longest = ("🦊" + PASSPHRASE * 10)[:MAX_LENGTH]

    assert error_code(longest) is None
    assert error_code(longest + "x") == "password_too_long"


@pytest.mark.parametrize("password", ["password", "PassWord", "qwertyuiop", "123456789"])
def test_a_common_password_is_rejected_in_any_case(password: str) -> None:
    assert error_code(password, min_length=8) == "password_too_common"


@pytest.mark.parametrize("password", ["sunshineprincess", "Passwordiloveyou", "superman123456789", "letmeinstarwars1"])
def test_two_common_passwords_joined_are_rejected(password: str) -> None:
    assert error_code(password) == "password_too_common"


@pytest.mark.parametrize("password", ["sunshine princess", "sunshinevprincess", "qsunshineprincess"])
def test_two_common_passwords_and_another_character_are_accepted(password: str) -> None:
    assert error_code(password) is None


@pytest.mark.parametrize(
    "password", ["123456789012345", "987654321098765", "abcdefghijklmno", "ZYXWVUTSRQPONML", "qwertyuiopasdfghj"]
)
def test_a_row_of_keys_is_rejected_at_any_length(password: str) -> None:
    assert error_code(password) == "password_too_common"


def test_length_is_counted_in_composed_characters() -> None:
    assert error_code("qwzv mkpt ghrsu\u0308") is None
    assert error_code("qwzv mkpt ghru\u0308") == "password_too_short"


@pytest.mark.parametrize("password", ["a" * 15, " " * 15, "🦊" * 15, "ab" * 9, "abcabcabcabcabcab", "1234" * 4 + "123"])
def test_a_repeated_piece_is_rejected_at_any_length(password: str) -> None:
    assert error_code(password) == "password_too_common"


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
def test_a_password_made_of_account_details_is_rejected(password: str) -> None:
    assert error_code(password, about=["ada.lovelace@example.com", "Ada Lovelace"]) == "password_contextual"


@pytest.mark.parametrize("password", ["lovelace wrote the first program", "my example battery staple"])
def test_a_passphrase_that_only_mentions_account_details_is_accepted(password: str) -> None:
    assert error_code(password, about=["ada.lovelace@example.com", "Ada Lovelace"]) is None


def test_an_empty_name_rejects_no_password() -> None:
    assert error_code(PASSPHRASE, about=["", "a@b.co"]) is None


def test_the_error_names_the_field_and_does_not_contain_the_password() -> None:
    with pytest.raises(InvalidInputError) as caught:
        refuse_weak("CANARY", min_length=15, pointer="#/new_password")

    assert caught.value.errors == (
        FieldError(
            "#/new_password",
            "password_too_short",
            "This must have at least 15 characters. A few words make a good password.",
        ),
    )


@given(st.text(max_size=300), st.lists(st.text(max_size=30), max_size=3))
def test_any_text_is_either_accepted_or_rejected(password: str, about: list[str]) -> None:
    assert error_code(password, about=about) in {
        None,
        "password_too_short",
        "password_too_long",
        "password_too_common",
        "password_contextual",
    }
