"""The CRUD pattern: typed functions that a feature's own `crud.py` is built from.

They run one statement each, never commit, and answer `None` or `False` where nothing matched.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, any_, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import InstrumentedAttribute

from app.core.db.database import Base, ReadSession, WriteSession
from app.core.db.keyset import Order, Position, after


async def insert_or_none[M: Base](
    session: WriteSession,
    model: type[M],
    values: Mapping[str, Any],
    *,
    unique: Sequence[InstrumentedAttribute[Any]],
) -> M | None:
    """Insert a row, or return None when another one holds the same value in `unique`.

    The database decides, so callers that race get one row between them, and nobody an aborted transaction.
    """
    statement = insert(model).values(**values).on_conflict_do_nothing(index_elements=list(unique)).returning(model)
    return await session.scalar(statement)


async def change[M: Base](session: WriteSession, model: type[M], key: UUID, values: Mapping[str, Any]) -> M | None:
    """Change one row and raise its version; None when it is gone."""
    columns: Any = model
    statement = (
        update(model)
        .where(_primary_key(model) == key)
        .values(**values, version=columns.version + 1)
        .returning(model)
        # A copy loaded earlier in this session shows the new values too.
        .execution_options(populate_existing=True)
    )
    return await session.scalar(statement)


async def remove[M: Base](session: WriteSession, model: type[M], key: UUID) -> bool:
    """Delete one row; False when it is gone."""
    statement = delete(model).where(_primary_key(model) == key).returning(_primary_key(model))
    return await session.scalar(statement) is not None


async def remove_expired(
    session: WriteSession,
    key: InstrumentedAttribute[Any],
    expiry: InstrumentedAttribute[Any],
    before: ColumnElement[datetime],
    *,
    after: datetime | None,
    limit: int,
) -> datetime | None:
    """Delete the next `limit` rows whose `expiry` is earlier than `before`; return where to go on, None at the end.

    The table needs an index that begins with `expiry`. Rows that somebody else has locked are left for a later run.
    """
    portion = select(key).where(expiry < before).order_by(expiry).limit(limit).with_for_update(skip_locked=True)
    if after is not None:
        # Past the index entries of the rows that the steps before have deleted.
        portion = portion.where(expiry >= after)
    statement = (
        delete(key.class_)
        # An array, not a join: PostgreSQL then finds each row by its primary key, whatever the statistics say.
        .where(key == any_(func.array(portion.scalar_subquery())))
        .returning(expiry)
        .execution_options(synchronize_session=False)
    )
    expiries = (await session.scalars(statement)).all()
    return max(expiries) if len(expiries) == limit else None


async def page(
    session: ReadSession, statement: Select[*tuple[Any, ...]], order: Order, position: Position | None, *, limit: int
) -> tuple[Sequence[Any], Position | None]:
    """Read the next `limit` rows after `position`, and the position to go on from (None at the end).

    One row more than asked is read to learn whether there is an end: no count.
    """
    return cut((await session.execute(after(statement, order, position).limit(limit + 1))).all(), order, limit)


def cut(rows: Sequence[Any], order: Order, limit: int) -> tuple[Sequence[Any], Position | None]:
    """Make a page of the rows that were read, which may be one more than `limit`."""
    if len(rows) <= limit:
        return rows, None
    return rows[:limit], order.position(rows[limit - 1])


def _primary_key(model: type[Base]) -> InstrumentedAttribute[UUID]:
    key: InstrumentedAttribute[UUID] = model.id  # type: ignore[attr-defined]  # Every model declares `id: PrimaryKey`.
    return key
