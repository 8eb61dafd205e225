"""Inserts rows of any table, for tests of a feature that refers to another one."""

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import count
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Column, Table, insert

from app.core.db.database import WriteSession
from app.models import Base

_numbers = count(1)
# Values that satisfy unique constraints.
_VALUES: Mapping[type, Callable[[], Any]] = {
    str: lambda: str(uuid4()),
    int: lambda: next(_numbers),
    Decimal: lambda: Decimal(next(_numbers)),
    bool: lambda: True,
    date: lambda: date.fromordinal(700_000 + next(_numbers)),
    datetime: lambda: datetime.fromtimestamp(next(_numbers), UTC),
    UUID: uuid4,
}


async def insert_row(session: WriteSession, table: str, **values: Any) -> None:
    """Insert a row. Other columns that need a value get a valid one, and a foreign key a new row with the same owner."""
    declared = Base.metadata.tables[table]
    given = {name: value for name, value in values.items() if name in declared.columns}
    for column in declared.columns:
        if column.name not in given and _needs_value(column):
            given[column.name] = await _value(session, declared, column, values.get("owner_id"))
    await session.execute(insert(declared).values(**given))


def _needs_value(column: Column[Any]) -> bool:
    return not column.nullable and column.server_default is None and column.default is None


async def _value(session: WriteSession, table: Table, column: Column[Any], owner_id: str | None) -> Any:
    for foreign in column.foreign_keys:
        key = uuid4()
        await insert_row(session, foreign.column.table.name, id=key, owner_id=owner_id)
        return key
    for constraint in table.constraints:
        choices = constraint.info.get("choices")
        if choices is not None and choices.column == column.name:
            return choices.values[0]
    return _VALUES[column.type.python_type]()
