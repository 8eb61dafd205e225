import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, func, select, text
from sqlalchemy.exc import IntegrityError

from app.core.db import crud
from app.core.db.crud import OffsetRequest
from app.core.db.database import Database, WriteSession
from app.core.db.keyset import Order, PageRequest
from app.core.errors import ConflictError
from app.users.models import User
from tests.conftest import make_settings
from tests.factories import make_user

VALUES = {"email": "Ada@example.com", "email_key": "ada@example.com"}
RACERS = 20


@pytest.fixture
async def race_database(clone_url: str) -> AsyncIterator[Database]:
    """A separate database with one connection per concurrent call."""
    database = Database(make_settings(clone_url, database={"pool_size": RACERS}).database)
    yield database
    await database.dispose()


class TakenError(ConflictError):
    code = "test_taken"


TAKEN = {"uq_users_email_key": TakenError}


async def count_users(database: Database) -> int:
    async with database.read_sessions() as session:
        return await session.scalar(select(func.count()).select_from(User)) or 0


async def test_an_insert_returns_the_row_with_generated_values(database: Database, session: WriteSession) -> None:
    user = await crud.insert_or_none(session, User, VALUES, unique=[User.email_key])
    await session.commit()

    assert user is not None
    assert (user.version, user.role, user.is_active) == (1, "user", True)
    assert user.created_at.utcoffset() == timedelta(0)
    async with database.sessions() as other:
        assert await other.get(User, user.id) is not None


async def test_an_insert_of_an_existing_value_returns_none_and_the_transaction_stays_usable(
    session: WriteSession,
) -> None:
    first = await crud.insert_or_none(session, User, VALUES, unique=[User.email_key])

    second = await crud.insert_or_none(session, User, {**VALUES, "email": "ADA@x.co"}, unique=[User.email_key])

    assert first is not None
    assert second is None
    assert await session.scalar(select(User.email)) == "Ada@example.com"


async def test_a_violated_check_constraint_raises_an_error(session: WriteSession) -> None:
    with pytest.raises(IntegrityError, match="ck_users_role"):
        await crud.insert_or_none(session, User, {**VALUES, "role": "emperor"}, unique=[User.email_key])


async def test_a_violated_unique_constraint_on_another_column_raises_an_error(session: WriteSession) -> None:
    user = await make_user(session)

    with pytest.raises(IntegrityError, match="pk_users"):
        await crud.insert_or_none(session, User, {**VALUES, "id": user.id}, unique=[User.email_key])


async def test_inserting_does_not_commit(database: Database) -> None:
    async with database.sessions() as session:
        await crud.insert_or_none(session, User, VALUES, unique=[User.email_key])

    assert await count_users(database) == 0


async def test_concurrent_inserts_of_one_value_make_one_row_and_no_error(race_database: Database) -> None:
    start = asyncio.Barrier(RACERS)

    async def insert() -> User | None:
        async with race_database.begin() as session:
            await session.execute(select(1))
            await start.wait()
            user = await crud.insert_or_none(session, User, VALUES, unique=[User.email_key])
            # The transactions of the other calls are not aborted.
            assert await session.scalar(select(func.count()).select_from(User)) == 1
            return user

    winners = [user for user in await asyncio.gather(*(insert() for _ in range(RACERS))) if user is not None]

    assert len(winners) == 1
    assert await count_users(race_database) == 1


async def test_a_change_increments_the_version_and_updates_the_instant(
    database: Database, session: WriteSession
) -> None:
    user = await make_user(session, full_name="Ada")
    await session.commit()
    before = user.updated_at

    changed = await crud.change(session, User, user.id, {"full_name": "Ada Lovelace"})
    await session.commit()

    assert changed is user
    assert (user.full_name, user.version) == ("Ada Lovelace", 2)
    assert user.updated_at >= before
    async with database.read_sessions() as other:
        row = await other.get(User, user.id)
        assert row is not None
        assert (row.full_name, row.version) == ("Ada Lovelace", 2)


async def test_a_change_stores_its_own_instant(race_database: Database) -> None:
    async with race_database.begin() as session:
        user = await make_user(session)

    async with race_database.begin() as session:
        changed = await crud.change(session, User, user.id, {"full_name": "x"})

    assert changed is not None
    assert changed.created_at == user.created_at
    assert changed.updated_at > user.updated_at


async def test_changing_a_missing_row_returns_none(session: WriteSession) -> None:
    assert await crud.change(session, User, uuid4(), {"full_name": "x"}) is None


async def test_an_instance_loaded_before_a_change_shows_the_new_values(session: WriteSession) -> None:
    user = await make_user(session)
    await session.execute(text("UPDATE users SET role = 'admin', version = 7"))

    await crud.change(session, User, user.id, {"full_name": "x"})

    assert (user.role, user.version, user.full_name) == ("admin", 8, "x")


async def test_changing_one_row_does_not_change_others(session: WriteSession) -> None:
    user, other = await make_user(session), await make_user(session)

    await crud.change(session, User, user.id, {"full_name": "x"})
    await session.refresh(other)

    assert (other.full_name, other.version) == (None, 1)


async def test_concurrent_changes_each_increment_the_version(race_database: Database) -> None:
    async with race_database.begin() as session:
        user = await make_user(session)

    async def change() -> None:
        async with race_database.begin() as session:
            await crud.change(session, User, user.id, {"full_name": "x"})

    await asyncio.gather(*(change() for _ in range(RACERS)))

    async with race_database.read_sessions() as reader:
        assert await reader.scalar(select(User.version)) == 1 + RACERS


async def test_a_change_to_a_taken_value_raises_the_given_error_and_the_transaction_stays_usable(
    database: Database, session: WriteSession
) -> None:
    await make_user(session, email="ada@x.co")
    user = await make_user(session, email="bob@x.co")
    await crud.change(session, User, user.id, {"full_name": "Bob"})

    with pytest.raises(TakenError) as caught:
        async with crud.on_unique_violation(session, TAKEN):
            await crud.change(session, User, user.id, {"email_key": "ada@x.co"})
    await session.commit()

    assert isinstance(caught.value.__cause__, IntegrityError)
    async with database.read_sessions() as reader:
        row = await reader.get(User, user.id)
        assert row is not None
        assert (row.full_name, row.email_key, row.version) == ("Bob", "bob@x.co", 2)


async def test_a_write_without_a_violation_happens(database: Database, session: WriteSession) -> None:
    user = await make_user(session, email="bob@x.co")

    async with crud.on_unique_violation(session, TAKEN):
        await crud.change(session, User, user.id, {"email_key": "ada@x.co"})
    await session.commit()

    async with database.read_sessions() as reader:
        assert await reader.scalar(select(User.email_key)) == "ada@x.co"


async def test_an_added_row_with_a_taken_value_raises_the_given_error(
    database: Database, session: WriteSession
) -> None:
    await make_user(session, email="ada@x.co")

    with pytest.raises(TakenError):
        async with crud.on_unique_violation(session, TAKEN):
            session.add(User(email="ADA@x.co", email_key="ada@x.co"))
    await session.commit()

    assert await count_users(database) == 1


async def test_a_violation_of_another_constraint_stays_what_it_is(session: WriteSession) -> None:
    user = await make_user(session)
    violations: list[tuple[dict[str, Any], str]] = [({"role": "king"}, "ck_users_role"), ({"email": None}, "email")]

    for values, name in violations:
        with pytest.raises(IntegrityError, match=name):
            async with crud.on_unique_violation(session, TAKEN):
                await crud.change(session, User, user.id, values)
    await session.refresh(user)

    assert user.role == "user"


async def test_of_concurrent_changes_to_one_value_one_succeeds(race_database: Database) -> None:
    async with race_database.begin() as session:
        users = [(await make_user(session)).id for _ in range(RACERS)]
    start = asyncio.Barrier(RACERS)

    async def change(user_id: UUID) -> bool:
        async with race_database.begin() as session:
            await session.execute(select(1))
            await start.wait()
            try:
                async with crud.on_unique_violation(session, TAKEN):
                    await crud.change(session, User, user_id, {"email_key": "ada@x.co"})
            except TakenError:
                return False
            return True

    changed = await asyncio.gather(*map(change, users))

    assert sorted(changed) == [False] * (RACERS - 1) + [True]


async def test_removing_a_row_deletes_only_that_row(database: Database, session: WriteSession) -> None:
    user, other = await make_user(session), await make_user(session)

    assert await crud.remove(session, User, user.id)
    await session.commit()

    async with database.read_sessions() as reader:
        assert list(await reader.scalars(select(User.id))) == [other.id]


async def test_removing_a_missing_row_returns_false(session: WriteSession) -> None:
    assert not await crud.remove(session, User, uuid4())


async def test_each_page_but_the_last_has_a_next_position(session: WriteSession) -> None:
    emails = [(await make_user(session, email=f"{letter}@x.co")).email for letter in "abcde"]
    order = Order((User.email_key,))

    first, middle = await crud.page(session, select(User), PageRequest(order, 3))
    second, end = await crud.page(session, select(User), PageRequest(order, 3, middle))

    assert [user.email for user in first] == emails[:3]
    assert [user.email for user in second] == emails[3:]
    assert end is None


async def test_a_page_that_ends_with_the_last_row_has_no_next_position(session: WriteSession) -> None:
    for letter in "abc":
        await make_user(session, email=f"{letter}@x.co")

    rows, following = await crud.page(session, select(User.email_key), PageRequest(Order((User.email_key,)), 3))

    assert len(rows) == 3
    assert following is None


async def test_an_empty_table_has_one_empty_page(session: WriteSession) -> None:
    assert await crud.page(session, select(User), PageRequest(Order((User.email_key,)), 3)) == ([], None)


async def test_the_rows_of_a_page_have_the_columns_of_the_statement(session: WriteSession) -> None:
    user = await make_user(session, email="a@x.co")
    order = Order((User.email_key,))

    for statement, expected in [
        (select(User), [user]),
        (select(User.email), [("a@x.co",)]),
        (select(User.email, User.role), [("a@x.co", "user")]),
        (select(User, User.role.label("title")), [(user, "user")]),
    ]:
        rows, _ = await crud.page(session, statement, PageRequest(order, 3))
        offset_rows, total = await crud.offset_page(session, statement, OffsetRequest(order, 3))

        assert list(rows) == list(offset_rows) == expected
        assert total == 1


async def test_a_page_and_its_total_take_one_statement(database: Database, session: WriteSession) -> None:
    for letter in "abc":
        await make_user(session, email=f"{letter}@x.co")
    order = Order((User.email_key,))

    with counted(database) as statements:
        rows, total = await crud.offset_page(session, select(User.email), OffsetRequest(order, 2))
    with counted(database) as beyond:
        assert await crud.offset_page(session, select(User.email), OffsetRequest(order, 2, 4)) == ([], 3)

    assert ([row.email for row in rows], total) == (["a@x.co", "b@x.co"], 3)
    assert (len(statements), len(beyond)) == (1, 2)


@contextmanager
def counted(database: Database) -> Iterator[list[str]]:
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    yield statements
    event.remove(database.engine.sync_engine, "before_cursor_execute", note)
