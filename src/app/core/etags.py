"""Optimistic concurrency over HTTP: strong entity tags made of a row's version (RFC 9110, 8.8 and 13.1)."""

import re
from typing import Annotated

from fastapi import Header, Response
from pydantic import StringConstraints

from app.core.fields import Printable

_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e]*)"')

type _Condition = Annotated[str, StringConstraints(max_length=1024), Printable] | None
type IfMatch = Annotated[_Condition, Header(alias="If-Match", description="Only if the ETag is still one of these.")]
type IfNoneMatch = Annotated[
    _Condition, Header(alias="If-None-Match", description="Only if the ETag is none of these; otherwise 304.")
]


def etag(version: int) -> str:
    """Write the strong entity tag of a row at this version."""
    return f'"{version}"'


def acceptable_versions(if_match: str | None) -> frozenset[int] | None:
    """Give the versions the row may have; None when any will do. A header without a tag of ours can match nothing."""
    if if_match is None or if_match.strip() == "*":
        return None
    # Weak tags never match here, by RFC 9110, 13.1.1.
    return frozenset(int(tag) for weak, tag in _TAG.findall(if_match) if not weak and re.fullmatch(r"[0-9]{1,18}", tag))


def is_current(if_none_match: str | None, version: int) -> bool:
    """Say whether the client's copy is the row at this version."""
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or any(tag == str(version) for _, tag in _TAG.findall(if_none_match))


def not_modified(version: int) -> Response:
    """Answer 304: the client's copy is current."""
    return Response(status_code=304, headers={"ETag": etag(version)})
