"""Keyset pagination: the SQL of the next page, and signed cursors with the position of the last row of a page."""

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BindParameter, Row, Select, bindparam, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from app.core import base64url
from app.core.db import cursors
from app.core.db.cursors import Value
from app.core.errors import MalformedRequestError

type Position = tuple[Value, ...]
# The rows of one page, and the position of the last one if more rows follow.
type PageRows = tuple[Sequence[Any], Position | None]

_VERSION = b"\x01"
_MAC_LENGTH = 16
# An index entry has at most 2,704 bytes, which base64 and JSON escapes enlarge. A request target may have 16,000 bytes.
_MAX_LENGTH = 8192


class InvalidCursorError(MalformedRequestError):
    """The cursor was not made by this server for this list."""

    problem = "invalid-cursor"
    code = "invalid_cursor"
    detail = "The cursor does not belong to this list. Start again without a cursor."


@dataclass(frozen=True, slots=True)
class Order:
    """A total order of rows: columns that are NOT NULL and together unique, all in one direction.

    An index on exactly these columns supports both directions. Nullable columns are not allowed, because pages would skip rows
    with NULL.
    """

    columns: tuple[InstrumentedAttribute[Any], ...]
    descending: bool = False

    def __post_init__(self) -> None:
        """Reject unsuitable columns at import time, instead of silently skipping rows later."""
        for column in self.columns:
            if column.property.columns[0].nullable:
                message = f"{column} is nullable: pages would skip rows without a value"
                raise ValueError(message)
            cursors.reader_of(str(column), column.type)

    def position(self, row: Row[Any]) -> Position:
        """Return the position of a row in this order. The row contains the columns, or an entity with them."""
        source = row if hasattr(row, self.columns[0].key) else row[0]
        return tuple(getattr(source, column.key) for column in self.columns)

    def placeholders(self) -> tuple[BindParameter[Any], ...]:
        """Return bind parameters for a position, for a statement that is built once."""
        return tuple(bindparam(_name(column), type_=column.property.columns[0].type) for column in self.columns)

    def values(self, position: Position | None) -> dict[str, Value]:
        """Return the values of the bind parameters of `placeholders`."""
        return {_name(column): value for column, value in zip(self.columns, position or (), strict=False)}


@dataclass(frozen=True, slots=True)
class PageRequest:
    """The page to read: up to `limit` rows in this order, after `position` or from the start."""

    order: Order
    limit: int
    position: Position | None = None


def _name(column: InstrumentedAttribute[Any]) -> str:
    return f"after_{column.key}"


def after[*Ts](
    statement: Select[*Ts], order: Order, position: Position | tuple[BindParameter[Any], ...] | None
) -> Select[*Ts]:
    """Sort the statement, and start it after `position`.

    With the row-value comparison, PostgreSQL starts at that row of the index. So a deep page is as cheap as the first one.
    """
    # Columns of the table instead of the class: SQLAlchemy then runs the statement without the ORM, in half the time.
    columns = [column.property.columns[0] for column in order.columns]
    if position is not None:
        row = tuple_(*columns)
        last = tuple_(*position, types=[column.type for column in columns])
        statement = statement.where(row < last if order.descending else row > last)
    return statement.order_by(*(column.desc() if order.descending else column.asc() for column in columns))


class CursorSigner:
    """Signs cursors. Each cursor is bound to one list.

    A cursor is authenticated, not encrypted. It contains only values of a row that the client has just read.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def encode(self, position: Position, *, binding: str) -> str:
        """Encode a position for the client; `binding` names the list (path, filters, sort)."""
        payload = json.dumps([cursors.write(value) for value in position], separators=(",", ":")).encode()
        cursor = base64url.encode(_VERSION + self._mac(payload, binding) + payload)
        if len(cursor) > _MAX_LENGTH:
            message = (
                f"a cursor of {len(cursor)} characters is too long for a request; sort by a column with shorter values"
            )
            raise ValueError(message)
        return cursor

    def decode(self, cursor: str, order: Order, *, binding: str) -> Position:
        """Decode a position. Raises `InvalidCursorError` unless the cursor is an unchanged cursor of this list."""
        raw = _decoded(cursor)
        mac, payload = raw[1 : 1 + _MAC_LENGTH], raw[1 + _MAC_LENGTH :]
        if raw[:1] != _VERSION or not hmac.compare_digest(mac, self._mac(payload, binding)):
            raise InvalidCursorError
        # The signature is valid, but an older release may have used other sort columns or another encoding.
        try:
            texts = json.loads(payload)
            if not isinstance(texts, list):
                raise InvalidCursorError
            return tuple(_read(text, column) for text, column in zip(texts, order.columns, strict=True))
        except (ValueError, TypeError, ArithmeticError, LookupError, RecursionError) as error:
            raise InvalidCursorError from error

    def _mac(self, payload: bytes, binding: str) -> bytes:
        message = hashlib.sha256(binding.encode("utf-8", "surrogatepass")).digest() + payload
        return hmac.digest(self._key, message, "sha256")[:_MAC_LENGTH]


def _decoded(cursor: str) -> bytes:
    if len(cursor) > _MAX_LENGTH or not cursor.isascii():
        raise InvalidCursorError
    try:
        return base64url.decode(cursor)
    except ValueError as error:
        raise InvalidCursorError from error


def _read(text: object, column: InstrumentedAttribute[Any]) -> Value:
    if not isinstance(text, str):
        raise TypeError(text)
    return cursors.reader_of(str(column), column.type)(text)


def binding_of(path: str, parameters: Sequence[tuple[str, str]]) -> str:
    """Return the identity of a list: its path and every parameter that filters or sorts its rows."""
    return json.dumps([path, sorted(parameters)])
