"""Columns that accept only declared values, and the check that the database accepts all of them."""

import pytest
from sqlalchemy import CheckConstraint, Column, MetaData, Table, Text, text
from sqlalchemy.sql.elements import conv

from app.core.db.choices import one_of, outdated_constraint
from app.core.db.database import WriteSession
from app.models import Base
from app.users.roles import GRANTS, SCOPES, Role


def declared(*values: str) -> MetaData:
    """Declare a table whose colour is one of these values."""
    metadata = MetaData(naming_convention={"ck": "ck_%(table_name)s_%(constraint_name)s"})
    Table("paints", metadata, Column("colour", Text), one_of("colour", values))
    return metadata


async def make_table(session: WriteSession, check: str) -> None:
    await session.execute(text(f"CREATE TABLE paints (colour text, CONSTRAINT ck_paints_colour CHECK ({check}))"))


async def test_the_database_accepts_every_declared_value(session: WriteSession) -> None:
    assert await outdated_constraint(session, Base.metadata) is None


@pytest.mark.parametrize(
    "check",
    [
        "colour IN ('red', 'green')",
        "colour = ANY (ARRAY['red', 'green', 'blue'])",
        "length(colour) < 9",
        # A constraint is satisfied by null.
        "NULL",
    ],
)
async def test_a_constraint_may_have_any_form_and_allow_more_values(session: WriteSession, check: str) -> None:
    await make_table(session, check)

    assert await outdated_constraint(session, declared("red", "green")) is None


async def test_the_text_names_rejected_values_and_what_to_do(session: WriteSession) -> None:
    await make_table(session, "colour IN ('red')")

    complaint = await outdated_constraint(session, declared("red", "it's 1:1, 100%", "green"))

    assert complaint == (
        "the code declares it's 1:1, 100%, green for colour, but the constraint ck_paints_colour of the database "
        'rejects that; write a migration that replaces it: docs/recipes.md, "Add a role"'
    )


async def test_a_value_may_contain_any_characters(session: WriteSession) -> None:
    metadata = declared("it's 1:1, 100%")
    await (await session.connection()).run_sync(metadata.create_all)

    assert await outdated_constraint(session, metadata) is None
    await session.execute(metadata.tables["paints"].insert().values(colour="it's 1:1, 100%"))


async def test_without_a_constraint_every_value_is_accepted(session: WriteSession) -> None:
    assert await outdated_constraint(session, declared("red")) is None


def test_every_constraint_on_values_is_declared_by_one_of() -> None:
    listed = {
        str(constraint.name)
        for table in Base.metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint) and " IN (" in str(constraint.sqltext) and not constraint.info
    }

    # Triggers of the database write this column, and the rest of the code does not use its numbers.
    unchecked = listed - {conv("ck_revocations_kind")}
    assert not unchecked, f"declare {unchecked} with one_of, which detects a database that is older than the code"


def test_every_role_grants_scopes_that_exist() -> None:
    assert GRANTS.keys() == set(Role), "add each role to GRANTS; otherwise its accounts cannot log in"
    assert SCOPES.keys() >= frozenset[str]().union(*GRANTS.values()), (
        "a role grants a scope that SCOPES does not contain"
    )


@pytest.mark.parametrize(("column", "name"), [("colour", "colour"), ("order", '"order"'), ("user", '"user"')])
def test_a_column_with_a_reserved_name_is_quoted(column: str, name: str) -> None:
    assert str(one_of(column, ["red"]).sqltext) == f"{name} IN ('red')"
