"""Which passwords are accepted: long enough, not common, not about the account. No rules of composition (NIST 800-63B)."""

import re
import unicodedata
from collections.abc import Collection, Iterator
from functools import cache

from app.core import product
from app.core.errors import FieldError, InvalidInputError

MAX_LENGTH = 256
_MAX_NORMALIZED = 1024
_MIN_CONTEXT = 4
# What fingers find without the head; twice, because such rows are gone through again.
_ROWS = tuple(
    row * 2 for row in ("1234567890", "0123456789", "abcdefghijklmnopqrstuvwxyz", "qwertyuiopasdfghjklzxcvbnm")
)


def refuse_weak(password: str, *, min_length: int, about: Collection[str] = (), pointer: str = "#/password") -> None:
    """Raise an `InvalidInputError` for a password that is too short or long (code points), common, or made of `about`."""
    # As it is hashed: an accent that a keyboard sends as a character of its own makes no password longer.
    for code, detail in _weaknesses(composed(password), min_length, about):
        raise InvalidInputError(FieldError(pointer, code, detail))


def composed(password: str) -> str:
    """Give the form that is hashed: keyboards spell an accent in different ways (NIST 800-63B, 3.1.1.2).

    A password too long to be accepted stays as it is: the time to normalize grows with the square of the length, and holds the GIL.
    """
    return unicodedata.normalize("NFC", password) if len(password) <= _MAX_NORMALIZED else password


def _weaknesses(password: str, min_length: int, about: Collection[str]) -> Iterator[tuple[str, str]]:
    if len(password) < min_length:
        yield "password_too_short", f"This must have at least {min_length} characters; a few words make a good one."
    if len(password) > MAX_LENGTH:
        yield "password_too_long", f"This may have at most {MAX_LENGTH} characters."
    if _is_common(password.lower()) or _is_monotonous(password):
        yield "password_too_common", "Many people use this password, so it is tried first; choose another one."
    if _is_about(password.lower(), about):
        yield "password_contextual", "This is made of your address, your name or the name of this service."


def _is_common(password: str) -> bool:
    """Say whether many people use it, or it joins two that they use: that is how a short one is made long enough."""
    common = _common()
    return password in common or any(
        password[:cut] in common and password[cut:] in common for cut in range(1, len(password))
    )


def _is_monotonous(password: str) -> bool:
    """Say whether a row, or a short piece repeated, is the whole password: length alone is no strength."""
    if any(password.lower() in row or password.lower() in row[::-1] for row in _ROWS):
        return True
    return re.fullmatch(r"(.{1,4}?)\1+.{0,3}", password, re.DOTALL) is not None


def _is_about(password: str, about: Collection[str]) -> bool:
    texts = {text.lower() for text in (*about, product.NAME, product.SLUG)}
    words = {word for text in texts for word in re.split(r"[^\w]+", text) if len(word) >= _MIN_CONTEXT} | texts
    rest = password
    for word in sorted(words, key=len, reverse=True):
        rest = rest.replace(word, "")
    # What is left when the known words are taken out has to carry the strength.
    return rest != password and len(re.sub(r"[\W\d_]+", "", rest)) < _MIN_CONTEXT


@cache
def _common() -> frozenset[str]:
    from zxcvbn.frequency_lists import FREQUENCY_LISTS

    return frozenset(FREQUENCY_LISTS["passwords"])
