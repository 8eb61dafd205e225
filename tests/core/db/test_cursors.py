"""Cursors for every sortable column type: the pages contain each row once, in the order of the database."""

import json
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Identity, MetaData, insert, select, types
from sqlalchemy.dialects.postgresql import ARRAY, CIDR, CITEXT, ENUM, INET, JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.core.db import crud
from app.core.db.database import Database, WriteSession
from app.core.db.keyset import CursorSigner, InvalidCursorError, Order, PageRequest, Position, after

BINDING = "a list"
SIGNER = CursorSigner(b"k" * 32)


class Base(DeclarativeBase):
    """A separate base class, because these tables exist only in this test."""

    metadata = MetaData()


class Size(Enum):
    """PostgreSQL sorts in the order of the declaration, which differs from that of the names and values."""

    SMALL = "s"
    MEDIUM = "m"
    LARGE = "l"


class Colour(StrEnum):
    RED = "r"
    BLUE = "b"


# The driver converts the first and the last date and instant to minus infinity and infinity.
_DAYS = st.dates(date(1, 1, 2), date(9999, 12, 30))
_LOCAL = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30))  # noqa: DTZ001  # Without a zone on purpose.
_OFFSETS = st.integers(-15 * 60, 15 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
_SPECIAL = [
    Decimal(text) for text in ("NaN", "Infinity", "-Infinity", "1.0", "1.00", "-0.0", "1E+30", "1E-30", f"1{'0' * 200}")
]
KINDS: dict[str, tuple[types.TypeEngine[Any], st.SearchStrategy[Any]]] = {
    "boolean": (types.Boolean(), st.booleans()),
    "smallint": (types.SmallInteger(), st.integers(-(2**15), 2**15 - 1)),
    "integer": (types.Integer(), st.integers(-(2**31), 2**31 - 1)),
    "bigint": (types.BigInteger(), st.integers(-(2**63), 2**63 - 1)),
    "double": (types.Double(), st.floats()),
    "float": (types.Float(), st.floats()),
    "real": (types.REAL(), st.floats(width=32)),
    "narrow": (types.Float(precision=24), st.floats(width=32)),
    "numeric": (types.Numeric(), st.decimals(allow_nan=False, allow_infinity=False) | st.sampled_from(_SPECIAL)),
    "money": (types.Numeric(10, 2), st.decimals(-(10**7), 10**7, places=2)),
    "date": (types.Date(), _DAYS),
    "time": (types.Time(), st.times()),
    "zoned_time": (types.Time(timezone=True), st.times(timezones=_OFFSETS)),
    "instant": (types.DateTime(timezone=True), _LOCAL.map(lambda one: one.replace(tzinfo=UTC))),
    "timestamp": (types.DateTime(), _LOCAL),
    "uuid": (types.Uuid(), st.uuids()),
    "enum": (types.Enum(Size, name="keyset_type_size"), st.sampled_from(Size)),
    "word": (types.Enum(Size, native_enum=False, name="keyset_type_word"), st.sampled_from(Size)),
    "colour": (
        ENUM(Colour, name="keyset_type_colour", values_callable=lambda colours: [one.value for one in colours]),
        st.sampled_from(Colour),
    ),
    "plain": (types.Enum("late", "early", name="keyset_type_plain"), st.sampled_from(["late", "early"])),
    "text": (types.Text(collation="C"), _TEXTS),
    "words": (types.Text(), _TEXTS),
    "varchar": (types.String(20), _TEXTS),
    "bytes": (types.LargeBinary(), st.binary(max_size=20)),
}


def _model(name: str, kind: types.TypeEngine[Any]) -> Any:
    columns = {
        "id": mapped_column(types.BigInteger, Identity(), primary_key=True),
        "value": mapped_column(kind, nullable=False),
    }
    return type(name.title(), (Base,), {"__tablename__": f"keyset_{name}", **columns})


MODELS = {name: _model(name, kind) for name, (kind, _) in KINDS.items()}


@pytest.fixture(scope="module")
async def connection(worker_database: Database) -> AsyncIterator[AsyncConnection]:
    """A connection with a table for each type, which is rolled back at the end."""
    async with worker_database.engine.connect() as connection:
        transaction = await connection.begin()
        await connection.run_sync(Base.metadata.create_all)
        yield connection
        await transaction.rollback()


async def walk(session: WriteSession, order: Order, limit: int) -> list[int]:
    """Return the ids on all pages. Each position is written to a cursor and read back."""
    walked: list[int] = []
    position: Position | None = None
    id_, value = reversed(order.columns)
    while True:
        found, following = await crud.page(session, select(id_, value), PageRequest(order, limit, position))
        walked += [row.id for row in found]
        if following is None:
            return walked
        position = SIGNER.decode(SIGNER.encode(following, binding=BINDING), order, binding=BINDING)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
async def test_pages_sorted_by_any_type_contain_every_row_once_in_database_order(
    connection: AsyncConnection, name: str, descending: bool, data: st.DataObject
) -> None:
    model = MODELS[name]
    values = data.draw(st.lists(KINDS[name][1], min_size=1, max_size=12))
    limit = data.draw(st.integers(1, len(values)))
    order = Order((model.value, model.id), descending=descending)
    async with connection.begin_nested() as savepoint:
        async with WriteSession(connection) as session:
            for value in values:
                await session.execute(insert(model).values(value=value))
            whole = [row.id for row in await session.execute(after(select(model.id, model.value), order, None))]

            assert await walk(session, order, limit) == whole
        await savepoint.rollback()

    assert len(whole) == len(values)


class Shouted(types.TypeDecorator[str]):
    """A custom type of an adopter."""

    impl = types.String
    cache_ok = True


@pytest.mark.parametrize(
    "kind",
    [
        JSONB(), ARRAY(types.Integer), INET(), CIDR(), CITEXT(), types.CHAR(5), types.Interval(),
        types.Numeric(asdecimal=False), types.Float(asdecimal=True), types.Uuid(as_uuid=False), Shouted(), types.PickleType(),
    ],
    ids=repr,
)  # fmt: skip
def test_an_unsupported_type_is_rejected_when_the_order_is_declared(kind: types.TypeEngine[Any]) -> None:
    class Own(DeclarativeBase):
        pass

    class Thing(Own):
        __tablename__ = "things"
        id: Mapped[int] = mapped_column(primary_key=True)
        value: Mapped[Any] = mapped_column(kind, nullable=False)

    with pytest.raises(
        TypeError, match=r"Thing\.value is of type .*, which cursors do not support; sort by .* Boolean, "
    ):
        Order((Thing.value, Thing.id))


def forged(content: bytes) -> str:
    """Sign content that no release has ever written."""
    return urlsafe_b64encode(b"\x01" + SIGNER._mac(content, BINDING) + content).rstrip(b"=").decode()


# Texts that Python or PostgreSQL would reject, or read as another value.
WRONG: dict[str, list[str]] = {
    "boolean": ["True", "1", "", "t"],
    "smallint": ["32768", "-32769", "1_0", " 1", "+1", "01", "-0", "1.0", "\u0661", "9" * 5000],
    "integer": [str(2**31), str(-(2**31) - 1)],
    "bigint": [str(2**63), str(-(2**63) - 1), "1e3", "NaN"],
    "double": ["NaN", "1", "1e400", "Infinity", "0x1", "1_0.0"],
    "real": ["1e+300", "0.1"],
    "narrow": ["1e+300", "0.1"],
    "numeric": ["nan", "sNaN", "-NaN", "NaN1", "1E+999999", "1E-99999", "1_0", "", "Inf"],
    "money": ["123456789.00", "0.001", "sNaN", "Infinity"],
    "date": ["0000-01-01", "10000-01-01", "20260101", "2026-W01-1", "infinity", "2026-02-30"],
    "time": ["24:00:00", "25:00:00", "10:00", "10:00:00+00:00", "10:00:00Z"],
    "zoned_time": ["10:00:00", "10:00:00+23:00", "10:00:00+01:00:00.000001"],
    "instant": [
        "2026-01-01T00:00:00", "9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00", "2026-01-01T00:00:00Z",
        "2026-01-01 00:00:00+00:00", "2026-01-01T00:00:00+01:00", "1767225600",
    ],
    "timestamp": ["2026-01-01T00:00:00+00:00", "2026-01-01"],
    "uuid": ["", "0192F0C1-A2B3-7C4D-8E5F-60718293A4B5", "{0192f0c1-a2b3-7c4d-8e5f-60718293a4b5}", "0"],
    "enum": ["s", "SMALL ", "HUGE", "__class__"],
    "word": ["s", "mro"],
    "colour": ["r", "Colour.RED"],
    "plain": ["LATE", ""],
    "text": ["\0", "a\0b", "\ud800"],
    "words": ["\0"],
    "varchar": ["\0"],
    "bytes": ["0", "zz", "00 00", "AB"],
}  # fmt: skip


def test_every_type_has_an_invalid_text() -> None:
    # The texts of `double` cover `float`, which is the same type.
    assert set(WRONG) | {"float"} == set(KINDS)


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in WRONG.items() for text in texts])
def test_an_invalid_text_for_the_column_makes_the_cursor_invalid(name: str, text: str) -> None:
    order = Order((MODELS[name].value, MODELS[name].id))

    with pytest.raises(InvalidCursorError):
        SIGNER.decode(forged(json.dumps([text, "1"]).encode()), order, binding=BINDING)


@given(
    content=st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters()),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
    ),
    name=st.sampled_from(sorted(KINDS)),
)
def test_any_signed_content_is_either_valid_or_an_invalid_cursor(content: object, name: str) -> None:
    order = Order((MODELS[name].value, MODELS[name].id))
    try:
        read = SIGNER.decode(forged(json.dumps(content).encode()), order, binding=BINDING)
    except InvalidCursorError:
        return

    assert SIGNER.encode(read, binding=BINDING) == forged(json.dumps(content, separators=(",", ":")).encode())


@pytest.mark.parametrize(
    "content",
    [b"", b"[", b"\xff", b"null", b"{}", b'"ab"', b"[]", b'["1"]', b'["a","1","1"]', b'["a",1]', b'["a",null]', b'["a",["1"]]',
     b'["a",NaN]', b'{"a":1,"1":2}', b"[" * 5000, b"9" * 5000, b"[" + b"9" * 5000 + b"]"],
    ids=lambda content: content[:10],
)  # fmt: skip
def test_signed_content_in_another_format_is_an_invalid_cursor(content: bytes) -> None:
    with pytest.raises(InvalidCursorError):
        SIGNER.decode(forged(content), Order((MODELS["text"].value, MODELS["text"].id)), binding=BINDING)


def test_the_longest_value_of_an_index_fits_into_a_cursor() -> None:
    order = Order((MODELS["text"].value, MODELS["text"].id))
    position = ("\N{SNOWMAN}" * 900, 1)

    assert SIGNER.decode(SIGNER.encode(position, binding=BINDING), order, binding=BINDING) == position


def test_a_value_that_is_too_long_for_a_request_is_rejected() -> None:
    with pytest.raises(
        ValueError, match=r"a cursor of \d+ characters is too long for a request; sort by a column with shorter"
    ):
        SIGNER.encode(("x" * 10_000, 1), binding=BINDING)
