"""Columns that accept only the values declared in the code, such as the role of an account."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sqlalchemy import CheckConstraint, MetaData, Text, func, literal, literal_column, not_, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

_KEY = "choices"
# Only names such as `order` need quotes.
_quoted = postgresql.dialect().identifier_preparer.quote  # type: ignore[no-untyped-call]  # SQLAlchemy does not annotate it.
_EXPRESSIONS = text("""
SELECT conname, pg_get_expr(conbin, conrelid) AS expression FROM pg_constraint
WHERE contype = 'c' AND conname = ANY(:names) AND connamespace = current_schema()::regnamespace
""")


@dataclass(frozen=True)
class _Choices:
    column: str
    values: tuple[str, ...]


def one_of(column: str, values: Iterable[str]) -> CheckConstraint:
    """Return a constraint that limits a text column to these values. `outdated_constraint` detects an older one in the database."""
    choices = _Choices(column, tuple(map(str, values)))
    listed = ", ".join("'{}'".format(value.replace("'", "''")) for value in choices.values)
    return CheckConstraint(f"{_quoted(column)} IN ({listed})", name=column, info={_KEY: choices})


async def outdated_constraint(session: AsyncSession | AsyncConnection, metadata: MetaData) -> str | None:
    """Return a message if a constraint in the database rejects declared values: which values, and what to do."""
    declared = dict(_declared(metadata))
    for name, expression in await session.execute(_EXPRESSIONS, {"names": list(declared)}):
        choices = declared[name]
        declared_values = func.unnest(literal(list(choices.values), ARRAY(Text)))
        rows = declared_values.table_valued(choices.column, name="given").render_derived()
        # The database evaluates its own constraint, so the constraint may have any form.
        statement = select(rows.c[choices.column]).where(not_(literal_column(expression)))
        if values := (await session.execute(statement)).scalars().all():
            return (
                f"the code declares {', '.join(values)} for {choices.column}, but the constraint {name} of the database "
                'rejects that; write a migration that replaces it: docs/recipes.md, "Add a role"'
            )
    return None


def _declared(metadata: MetaData) -> Iterator[tuple[str, _Choices]]:
    for table in metadata.tables.values():
        for constraint in table.constraints:
            if choices := constraint.info.get(_KEY):
                yield str(constraint.name), choices
