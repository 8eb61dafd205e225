"""Converts the values of sort columns to text for cursors, and back.

The result of a round trip must be exactly the original value, and one that PostgreSQL accepts for the column.
"""

import struct
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from sqlalchemy import types
from sqlalchemy.dialects.postgresql import CITEXT
from sqlalchemy.types import TypeEngine

type Value = bool | int | float | Decimal | date | time | UUID | Enum | str | bytes

# PostgreSQL's limits for NUMERIC without a precision, for REAL, and for the offset of TIME WITH TIME ZONE.
_MAX_DIGITS, _MAX_DECIMALS = 131_072, 16_383
_REAL_BITS = 24
_MAX_OFFSET = timedelta(hours=16)
_SUPPORTED = "Boolean, SmallInteger, Integer, BigInteger, Float, Numeric, Date, Time, DateTime, Uuid, Enum, String, Text or LargeBinary"


def write(value: Value) -> str:
    """Return a value as text, which `reader_of` its column can read."""
    match value:
        case bool():
            return "true" if value else "false"
        case Enum():
            return value.name
        case datetime(tzinfo=zone) if zone is not None:
            return value.astimezone(UTC).isoformat()
        case date() | time():
            return value.isoformat()
        case bytes():
            return value.hex()
        case _:
            return str(value)


def reader_of(name: str, kind: TypeEngine[Any]) -> Callable[[str], Value]:
    """Return a function that reads values of a column. Raises `TypeError` for a column type that cursors do not support.

    The function raises `ValueError`, `ArithmeticError` or `LookupError` for a text that is not a value of the column.
    """
    read = _reader(kind)
    if read is None:
        raise TypeError(
            f"{name} is of type {kind!r}, which cursors do not support; sort by a column of type {_SUPPORTED} "
            "(with Python's default type for it), or by another column"
        )

    def exactly(text: str) -> Value:
        value = read(text)
        # Python accepts several texts for most values.
        if write(value) != text:
            raise ValueError(text)
        return value

    return exactly


def _reader(kind: TypeEngine[Any]) -> Callable[[str], Value] | None:  # noqa: C901, PLR0911  # A table of types.
    match kind:
        case types.Boolean():
            return {"true": True, "false": False}.__getitem__
        case types.Integer():
            return _integer(
                15 if isinstance(kind, types.SmallInteger) else 63 if isinstance(kind, types.BigInteger) else 31
            )
        case types.Float(asdecimal=False):
            return _real if isinstance(kind, types.REAL) or (kind.precision or 53) <= _REAL_BITS else float
        case types.Numeric(asdecimal=True) if not isinstance(kind, types.Float):
            return _decimal(kind.precision, kind.scale or 0)
        case types.Date():
            return date.fromisoformat
        case types.Time():
            return _checked(time.fromisoformat, lambda value: _is_time(value, has_zone=kind.timezone))
        case types.DateTime():
            return _checked(datetime.fromisoformat, lambda value: (value.tzinfo is not None) == kind.timezone)
        case types.Uuid(as_uuid=True):
            return UUID
        case types.Enum():
            return dict(
                kind.enum_class.__members__ if kind.enum_class else zip(kind.enums, kind.enums, strict=True)
            ).__getitem__
        # CHAR ignores trailing spaces and CITEXT ignores case, but not in every comparison.
        case types.String() if not isinstance(kind, types.CHAR | CITEXT):
            return _text
        case types.LargeBinary():
            return bytes.fromhex
        case _:
            return None


def _checked[T](parse: Callable[[str], T], is_valid: Callable[[T], bool]) -> Callable[[str], T]:
    def read(text: str) -> T:
        value = parse(text)
        if not is_valid(value):
            raise ValueError(text)
        return value

    return read


def _integer(bits: int) -> Callable[[str], int]:
    return _checked(int, lambda value: -(1 << bits) <= value < 1 << bits)


def _real(text: str) -> float:
    # REAL has four bytes. A number that is not exactly one of its values fails the comparison in `exactly`.
    value = float(text)
    (narrow,) = struct.unpack("f", struct.pack("f", value))
    return float(narrow)


def _decimal(precision: int | None, scale: int) -> Callable[[str], Decimal]:
    digits, decimals = (precision - scale, scale) if precision else (_MAX_DIGITS, _MAX_DECIMALS)

    def is_valid(value: Decimal) -> bool:
        exponent = value.as_tuple().exponent
        if isinstance(exponent, int):
            return value.adjusted() < digits and -exponent <= decimals
        return str(value) == "NaN" or (precision is None and value.is_infinite())

    return _checked(Decimal, is_valid)


def _is_time(value: time, *, has_zone: bool) -> bool:
    offset = value.utcoffset()
    return (offset is not None) == has_zone and not (offset and (abs(offset) >= _MAX_OFFSET or offset.microseconds))


def _text(text: str) -> str:
    # A text of PostgreSQL can contain neither NUL nor lone surrogates; `encode` raises for the latter.
    if "\0" in text:
        raise ValueError(text)
    text.encode()
    return text
