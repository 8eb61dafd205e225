"""JSON bodies."""

import re
from array import array
from itertools import accumulate
from typing import Any

from app.core import strict_json
from app.core.errors import FieldError, InvalidInputError, MalformedRequestError

MAX_DEPTH = 32
# Opening brackets and commas of one JSON body: about the number of its values. Each costs up to 4 µs when it is refused.
MAX_VALUES = 2500
# Python reads a number in a time that grows with the square of its length.
_MAX_DIGITS = 65_536
# Possessive and without need of an end: a body of unended strings takes no longer than any other.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
# An opening bracket is a step down, a closing one a step up; a comma moves nothing.
_STEPS = bytes.maketrans(b"[{]},", b"\x01\x01\xff\xff\x00")
_NO_MARKS = bytes(set(range(256)) - set(b"[{]},"))
_NO_DIGITS = bytes(set(range(256)) - set(b"0123456789"))


class DuplicateMemberError(MalformedRequestError):
    """A member occurs twice in one object: parsers disagree which one counts."""

    code = "duplicate_member"
    detail = "A member occurs twice in one object."


class TooDeepError(MalformedRequestError):
    """The body is nested deeper than any request here needs."""

    code = "too_deep"
    detail = f"The body is nested deeper than {MAX_DEPTH} levels."


class TooManyValuesError(InvalidInputError):
    """The body holds more values than any request here needs."""

    def __init__(self) -> None:
        detail = f"The body may hold at most {MAX_VALUES} values; send several requests."
        super().__init__(FieldError("#/", "too_many_values", detail))


def parse_json(body: bytes) -> Any:
    """Read JSON as RFC 8259 means it: UTF-8, each member once, finite numbers, bounded depth."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedRequestError from error
    _refuse_shape(body)
    try:
        return strict_json.loads(text)
    except strict_json.DuplicateNameError as error:
        raise DuplicateMemberError from error
    except ValueError as error:
        raise MalformedRequestError from error


def _refuse_shape(body: bytes) -> None:
    """Refuse a body that is too deep or holds too many values, before anything is built from it."""
    # Most bodies have fewer of these than levels are allowed, and need no closer look.
    if body.count(b"[") + body.count(b"{") + body.count(b",") <= MAX_DEPTH:
        return
    # A value is at most two strings, its name and its text. Strings beyond that need no reading.
    most = 2 * MAX_VALUES
    rest, strings = _STRING.subn(b"", body, count=most)
    marks = rest.translate(None, _NO_MARKS)
    depths = [*accumulate(array("b", marks[: 2 * most].translate(_STEPS)))]
    if max(depths, default=0) > MAX_DEPTH:
        raise TooDeepError
    if 0 in depths[:-1]:
        # Something follows the end of the document.
        raise MalformedRequestError
    if strings == most or sum(marks.count(mark) for mark in (b"[", b"{", b",")) > MAX_VALUES:
        raise TooManyValuesError
    if len(rest.translate(None, _NO_DIGITS)) > _MAX_DIGITS:
        raise MalformedRequestError
