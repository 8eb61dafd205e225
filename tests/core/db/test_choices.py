"""Columns that hold one of the values that the code declares: whether a database lets them."""

import pytest
from sqlalchemy import CheckConstraint, Column, MetaData, Table, Text, text
from sqlalchemy.sql.elements import conv

from app.core.db.choices import one_of, refused
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


async def test_the_database_takes_every_value_that_the_code_declares(session: WriteSession) -> None:
    assert await refused(session, Base.metadata) is None


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
async def test_a_constraint_may_be_written_in_any_way_and_allow_more(session: WriteSession, check: str) -> None:
    await make_table(session, check)

    assert await refused(session, declared("red", "green")) is None


async def test_a_value_that_the_constraint_refuses_is_named_with_what_to_do(session: WriteSession) -> None:
    await make_table(session, "colour IN ('red')")

    complaint = await refused(session, declared("red", "it's 1:1, 100%", "green"))

    assert complaint == (
        "the code declares it's 1:1, 100%, green for colour, but the constraint ck_paints_colour of the database "
        'rejects that; write a migration that replaces it: docs/adding-a-feature.md, "Adding a role"'
    )


async def test_a_value_with_any_characters_is_declared_and_taken(session: WriteSession) -> None:
    metadata = declared("it's 1:1, 100%")
    await (await session.connection()).run_sync(metadata.create_all)

    assert await refused(session, metadata) is None
    await session.execute(metadata.tables["paints"].insert().values(colour="it's 1:1, 100%"))


async def test_without_the_constraint_nothing_is_refused(session: WriteSession) -> None:
    assert await refused(session, declared("red")) is None


def test_the_values_of_a_column_are_declared_by_one_of() -> None:
    listed = {
        str(constraint.name)
        for table in Base.metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint) and " IN (" in str(constraint.sqltext) and not constraint.info
    }

    # Written by triggers of the database; its numbers mean nothing to the rest of the code.
    unchecked = listed - {conv("ck_revocations_kind")}
    assert not unchecked, f"declare {unchecked} by one_of, which finds a database that is older than the code"


def test_every_role_grants_scopes_that_exist() -> None:
    assert GRANTS.keys() == set(Role), "say in GRANTS what each role grants, or nobody of that role can log in"
    assert SCOPES.keys() >= frozenset[str]().union(*GRANTS.values()), "a role grants a scope that SCOPES does not have"
