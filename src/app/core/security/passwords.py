"""Rules for new passwords: long enough, not common, not made of account details. No composition rules (NIST SP 800-63B)."""

import re
import unicodedata
from collections.abc import Collection, Iterator
from functools import cache

from app.core import product
from app.core.errors import FieldError, InvalidInputError

MAX_LENGTH = 256
_MAX_NORMALIZED = 1024
# Minimum number of letters: of a word of the account that counts, and of what is left of a password without those words.
_MIN_LETTERS = 4
# Rows of adjacent keys and the alphabet, each twice, because users start a row again at its end.
_ROWS = tuple(
    row * 2 for row in ("1234567890", "0123456789", "abcdefghijklmnopqrstuvwxyz", "qwertyuiopasdfghjklzxcvbnm")
)


def refuse_weak(password: str, *, min_length: int, about: Collection[str] = (), pointer: str = "#/password") -> None:
    """Raise an `InvalidInputError` if the password is too short or long (in code points), common, or made of the words in `about`."""
    # The normalized form is checked: an accent that a keyboard sends as a separate character must not make a password longer.
    for code, detail in _weaknesses(composed(password), min_length, about):
        raise InvalidInputError(FieldError(pointer, code, detail))


def composed(password: str) -> str:
    """Return the form of the password that is hashed (NFC): keyboards encode accents differently (NIST SP 800-63B, 3.1.1.2).

    A password that is far too long is returned unchanged. The time to normalize grows with the square of the length, under the GIL.
    """
    return unicodedata.normalize("NFC", password) if len(password) <= _MAX_NORMALIZED else password


def _weaknesses(password: str, min_length: int, about: Collection[str]) -> Iterator[tuple[str, str]]:
    if len(password) < min_length:
        yield (
            "password_too_short",
            f"This must have at least {min_length} characters. A few words make a good password.",
        )
    if len(password) > MAX_LENGTH:
        yield "password_too_long", f"This may have at most {MAX_LENGTH} characters."
    if _is_common(password.lower()) or _is_repetitive(password):
        yield "password_too_common", "This password is common, so attackers try it early. Choose another one."
    if _is_about(password.lower(), about):
        yield (
            "password_contextual",
            "This password is made of your address, your name or the name of this service. Choose another one.",
        )


def _is_common(password: str) -> bool:
    """Return whether the password is common, or two common ones joined. Users join two to reach the minimum length."""
    common = _common_passwords()
    return password in common or any(
        password[:cut] in common and password[cut:] in common for cut in range(1, len(password))
    )


def _is_repetitive(password: str) -> bool:
    """Return whether the whole password is part of a row of keys, or a short piece repeated."""
    if any(password.lower() in row or password.lower() in row[::-1] for row in _ROWS):
        return True
    return re.fullmatch(r"(.{1,4}?)\1+.{0,3}", password, re.DOTALL) is not None


def _is_about(password: str, about: Collection[str]) -> bool:
    texts = {text.lower() for text in (*about, product.NAME, product.SLUG)}
    words = {word for text in texts for word in re.split(r"[^\w]+", text) if len(word) >= _MIN_LETTERS} | texts
    rest = password
    for word in sorted(words, key=len, reverse=True):
        rest = rest.replace(word, "")
    # A password that contains such words needs at least four other letters.
    return rest != password and len(re.sub(r"[\W\d_]+", "", rest)) < _MIN_LETTERS


@cache
def _common_passwords() -> frozenset[str]:
    # Loading the list takes about 0.1 s. Only a process that sets a password needs it.
    from zxcvbn.frequency_lists import FREQUENCY_LISTS

    return frozenset(FREQUENCY_LISTS["passwords"])
