"""Conditional requests with strong entity tags, made from the version of a row (RFC 9110, 8.8 and 13.1)."""

import re
from collections.abc import Collection
from typing import Annotated

from fastapi import Header, Response
from pydantic import BeforeValidator
from starlette.types import Scope

from app.core.schemas.fields import Printable

_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e]*)"')
_VERSION = re.compile(r"[0-9]{1,18}")

# A longer condition matches nothing. To read it would block the event loop for longer than any request may.
_LONGEST_CONDITION = 8192
_NO_TAG = ""


def _bounded(condition: object) -> object:
    is_too_long = isinstance(condition, str) and len(condition) > _LONGEST_CONDITION
    return _NO_TAG if is_too_long else condition


type _Condition = Annotated[str, BeforeValidator(_bounded), Printable] | None
type IfMatch = Annotated[_Condition, Header(alias="If-Match", description="Only if the ETag is still one of these.")]
type IfNoneMatch = Annotated[
    _Condition, Header(alias="If-None-Match", description="Only if the ETag is none of these; otherwise 304.")
]


_CONDITIONS = (b"if-match", b"if-none-match")


def join_conditions(scope: Scope, names: Collection[bytes]) -> None:
    """Make one header of a condition that the client sends on several lines (RFC 9110, 5.3); `names` are all it sends."""
    for name in _CONDITIONS:
        if name in names:
            lines = [value for given, value in scope["headers"] if given == name]
            others = [header for header in scope["headers"] if header[0] != name]
            scope["headers"] = [*others, (name, b", ".join(lines))]


def etag(version: int) -> str:
    """Write the strong entity tag of a row at this version."""
    return f'"{version}"'


def acceptable_versions(if_match: str | None) -> frozenset[int] | None:
    """Give the versions the row may have; None when any will do. A header without a tag of ours can match nothing."""
    if if_match is None or if_match.strip() == "*":
        return None
    # Weak tags never match here, by RFC 9110, 13.1.1.
    return frozenset(int(tag) for weak, tag in _TAG.findall(if_match) if not weak and _VERSION.fullmatch(tag))


def is_current(if_none_match: str | None, version: int) -> bool:
    """Say whether the client's copy is the row at this version."""
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or any(tag == str(version) for _, tag in _TAG.findall(if_none_match))


def not_modified(version: int) -> Response:
    """Answer 304: the client's copy is current."""
    return Response(status_code=304, headers={"ETag": etag(version)})
