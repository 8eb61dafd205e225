"""Columns that hold one of the values that the code declares, such as an account's role."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sqlalchemy import CheckConstraint, MetaData, Text, func, literal, literal_column, not_, select, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

_KEY = "choices"
_EXPRESSIONS = text("""
SELECT conname, pg_get_expr(conbin, conrelid) AS expression FROM pg_constraint
WHERE contype = 'c' AND conname = ANY(:names) AND connamespace = current_schema()::regnamespace
""")


@dataclass(frozen=True)
class _Choices:
    column: str
    values: tuple[str, ...]


def one_of(column: str, values: Iterable[str]) -> CheckConstraint:
    """Let a column of text hold these values only. `refused` finds a database whose constraint is older than the code."""
    choices = _Choices(column, tuple(map(str, values)))
    listed = ", ".join("'{}'".format(value.replace("'", "''")) for value in choices.values)
    return CheckConstraint(f"{column} IN ({listed})", name=column, info={_KEY: choices})


async def refused(session: AsyncSession | AsyncConnection, metadata: MetaData) -> str | None:
    """Say which value that the code declares is refused by the database, and what to do."""
    declared = dict(_declared(metadata))
    for name, expression in await session.execute(_EXPRESSIONS, {"names": list(declared)}):
        choices = declared[name]
        given = func.unnest(literal(list(choices.values), ARRAY(Text))).table_valued(choices.column, name="given")
        # The database evaluates its own constraint, so its spelling does not matter.
        offered = given.render_derived()
        statement = select(offered.c[choices.column]).where(not_(literal_column(expression)))
        if values := (await session.execute(statement)).scalars().all():
            return (
                f"the code declares {', '.join(values)} for {choices.column}, and the constraint {name} of the database "
                'refuses that; write a migration that replaces it: docs/adding-a-feature.md, "Adding a role"'
            )
    return None


def _declared(metadata: MetaData) -> Iterator[tuple[str, _Choices]]:
    for table in metadata.tables.values():
        for constraint in table.constraints:
            if choices := constraint.info.get(_KEY):
                yield str(constraint.name), choices
