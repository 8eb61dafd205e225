"""Content negotiation by `Accept` (RFC 9110, 12.5.1): which of the declared media types a client prefers."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.datastructures import Headers

from app.core.errors import NotAcceptableError

_JSON = "application/json"
_PROBLEM = "application/problem+json"
_MAX_RANGES = 100
_QUALITY = re.compile(r"(?:^|;)\s*q=([01](?:\.\d{0,3})?)\s*(?:;|$)", re.IGNORECASE)


def success_types(default: str | None, responses: Mapping[int | str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the media types of a successful response: that of its class, and those that the operation declares."""
    contents = (response.get("content", {}) for status, response in responses.items() if str(status).startswith("2"))
    types = [*((default,) if default else ()), *(one for content in contents for one in content)]
    return tuple(dict.fromkeys(one.partition(";")[0].strip().lower() for one in types))


def accept_of(headers: Headers) -> str:
    """Return the media ranges of a request. Several `Accept` headers are one list (RFC 9110, 5.3)."""
    return ", ".join(headers.getlist("accept")) or "*/*"


def preferred(accept: str, types: Sequence[str]) -> str:
    """Return the type that the client prefers; among equal ones, the first. Raises `NotAcceptableError` if it excludes all.

    For each type, the most specific range decides. Invalid ranges are ignored.
    """
    ranges = _ranges(accept)
    if not ranges:
        return types[0]
    quality, best = max(((_quality(one, ranges), -index) for index, one in enumerate(types)), default=(0.0, 0))
    if not quality:
        raise NotAcceptableError(*types)
    return types[-best]


def _ranges(accept: str) -> dict[str, float]:
    """Return each media range with its quality."""
    parts = [part.partition(";") for part in accept.split(",", _MAX_RANGES)[:_MAX_RANGES]]
    return {
        name.strip().lower(): float(match[1]) if (match := _QUALITY.search(parameters)) else 1.0
        for name, _, parameters in parts
        if "/" in name
    }


def _quality(media_type: str, ranges: Mapping[str, float]) -> float:
    # A client that accepts the errors of a JSON API also understands its other responses.
    same = (media_type, _PROBLEM) if media_type == _JSON else (media_type,)
    names = (*same, f"{media_type.partition('/')[0]}/*", "*/*")
    return next((ranges[name] for name in names if name in ranges), 0.0)
