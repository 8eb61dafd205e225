"""Generic CRUD functions for the `crud.py` of each feature.

None of them commits. Those that run a statement run only one, and return `None` or `False` if no row matches.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Result, Select, any_, delete, func, inspect, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.util import identity_key

from app.core.db.database import Base, ReadSession, VersionedBase, WriteSession
from app.core.db.failures import constraint_name
from app.core.db.keyset import Order, PageRequest, PageRows, after
from app.core.errors import AppError
from app.core.schemas.pages import MAX_TOTAL

# The rows of one page, and the number of rows on all pages, or None if there are more than `MAX_TOTAL`.
type OffsetRows = tuple[Sequence[Any], int | None]


@dataclass(frozen=True, slots=True)
class OffsetRequest:
    """The page to read: up to `limit` rows in this order, after the first `offset`."""

    order: Order
    limit: int
    offset: int = 0


def only[T](kind: Callable[..., T], result: Result[*tuple[Any, ...]]) -> T | None:
    """Make a named tuple of the only row of a result; None if there is no row."""
    row = result.one_or_none()
    return None if row is None else kind(*row)


async def insert_or_none[M: Base](
    session: WriteSession,
    model: type[M],
    values: Mapping[str, Any],
    *,
    unique: Sequence[InstrumentedAttribute[Any]],
) -> M | None:
    """Insert a row; None if another row has the same values in `unique`.

    The database decides: of several concurrent calls, one gets the row, and no transaction is aborted.
    """
    statement = insert(model).values(**values).on_conflict_do_nothing(index_elements=list(unique)).returning(model)
    return await session.scalar(statement)


@asynccontextmanager
async def on_unique_violation(session: WriteSession, errors: Mapping[str, type[AppError]]) -> AsyncIterator[None]:
    """Run the writes of the block in a savepoint. If one violates a unique constraint named in `errors`, raise its error.

    Other errors pass unchanged. Only the block is rolled back, so the caller may catch the error and continue. For an insert that
    can violate only one unique constraint, `insert_or_none` saves the two round trips of the savepoint.
    """
    try:
        async with session.begin_nested():
            yield
    except IntegrityError as violation:
        error = errors.get(constraint_name(violation) or "")
        if error is None:
            raise
        raise error from violation


async def change[M: VersionedBase](
    session: WriteSession, model: type[M], key: UUID, values: Mapping[str, Any]
) -> M | None:
    """Change one row and increment its version; None if the row does not exist.

    An instance that this session has loaded before gets the new values, and keeps its loaded relationships.
    """
    statement = (
        update(model)
        .where(model.id == key)
        .values(**values, version=model.version + 1)
        .returning(model)
        .execution_options(populate_existing=True)
    )
    known = session.identity_map.get(identity_key(model, key))
    before = {} if known is None else dict(vars(known))
    changed = await session.scalar(statement)
    if changed is known is not None:
        _keep_loaded(known, before, values)
    return changed


def _keep_loaded(row: Base, before: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Restore the attributes that the new values of a row do not concern, such as loaded lists. `populate_existing` unloads them."""
    state = inspect(row)
    outdated = {
        one.key for one in state.mapper.relationships if values.keys() & {column.key for column in one.local_columns}
    }
    for name in (state.unloaded & before.keys()) - values.keys() - outdated:
        set_committed_value(row, name, before[name])


async def remove[M: Base](session: WriteSession, model: type[M], key: UUID) -> bool:
    """Delete one row; False if it does not exist."""
    statement = delete(model).where(_primary_key(model) == key).returning(_primary_key(model))
    return await session.scalar(statement) is not None


async def remove_expired(
    session: WriteSession,
    after: datetime | None,
    *,
    key: InstrumentedAttribute[Any],
    expiry: InstrumentedAttribute[Any],
    keep: timedelta = timedelta(),
    batch: int,
) -> datetime | None:
    """Delete the next `batch` rows whose `expiry` is more than `keep` ago. Returns `after` for the next call, None at the end.

    A step of `jobs.housekeeping`. The table needs an index that begins with `expiry`. Locked rows are skipped and left for a
    later run.
    """
    portion = select(key).where(expiry < func.now() - keep).order_by(expiry).limit(batch)
    portion = portion.with_for_update(skip_locked=True)
    if after is not None:
        # Skip the index entries of rows that earlier calls have deleted.
        portion = portion.where(expiry >= after)
    statement = (
        delete(key.class_)
        # With an array instead of a join, PostgreSQL finds each row by its primary key, independent of the statistics.
        .where(key == any_(func.array(portion.scalar_subquery())))
        .returning(expiry)
        .execution_options(synchronize_session=False)
    )
    expiries = (await session.scalars(statement)).all()
    return max(expiries) if len(expiries) == batch else None


async def page(session: ReadSession, statement: Select[*tuple[Any, ...]], request: PageRequest) -> PageRows:
    """Read one page. Returns its rows and the position of the last one, or None if no more rows follow.

    The rows of `select(Model)` are instances. The statement reads one more row to detect the end, which saves a count.
    """
    limited = after(statement, request.order, request.position).limit(request.limit + 1)
    result = await session.execute(limited)
    return cut((result.scalars() if _selects_a_model(statement) else result).all(), request)


def cut(rows: Sequence[Any], request: PageRequest) -> PageRows:
    """Make a page of `limit` rows from up to `limit + 1` rows."""
    if len(rows) <= request.limit:
        return rows, None
    return rows[: request.limit], request.order.position(rows[request.limit - 1])


async def offset_page(session: ReadSession, statement: Select[*tuple[Any, ...]], request: OffsetRequest) -> OffsetRows:
    """Read one page and count the rows of all pages, in one statement, so that both show the same moment.

    The count stops after `MAX_TOTAL` rows. The primary key decides between rows that are equal in the order. A page after the last
    row has no row to carry the count, and takes a second statement.
    """
    total = _count(statement)
    limited = _in_total_order(statement, request.order).limit(request.limit).offset(request.offset)
    result = (await session.execute(limited.add_columns(total))).freeze()
    counted: int | None = result().columns(-1).scalars().first()
    if counted is None:
        counted = (await session.execute(select(total))).scalar_one() if request.offset else 0
    width = len(statement.column_descriptions)
    rows = result().scalars() if _selects_a_model(statement) else result().columns(*range(width))
    return rows.all(), counted if counted <= MAX_TOTAL else None


def _count(statement: Select[*tuple[Any, ...]]) -> ColumnElement[int]:
    # PostgreSQL does not compute the columns of a subquery that only counts.
    rows = statement.order_by(None).limit(MAX_TOTAL + 1).subquery()
    return select(func.count()).select_from(rows).scalar_subquery()


def _in_total_order(statement: Select[*tuple[Any, ...]], order: Order) -> Select[*tuple[Any, ...]]:
    sorted_by = {column.property.columns[0] for column in order.columns}
    key = [column for column in order.columns[0].class_.__table__.primary_key if column not in sorted_by]
    return after(statement, order, None).order_by(*(column.desc() if order.descending else column for column in key))


def _selects_a_model(statement: Select[*tuple[Any, ...]]) -> bool:
    selected = statement.column_descriptions
    return len(selected) == 1 and selected[0]["expr"] is selected[0].get("entity")


def _primary_key(model: type[Base]) -> InstrumentedAttribute[UUID]:
    key: InstrumentedAttribute[UUID] = model.id  # type: ignore[attr-defined]  # Every model declares `id: PrimaryKey`.
    return key
