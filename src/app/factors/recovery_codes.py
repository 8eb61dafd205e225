"""Recovery codes: single-use secrets on paper, for an owner who has lost the second factor.

A code has 120 random bits, so a fast digest protects the stored one. It is written in the letters of Crockford's base32, which
has no letters that look alike, in groups of four.
"""

import secrets
from hashlib import sha256

COUNT = 10
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LENGTH = 24
_GROUP = 4
# People read these letters as the digits that look like them, and write groups with hyphens or spaces.
_READ_AS = str.maketrans({"O": "0", "I": "1", "L": "1", "-": None, " ": None})


def new_codes() -> list[str]:
    return [_grouped("".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))) for _ in range(COUNT)]


def digest(text: str) -> bytes | None:
    """Return the digest under which a code is stored, however a person has typed it. None for a text that cannot be a code."""
    letters = text.upper().translate(_READ_AS)
    if len(letters) != _LENGTH or not set(letters) <= set(_ALPHABET):
        return None
    return sha256(letters.encode()).digest()


def _grouped(letters: str) -> str:
    return "-".join(letters[start : start + _GROUP] for start in range(0, _LENGTH, _GROUP))
