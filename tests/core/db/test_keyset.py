import json
import string
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from app.core.db import crud
from app.core.db.database import Database, WriteSession
from app.core.db.keyset import CursorSigner, InvalidCursorError, Order, PageRequest, Position, after, binding_of
from app.users.models import User
from tests.conftest import make_settings

START = datetime(2026, 1, 1, tzinfo=UTC)
KEY = b"k" * 32
BINDING = binding_of("/api/v1/users", [("sort", "created_at")])
BY_CREATION = Order((User.created_at, User.id))
NEWEST_FIRST = Order((User.created_at, User.id), descending=True)
BY_EMAIL = Order((User.email_key,))
BY_ROLE = Order((User.role, User.version, User.id), descending=True)
ORDERS = [BY_CREATION, NEWEST_FIRST, BY_EMAIL, Order((User.email_key,), descending=True), BY_ROLE]
POSITION = (START, UUID("0192f0c1-a2b3-7c4d-8e5f-60718293a4b5"))

# Few distinct instants, so that many rows have the same instant and the id decides.
row = st.integers(0, 3)
change_between_pages = st.one_of(st.tuples(st.just("insert"), row), st.tuples(st.just("delete"), st.integers(0, 99)))


@pytest.fixture(scope="module")
async def connection(worker_database: Database) -> AsyncIterator[AsyncConnection]:
    """A connection for all examples of hypothesis, rolled back at the end."""
    async with worker_database.engine.connect() as connection:
        transaction = await connection.begin()
        yield connection
        await transaction.rollback()


async def add_user(session: WriteSession, minute: int) -> UUID:
    key = uuid7()
    values = {
        "id": key,
        "email": "x",
        "email_key": f"{minute}{key}",
        "created_at": START + timedelta(minutes=minute),
        "role": "admin" if minute % 2 else "user",
        "version": minute,
    }
    await session.execute(insert(User).values(values))
    return key


@settings(max_examples=40, deadline=None)
@given(
    order=st.sampled_from(ORDERS),
    limit=st.integers(1, 7),
    rows=st.lists(row, max_size=25),
    changes=st.lists(st.lists(change_between_pages, max_size=3), max_size=8),
)
async def test_the_pages_contain_every_remaining_row_exactly_once(
    connection: AsyncConnection,
    order: Order,
    limit: int,
    rows: list[int],
    changes: list[list[tuple[str, int]]],
) -> None:
    signer = CursorSigner(KEY)
    position: Position | None = None
    visited: list[UUID] = []
    async with connection.begin_nested() as savepoint:
        async with WriteSession(connection) as session:
            present = [await add_user(session, minute) for minute in rows]
            staying = set(present)
            for changes_here in [*changes, *([[]] * 200)]:
                found, following = await crud.page(
                    session, select(User.id, *order.columns), PageRequest(order, limit, position)
                )
                assert len(found) <= limit
                visited += [one[0] for one in found]
                if following is None:
                    break
                assert len(found) == limit
                position = signer.decode(signer.encode(following, binding=BINDING), order, binding=BINDING)
                for what, value in changes_here:
                    if what == "insert":
                        present.append(await add_user(session, value))
                    elif present:
                        gone = present.pop(value % len(present))
                        staying.discard(gone)
                        await session.execute(delete(User).where(User.id == gone))
        await savepoint.rollback()

    assert len(visited) == len(set(visited))
    assert staying <= set(visited)


@settings(max_examples=20, deadline=None)
@given(order=st.sampled_from(ORDERS), rows=st.lists(row, min_size=1, max_size=20), limit=st.integers(1, 25))
async def test_the_pages_together_are_the_sorted_list(
    connection: AsyncConnection, order: Order, rows: list[int], limit: int
) -> None:
    walked: list[UUID] = []
    position: Position | None = None
    async with connection.begin_nested() as savepoint:
        async with WriteSession(connection) as session:
            for minute in rows:
                await add_user(session, minute)
            whole = [user.id for user in await session.scalars(after(select(User), order, None))]
            while True:
                found, position = await crud.page(session, select(User), PageRequest(order, limit, position))
                walked += [user.id for user in found]
                if position is None:
                    break
        await savepoint.rollback()

    assert walked == whole


async def test_an_order_by_a_nullable_column_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"User\.full_name is nullable"):
        Order((User.full_name, User.id))


def test_a_cursor_preserves_values_of_every_type() -> None:
    order = Order((User.created_at, User.id, User.version, User.email_key))
    position = (datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC), uuid7(), 2**62, 'ü"\\ \x01')
    signer = CursorSigner(KEY)

    assert signer.decode(signer.encode(position, binding=BINDING), order, binding=BINDING) == position


@pytest.mark.parametrize("bit", [0, 3, 8, 70, 135, 136, 300])
def test_a_cursor_with_any_flipped_bit_is_rejected(bit: int) -> None:
    signer = CursorSigner(KEY)
    cursor = signer.encode(POSITION, binding=BINDING)
    raw = bytearray(_decoded(cursor))
    raw[bit // 8] ^= 1 << (bit % 8)

    with pytest.raises(InvalidCursorError):
        signer.decode(_encoded(bytes(raw)), BY_CREATION, binding=BINDING)


def test_a_truncated_cursor_is_rejected() -> None:
    signer = CursorSigner(KEY)
    cursor = signer.encode(POSITION, binding=BINDING)

    for length in range(len(cursor)):
        with pytest.raises(InvalidCursorError):
            signer.decode(cursor[:length], BY_CREATION, binding=BINDING)


@pytest.mark.parametrize("binding", ["", binding_of("/api/v1/other", [("sort", "created_at")]), BINDING + " "])
def test_a_cursor_of_another_list_is_rejected(binding: str) -> None:
    signer = CursorSigner(KEY)

    with pytest.raises(InvalidCursorError):
        signer.decode(signer.encode(POSITION, binding=binding), BY_CREATION, binding=BINDING)


def test_a_cursor_signed_with_another_key_is_rejected() -> None:
    cursor = CursorSigner(b"x" * 32).encode(POSITION, binding=BINDING)

    with pytest.raises(InvalidCursorError):
        CursorSigner(KEY).decode(cursor, BY_CREATION, binding=BINDING)


def _decoded(cursor: str) -> bytes:
    return urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))


def _encoded(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "====",
        "null",
        "[]",
        _encoded(b"null"),
        _encoded(b"\x01" + b"\x00" * 16 + b"[]"),
        _encoded(b"\x01" + b"\x00" * 16),
        _encoded(b"\x80\x04N."),
        _encoded(b"[" * 600),
        "A" * 1024,
        "A" * 10_240,
        "é" * 20,
        "\udc80",
        "١٢٣٤",
        "a b",
        "a\x00b",
        "a\nb",
        "ab+/",
    ],
)
def test_an_invalid_text_is_rejected_as_a_cursor(cursor: str) -> None:
    with pytest.raises(InvalidCursorError):
        CursorSigner(KEY).decode(cursor, BY_CREATION, binding=BINDING)


@pytest.mark.parametrize("spelling", ["{}=", "{}==", " {}", "{}\n", "{}A", "{} "])
def test_a_cursor_has_exactly_one_valid_encoding(spelling: str) -> None:
    signer = CursorSigner(KEY)
    cursor = signer.encode(POSITION, binding=BINDING)

    with pytest.raises(InvalidCursorError):
        signer.decode(spelling.format(cursor), BY_CREATION, binding=BINDING)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_unused_bits_at_the_end_of_a_cursor_must_be_zero(length: int) -> None:
    signer, order = CursorSigner(KEY), Order((User.email_key,))
    cursor = signer.encode(("x" * length,), binding=BINDING)
    twins = [cursor[:-1] + letter for letter in string.ascii_letters + string.digits + "-_" if letter != cursor[-1]]

    for twin in twins:
        with pytest.raises(InvalidCursorError):
            signer.decode(twin, order, binding=BINDING)


@pytest.mark.parametrize("order", [BY_EMAIL, Order((User.id, User.created_at)), BY_ROLE])
def test_a_cursor_from_a_release_with_other_sort_columns_is_rejected(order: Order) -> None:
    signer = CursorSigner(KEY)

    with pytest.raises(InvalidCursorError):
        signer.decode(signer.encode(POSITION, binding=BINDING), order, binding=BINDING)


def test_a_cursor_of_another_version_is_rejected() -> None:
    signer = CursorSigner(KEY)
    raw = _decoded(signer.encode(POSITION, binding=BINDING))

    with pytest.raises(InvalidCursorError):
        signer.decode(_encoded(b"\x02" + raw[1:]), BY_CREATION, binding=BINDING)


@given(st.text(max_size=200))
def test_any_other_text_is_an_invalid_cursor(cursor: str) -> None:
    with pytest.raises(InvalidCursorError):
        CursorSigner(KEY).decode(cursor, BY_CREATION, binding=BINDING)


def test_a_binding_distinguishes_names_from_values_and_ignores_their_order() -> None:
    assert binding_of("/x", [("a", "1"), ("b", "2")]) == binding_of("/x", [("b", "2"), ("a", "1")])
    assert binding_of("/x", [("a", "1&b=2")]) != binding_of("/x", [("a", "1"), ("b", "2")])
    assert binding_of("/x", []) != binding_of("/x/", [])


def _nodes(plan: dict[str, Any]) -> list[str]:
    return [plan["Node Type"], *(node for inner in plan.get("Plans", []) for node in _nodes(inner))]


async def test_first_and_deep_pages_start_in_the_index(clone_url: str) -> None:
    database = Database(make_settings(clone_url).database)
    async with database.begin() as session:
        await session.execute(
            text(
                "INSERT INTO users (id, email, email_key, created_at) "
                "SELECT gen_random_uuid(), n || '@x', n || '@x', timestamptz '2026-01-01Z' + (n / 7) * interval '1 s' "
                "FROM generate_series(1, 20000) AS n"
            )
        )
    async with database.engine.connect() as connection:
        await connection.execute(text("ANALYZE users"))
        await connection.commit()

    deep_position = (START + timedelta(seconds=1500), POSITION[1])
    plans = {}
    async with database.engine.connect() as connection:
        for order in (BY_CREATION, NEWEST_FIRST):
            for position in (None, deep_position):
                statement = after(select(User), order, position).limit(51)
                compiled = statement.compile(dialect=connection.dialect)
                parameters = tuple(compiled.params[name] for name in compiled.positiontup or ())
                explained = await connection.exec_driver_sql(
                    f"EXPLAIN (FORMAT JSON, ANALYZE, BUFFERS, TIMING OFF) {compiled.string}", parameters
                )
                plan = explained.scalar_one()
                plans[order.descending, position] = (json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]
    await database.dispose()

    assert [_nodes(plan) for plan in plans.values()] == [["Limit", "Index Scan"]] * 4
    touched = [plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] for plan in plans.values()]
    # A deep page reads as many blocks as the first one: it does not read the rows before it.
    assert max(touched) < 80
