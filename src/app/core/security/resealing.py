"""Columns of sealed values: how many rows are sealed with a key, and the step that moves rows to the active key."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Column, LargeBinary, Row, column, func, inspect, select, update, values
from sqlalchemy.orm import InstrumentedAttribute

from app.core.db.database import WriteSession
from app.core.security.sealing import SealBrokenError, Sealer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SealedColumn:
    """A column of sealed values. A feature lists its own as `SEALED` in its `sealed.py`.

    The table has a primary key of one column. `purpose` and `owner` are those that the feature seals with.
    """

    column: InstrumentedAttribute[bytes]
    owner: InstrumentedAttribute[UUID]
    purpose: str

    @property
    def name(self) -> str:
        return f"{inspect(self.column.class_).local_table}.{self.column.key}"

    @property
    def primary_key(self) -> Column[Any]:
        columns: tuple[Column[Any], ...] = inspect(self.column.class_).primary_key
        (key,) = columns
        return key


async def count(session: WriteSession, sealed: SealedColumn, number: int) -> int:
    """Return the number of rows that are sealed with this key."""
    key_id = func.substring(sealed.column, 1, 1, type_=LargeBinary())
    rows = select(func.count()).select_from(sealed.column.class_).where(key_id == bytes([number]))
    return await session.scalar(rows) or 0


async def reseal(session: WriteSession, after: Any, *, sealed: SealedColumn, sealer: Sealer, batch: int) -> Any:
    """Reseal the rows of retiring keys among the next `batch` rows. Return the position, or None at the end."""
    key = sealed.primary_key
    columns = key.label("key"), sealed.owner.label("owner"), sealed.column.label("sealed")
    page = select(*columns).order_by(key).limit(batch)
    rows = (await session.execute(page if after is None else page.where(key > after))).all()
    if changes := list(_resealed(rows, sealed, sealer)):
        await _replace(session, sealed, changes)
    return rows[-1].key if len(rows) == batch else None


def _resealed(rows: Sequence[Row[Any]], sealed: SealedColumn, sealer: Sealer) -> Iterator[tuple[Any, bytes, bytes]]:
    """Yield the key, the value and the new value of each row of a retiring key."""
    retiring = {bytes([number]) for number in sealer.keys.retiring_seal_keys}
    broken: list[SealBrokenError] = []
    for row in (row for row in rows if row.sealed[:1] in retiring):
        try:
            plaintext = sealer.unseal(row.sealed, purpose=sealed.purpose, owner=row.owner)
        except SealBrokenError as error:
            # One broken row must not keep the others under the old key.
            broken.append(error)
        else:
            yield row.key, row.sealed, sealer.seal(plaintext, purpose=sealed.purpose, owner=row.owner)
    if broken:
        log.error(
            "sealed rows are broken", extra={"column": sealed.name, "rows": len(broken), "reason": str(broken[0])}
        )


async def _replace(session: WriteSession, sealed: SealedColumn, changes: Sequence[tuple[Any, bytes, bytes]]) -> None:
    key, stored = sealed.primary_key, sealed.column
    names = column("key", key.type), column("old", LargeBinary()), column("new", LargeBinary())
    change = values(*names, name="change").data(changes)
    statement = (
        update(stored.class_)
        # A row that was changed since it was read has another value, and is left alone.
        .where(key == change.c.key, stored == change.c.old)
        .values({stored: change.c.new})
        .returning(key)
        .execution_options(synchronize_session=False)
    )
    resealed = (await session.execute(statement)).all()
    log.info("rows resealed", extra={"column": sealed.name, "rows": len(resealed)})
