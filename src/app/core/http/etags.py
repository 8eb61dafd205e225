"""Conditional requests with strong entity tags, made from the version of a row (RFC 9110, 8.8 and 13.1).

An endpoint takes `IfNoneMatch` to read a row, `IfMatch` to change or delete one, and `CreatedDep` to create one.
"""

import re
from collections.abc import Collection
from http import HTTPStatus
from typing import Annotated, Any, Protocol, overload
from urllib.parse import quote

from fastapi import Depends, Header, Request, Response
from pydantic import BeforeValidator
from starlette.types import Scope

from app.core.db.database import Versions
from app.core.errors import PreconditionFailedError
from app.core.http.problems import raises
from app.core.schemas.fields import Printable

_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e]*)"')
_VERSION = re.compile(r"[0-9]{1,18}")
# Maximum length of a condition. A longer one matches nothing, because parsing it would block the event loop for too long.
_MAX_CONDITION = 8192
_NO_TAG = ""
# Characters of a path that need no percent-encoding (RFC 3986, 3.3).
_IN_PATHS = "/:@!$&'()*+,;="


class Versioned(Protocol):
    """A row with a version. Every change that clients can see increments it."""

    @property
    def version(self) -> int:
        """The first version is 1."""


class VersionedResource(Versioned, Protocol):
    """A row with a version and an id, which is the last part of its URL."""

    @property
    def id(self) -> Any:
        """Primary key."""


def _limited(condition: object) -> object:
    is_too_long = isinstance(condition, str) and len(condition) > _MAX_CONDITION
    return _NO_TAG if is_too_long else condition


type _Condition = Annotated[str, BeforeValidator(_limited), Printable] | None
type IfMatchHeader = Annotated[
    _Condition, Header(alias="If-Match", description="Only if the ETag is still one of these.")
]
type IfNoneMatchHeader = Annotated[
    _Condition, Header(alias="If-None-Match", description="Only if the ETag is none of these; otherwise 304.")
]


class ReadCondition:
    """The `If-None-Match` header of a request, and the `ETag` of its response."""

    def __init__(self, header: str | None, response: Response) -> None:
        self.header = header
        self._response = response

    @overload
    def tag[Row: Versioned](self, row: Row) -> Row: ...
    @overload
    def tag[Body](self, row: Versioned, body: Body) -> Body: ...
    def tag(self, row: Versioned, body: object = None) -> object:
        """Set the `ETag` of the row. If the client's copy is current, set the status 304: FastAPI then sends no body.

        Return the body if there is one, otherwise the row.
        """
        if is_current(self.header, row.version):
            self._response.status_code = HTTPStatus.NOT_MODIFIED
        return _tagged(self._response, row, body)


class WriteCondition:
    """The `If-Match` header of a request, and the `ETag` of its response."""

    def __init__(self, header: str | None, response: Response) -> None:
        self.header = header
        self._response = response

    @property
    def versions(self) -> Versions:
        """The versions that the row may have; None allows any. The service must compare them while it holds a lock on the row."""
        return acceptable_versions(self.header)

    @overload
    def tag[Row: Versioned](self, row: Row) -> Row: ...
    @overload
    def tag[Body](self, row: Versioned, body: Body) -> Body: ...
    def tag(self, row: Versioned, body: object = None) -> object:
        """Set the `ETag` of the row. Return the body if there is one, otherwise the row."""
        return _tagged(self._response, row, body)


class Created:
    """The `Location` and the `ETag` of a response with a new row."""

    def __init__(self, path: str, response: Response) -> None:
        self._path = path
        self._response = response

    @overload
    def tag[Row: VersionedResource](self, row: Row, *, segment: str | None = None) -> Row: ...
    @overload
    def tag[Body](self, row: VersionedResource, body: Body, *, segment: str | None = None) -> Body: ...
    def tag(self, row: VersionedResource, body: object = None, *, segment: str | None = None) -> object:
        """Set `Location` and the `ETag` of the row. Return the body if there is one, otherwise the row.

        The URL of the row is the path of this request, followed by the segment, which is its id by default.
        """
        last = str(row.id) if segment is None else segment
        self._response.headers["Location"] = f"{quote(self._path, safe=_IN_PATHS)}/{quote(last, safe='')}"
        return _tagged(self._response, row, body)


def _tagged(response: Response, row: Versioned, body: object) -> object:
    response.headers["ETag"] = etag(row.version)
    return row if body is None else body


async def get_read_condition(response: Response, if_none_match: IfNoneMatchHeader = None) -> ReadCondition:
    return ReadCondition(if_none_match, response)


@raises(PreconditionFailedError)
async def get_write_condition(response: Response, if_match: IfMatchHeader = None) -> WriteCondition:
    return WriteCondition(if_match, response)


async def get_created(request: Request, response: Response) -> Created:
    return Created(request.scope["path"], response)


type IfNoneMatch = Annotated[ReadCondition, Depends(get_read_condition)]
type IfMatch = Annotated[WriteCondition, Depends(get_write_condition)]
type CreatedDep = Annotated[Created, Depends(get_created)]

_CONDITIONS = (b"if-match", b"if-none-match")


def join_conditions(scope: Scope, names: Collection[bytes]) -> None:
    """Merge repeated lines of a condition into one header (RFC 9110, 5.3). `names` are the header names of the request."""
    for name in _CONDITIONS:
        if name in names:
            lines = [value for given, value in scope["headers"] if given == name]
            others = [header for header in scope["headers"] if header[0] != name]
            scope["headers"] = [*others, (name, b", ".join(lines))]


def etag(version: int) -> str:
    return f'"{version}"'


def acceptable_versions(if_match: str | None) -> Versions:
    """Return the versions that the row may have, or None if any is allowed. A header without a valid tag matches nothing."""
    if if_match is None or if_match.strip() == "*":
        return None
    # `If-Match` uses strong comparison, so weak tags never match (RFC 9110, 13.1.1).
    return frozenset(int(tag) for weak, tag in _TAG.findall(if_match) if not weak and _VERSION.fullmatch(tag))


def is_current(if_none_match: str | None, version: int) -> bool:
    """Return whether the client has the row at this version. `*` matches any version."""
    if if_none_match is None:
        return False
    # `If-None-Match` uses weak comparison, so weak tags match too (RFC 9110, 13.1.2).
    return if_none_match.strip() == "*" or any(tag == str(version) for _, tag in _TAG.findall(if_none_match))
