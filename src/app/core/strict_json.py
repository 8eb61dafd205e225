"""JSON as RFC 8259 means it: each member once, finite numbers."""

import json
import math
from typing import Any, NoReturn


class DuplicateNameError(ValueError):
    """A name occurs twice in one object. Parsers disagree which of the two counts."""


def loads(text: str) -> Any:
    """Read a document. Raises ValueError for what is not JSON, and DuplicateNameError."""
    return json.loads(text, object_pairs_hook=_members, parse_constant=_refuse, parse_float=_finite)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise DuplicateNameError
    return members


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
