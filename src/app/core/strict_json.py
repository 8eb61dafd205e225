"""Strict JSON (RFC 8259): unique member names and finite numbers only."""

import json
import math
from typing import Any


class DuplicateNameError(ValueError):
    """A name occurs twice in one object. Parsers disagree about which value is valid."""


def loads(text: str) -> Any:
    """Parse a document. Raises DuplicateNameError for a repeated name, and ValueError for any other invalid document."""
    return json.loads(text, object_pairs_hook=_unique_members, parse_constant=_finite_float, parse_float=_finite_float)


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise DuplicateNameError
    return members


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
