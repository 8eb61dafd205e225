"""An attribute that is not loaded raises an error that says what to do, instead of `MissingGreenlet`."""

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import ForeignKey, inspect, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload, undefer

from app.core.db import crud, database
from app.core.db.database import Database, NotLoadedError, WriteSession
from app.core.schemas.fields import Answer

KINDS = pytest.mark.parametrize("kind", ["sessions", "read_sessions", "stream_sessions"])


class Shelves(DeclarativeBase):
    """A base of its own, so that the schema of the application stays the same."""


class Shelf(Shelves):
    __tablename__ = "test_shelves"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]
    history: Mapped[str] = mapped_column(deferred=True)
    room_id: Mapped[int | None] = mapped_column(ForeignKey("test_rooms.id"))
    version: Mapped[int] = mapped_column(default=1)
    room: Mapped["Room | None"] = relationship()
    books: Mapped[list["Book"]] = relationship(back_populates="shelf")


class Room(Shelves):
    __tablename__ = "test_rooms"

    id: Mapped[int] = mapped_column(primary_key=True)


class Book(Shelves):
    __tablename__ = "test_books"

    id: Mapped[int] = mapped_column(primary_key=True)
    shelf_id: Mapped[int] = mapped_column(ForeignKey("test_shelves.id"))
    shelf: Mapped[Shelf] = relationship(back_populates="books")


class ShelfRead(Answer):
    label: str
    books: list[str]


@pytest.fixture
async def shelves(database: Database, session: WriteSession) -> AsyncIterator[Database]:
    await (await session.connection()).run_sync(Shelves.metadata.create_all)
    session.add_all([Shelf(id=1, label="A", history="long", books=[Book(id=1)], room=Room(id=1)), Room(id=2)])
    await session.commit()
    yield database
    await (await session.connection()).run_sync(Shelves.metadata.drop_all)


def expire(session: Any, shelf: Shelf) -> str:
    session.expire(shelf)
    return shelf.label


USES: dict[str, tuple[Callable[[Any, Shelf, Book], Any], list[str]]] = {
    "one to many": (
        lambda _, shelf, __: shelf.books,
        ["Shelf.books", "selectinload(Shelf.books)", "session.refresh(..., ['books'])"],
    ),
    "many to one": (lambda _, __, book: book.shelf, ["Book.shelf", "selectinload(Book.shelf)"]),
    "deferred column": (lambda _, shelf, __: shelf.history, ["Shelf", "undefer", "session.refresh"]),
    "expired column": (lambda session, shelf, __: expire(session, shelf), ["Shelf", "undefer", "session.refresh"]),
}


@KINDS
@pytest.mark.parametrize("use", USES)
async def test_an_attribute_that_is_not_loaded_raises_an_error_that_says_what_to_do(
    shelves: Database, kind: str, use: str
) -> None:
    act, words = USES[use]
    async with getattr(shelves, kind)() as session:
        book = await session.scalar(select(Book))
        async with getattr(shelves, kind)() as other:
            shelf = await other.scalar(select(Shelf))

            with pytest.raises(NotLoadedError) as caught:
                act(other, shelf, book)

            assert [word for word in [*words, "crud.py", "docs/recipes.md"] if word not in str(caught.value)] == []
            # The session is still usable.
            assert await other.scalar(select(Shelf.label)) == "A"


async def test_a_response_built_from_an_unloaded_attribute_names_it(shelves: Database) -> None:
    async with shelves.read_sessions() as session:
        shelf = await session.scalar(select(Shelf))

        with pytest.raises(ValidationError, match=r"NotLoadedError: Shelf\.books is not loaded"):
            ShelfRead.model_validate(shelf)


async def test_an_attribute_that_a_rollback_has_expired_raises_an_error(shelves: Database) -> None:
    async with shelves.sessions() as session:
        shelf = await session.get_one(Shelf, 1)
        await session.rollback()

        with pytest.raises(NotLoadedError, match="rollback"):
            assert shelf.label

        await session.refresh(shelf)
        assert shelf.label == "A"


async def test_a_commit_leaves_the_attributes_loaded(shelves: Database) -> None:
    async with shelves.sessions() as session:
        shelf = await session.get_one(Shelf, 1)
        shelf.label = "B"
        await session.commit()

        assert shelf.label == "B"


async def test_a_change_leaves_loaded_what_it_does_not_change(shelves: Database) -> None:
    model: Any = Shelf
    options = (selectinload(Shelf.books), selectinload(Shelf.room), undefer(Shelf.history))
    async with shelves.sessions() as session:
        shelf = await session.get_one(Shelf, 1, options=options)
        key: Any = shelf.id

        assert await crud.change(session, model, key, {"label": "B"}) is shelf
        assert (shelf.label, shelf.version, len(shelf.books), shelf.history) == ("B", 2, 1, "long")
        assert shelf.room is not None
        assert shelf.room.id == 1

        await crud.change(session, model, key, {"room_id": 2, "history": "short"})
        assert len(shelf.books) == 1
        for attribute in ("room", "history"):
            with pytest.raises(NotLoadedError):
                getattr(shelf, attribute)
        assert list(session.dirty) == []
        await session.commit()

    async with shelves.read_sessions() as reader:
        read = await reader.get_one(Shelf, 1, options=options)
        assert (read.label, read.version, read.room_id, read.history, len(read.books)) == ("B", 3, 2, "short", 1)


@KINDS
async def test_statements_load_attributes(shelves: Database, kind: str) -> None:
    statement = select(Shelf).options(selectinload(Shelf.books).selectinload(Book.shelf), undefer(Shelf.history))
    async with getattr(shelves, kind)() as session:
        shelf = await session.scalar(statement)

        assert shelf.history == "long"
        assert [book.shelf for book in shelf.books] == [shelf]


async def test_attributes_are_loaded_in_run_sync(shelves: Database) -> None:
    async with shelves.sessions() as session:
        shelf = await session.get_one(Shelf, 1)

        assert await session.run_sync(lambda _: len(shelf.books)) == 1


async def test_a_refresh_loads_the_named_attributes(shelves: Database) -> None:
    async with shelves.sessions() as session:
        shelf = await session.get_one(Shelf, 1)

        await session.refresh(shelf, ["history", "books"])

        assert (shelf.history, len(shelf.books)) == ("long", 1)


async def test_a_statement_outside_of_the_async_session_raises_an_error(shelves: Database) -> None:
    async with shelves.sessions() as session:
        with pytest.raises(NotLoadedError, match="session"):
            session.sync_session.execute(select(1))


PROGRAM = """
from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, WriteOnlyMapped, mapped_column, relationship
from app.core.config import DatabaseSettings
from app.core.db.database import Database, VersionedBase

class Shelf(VersionedBase):
    __tablename__ = "shelves"
{relationships}

class Book(VersionedBase):
    __tablename__ = "books"
    shelf_id: Mapped[int] = mapped_column(ForeignKey("shelves.id"))

Database(DatabaseSettings(url="postgresql://nobody@127.0.0.1:1/none"))
"""


def start(*relationships: str) -> subprocess.CompletedProcess[str]:
    """Create a database with these relationships of `Shelf` in a process of its own, because a failure is final."""
    program = PROGRAM.format(relationships="\n".join(f"    {one}" for one in relationships))
    return subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, text=True)


def test_relationships_that_load_nothing_on_access_are_accepted() -> None:
    kinds = [None, "raise", "raise_on_sql", "selectin", "joined"]
    options = [f'viewonly=True, lazy="{kind}"' if kind else "viewonly=True" for kind in kinds]

    done = start(
        *(f'books{number}: Mapped[list["Book"]] = relationship({one})' for number, one in enumerate(options)),
        'all_books: WriteOnlyMapped["Book"] = relationship()',
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("lazy", ["immediate", "subquery"])
def test_a_relationship_with_hidden_statements_stops_the_start(lazy: str) -> None:
    done = start(f'books: Mapped[list["Book"]] = relationship(lazy="{lazy}")')

    assert done.returncode == 1
    assert f'Shelf.books is declared with lazy="{lazy}"' in done.stderr
    assert 'use lazy="raise"' in done.stderr


def test_the_check_of_a_model_names_the_relationship() -> None:
    class Hidden(DeclarativeBase):
        """A base of its own, because a refused model stays in its base."""

    class Case(Hidden):
        __tablename__ = "cases"
        id: Mapped[int] = mapped_column(primary_key=True)
        parent_id: Mapped[int] = mapped_column(ForeignKey("cases.id"))
        parent: Mapped["Case"] = relationship(lazy="immediate", remote_side="Case.id")

    database.refuse_other_loading(inspect(Shelf), Shelf)
    with pytest.raises(ValueError, match=r'Case\.parent is declared with lazy="immediate"'):
        database.refuse_other_loading(inspect(Case), Case)
