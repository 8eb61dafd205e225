"""Strict JSON parser for request bodies, with limits on depth, number of values and digits."""

import re
from array import array
from itertools import accumulate
from typing import Any

from app.core import strict_json
from app.core.errors import FieldError, InvalidInputError, MalformedRequestError

MAX_DEPTH = 32
# Maximum number of opening brackets and commas in one body, which is about the number of its values. To refuse a body costs up
# to 4 µs for each.
MAX_VALUES = 2500
# Maximum number of digits in a body with many values. Python needs quadratic time to parse a long integer.
_MAX_DIGITS = 65_536
# Possessive, and the closing quote is optional, so unterminated strings cannot cause quadratic backtracking.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
# Maps an opening bracket to +1, a closing bracket to -1 and a comma to 0, as signed bytes. Their running sum is the depth.
_DEPTH_CHANGES = bytes.maketrans(b"[{]},", b"\x01\x01\xff\xff\x00")
_NOT_MARKS = bytes(set(range(256)) - set(b"[{]},"))
_NOT_DIGITS = bytes(set(range(256)) - set(b"0123456789"))


class DuplicateMemberError(MalformedRequestError):
    """An object has two members with the same name. Parsers disagree about which one counts."""

    code = "duplicate_member"
    detail = "An object has two members with the same name. Remove one of them."


class TooDeepError(MalformedRequestError):
    """The body is nested too deeply. No operation needs this depth."""

    code = "too_deep"
    detail = f"The body has more than {MAX_DEPTH} nested levels."


class TooManyValuesError(InvalidInputError):
    """The body holds too many values. No operation needs this many."""

    def __init__(self) -> None:
        detail = f"The body may hold at most {MAX_VALUES} values. Send several requests."
        super().__init__(FieldError("#/", "too_many_values", detail))


def parse_json(body: bytes) -> Any:
    """Parse JSON strictly (RFC 8259): UTF-8, unique member names, finite numbers, limited depth and size."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedRequestError from error
    _check_limits(body)
    try:
        return strict_json.loads(text)
    except strict_json.DuplicateNameError as error:
        raise DuplicateMemberError from error
    except ValueError as error:
        raise MalformedRequestError from error


def _check_limits(body: bytes) -> None:
    """Refuse a body that is too deep or holds too many values, before Python objects are built from it."""
    # Most bodies return here: with so few brackets and commas they cannot exceed a limit.
    if body.count(b"[") + body.count(b"{") + body.count(b",") <= MAX_DEPTH:
        return
    # A value has at most two strings: its name and its text. A body that reaches this number is refused at once.
    max_strings = 2 * MAX_VALUES
    rest, strings = _STRING.subn(b"", body, count=max_strings)
    marks = rest.translate(None, _NOT_MARKS)
    depths = [*accumulate(array("b", marks[: 2 * max_strings].translate(_DEPTH_CHANGES)))]
    if max(depths, default=0) > MAX_DEPTH:
        raise TooDeepError
    if 0 in depths[:-1]:
        # The depth returns to 0 before the end, so a second document follows.
        raise MalformedRequestError
    if strings == max_strings or sum(marks.count(mark) for mark in (b"[", b"{", b",")) > MAX_VALUES:
        raise TooManyValuesError
    if len(rest.translate(None, _NOT_DIGITS)) > _MAX_DIGITS:
        raise MalformedRequestError
