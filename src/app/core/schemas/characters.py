"""Rules for the characters of a text.

The sets are listed here instead of being taken from `unicodedata`, because its tables differ between Python versions. Characters
that Unicode has not assigned yet are accepted, because its next version may assign them.
"""

import re

# Controls, surrogates, private use, noncharacters, and the replacement character: decoders insert it for invalid UTF-8.
_UNPRINTABLE = (
    r"\x00-\x1f\x7f-\x9f\ud800-\uf8ff\ufdd0-\ufdef\ufffd-\uffff\U000f0000-\U0010ffff"
    + "".join(rf"\U000{plane:x}fffe\U000{plane:x}ffff" for plane in range(1, 15))
)  # fmt: skip
# Default_Ignorable_Code_Point (UAX #44), which fonts do not show; line and paragraph separators; annotation and object marks.
_INVISIBLE = (
    r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0"
    r"\ufff0-\ufffc\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_SYMBOLS = r"\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001fbff"
# Arabic and related scripts, the scripts of India and South-East Asia, Mongolian, emoji. A joiner between them changes the display.
_JOINED = (
    r"\u0600-\u0dff\u1000-\u109f\u1780-\u18af\u1a00-\u1aff\u1b00-\u1c4f\ua800-\uabff\ufb50-\ufdff\ufe0f\ufe70-\ufefc"
    rf"\U00010a00-\U00011fff\U0001e900-\U0001e95f{_SYMBOLS}"
)
_VIRAMAS = r"\u094d\u09cd\u0a4d\u0acd\u0b4d\u0bcd\u0c4d\u0ccd\u0d4d\u0dca"
_IDEOGRAPHS = r"\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"
_MONGOLIAN = r"\u1820-\u18aa"
_ALLOWED_INVISIBLE = re.compile(
    "|".join(
        (
            rf"(?<=[{_JOINED}])[\u200c\u200d](?=[{_JOINED}])",
            rf"(?<=[{_VIRAMAS}])[\u200c\u200d]",
            rf"(?<=[{_SYMBOLS}])[\ufe0e\ufe0f]",
            r"(?<=[0-9#*])\ufe0f(?=\u20e3)",
            rf"(?<=[{_IDEOGRAPHS}])[\ufe00-\ufe02\U000e0100-\U000e01ef]",
            rf"(?<=[{_MONGOLIAN}])[\u180b-\u180f]",
            # The flags of England, Scotland and Wales.
            r"\U0001f3f4\U000e0067\U000e0062(?:\U000e0065\U000e006e\U000e0067|\U000e0073\U000e0063\U000e0074|\U000e0077\U000e006c\U000e0073)\U000e007f",
        )
    )
)
# Marks above or below a letter. UTS #39 (5.4) allows four on one letter. More would cover the lines around it.
_TOO_MANY_MARKS = re.compile(
    r"[\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc"
    r"\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd\u1ab0-\u1aff\u1dc0-\u1dff"
    r"\u20d0-\u20ff\ufe20-\ufe2f]{5}"
)
_HAS_UNPRINTABLE = re.compile(f"[{_UNPRINTABLE}]").search
_HAS_INVISIBLE = re.compile(f"[{_INVISIBLE}]").search


def is_printable(text: str) -> bool:
    """Return whether the text has no character of `_UNPRINTABLE`. Invisible characters are allowed; see `is_visible`."""
    return _HAS_UNPRINTABLE(text) is None


def is_visible(text: str) -> bool:
    """Return whether the text has no invisible character, except joiners and variation selectors that a script or an emoji needs."""
    return _HAS_INVISIBLE(text) is None or _HAS_INVISIBLE(_ALLOWED_INVISIBLE.sub("", text)) is None


def has_only_visible(text: str) -> bool:
    """Return whether the text has no invisible character at all. Unlike in `is_visible`, joiners and variation selectors are refused."""
    return _HAS_INVISIBLE(text) is None


def has_too_many_marks(text: str) -> bool:
    return _TOO_MANY_MARKS.search(text) is not None


def is_blank(text: str) -> bool:
    """Return whether the text looks empty. U+2800 is the Braille pattern without dots."""
    return not text.replace("\u2800", "").strip()
