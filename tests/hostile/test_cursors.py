"""Cursors with a valid signature and invalid contents, for example from a release with other sort orders."""

import json
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from unittest.mock import patch
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.core.db.keyset import CursorSigner, InvalidCursorError, Order, Position
from tests.core.recording import Recording
from tests.hostile.attack import CANARY, Attack, Reply, Target, check_refusals

# Invalid values for every column.
INVALID_VALUES: list[Any] = [
    None, True, False, 0, 1, 2**63, -(2**63) - 1, 10**400, 1.5, float("nan"), float("inf"), [], [["1"]], {}, {"a": "b"},
    "\0", f"{CANARY}\0", "\ud800", "\udfff\ud800",
]  # fmt: skip
# Texts that are invalid for every column except text columns.
INVALID_TEXTS = [
    "", "NaN", "null", str(2**63), "9" * 4000, "-1", "1e309", "0x10", "\uffff", "infinity", "2026-01-01T00:00:00Z", "0001-01-01",
    "9999-12-31T23:59:59.999999-12:00", "0001-01-01T00:00:00+12:00", "9999-12-31T23:59:59.999999", "10000-01-01T00:00:00+00:00",
    "2026-W01-1T00:00:00+00:00", "2026-02-30T00:00:00+00:00", "{0192f0c1-a2b3-7c4d-8e5f-60718293a4b5}",
    "0192F0C1-A2B3-7C4D-8E5F-60718293A4B5", "0" * 31, "x" * 4000,
]  # fmt: skip
RIGHT = {datetime: "2026-01-01T00:00:00+00:00", UUID: "0192f0c1-a2b3-7c4d-8e5f-60718293a4b5"}
DOCUMENTS = [
    b"", b"null", b"{}", b"0", b'"ab"', b"[]", b"[[]]", b"[", b"[" * 5000, b"]" * 9, b"\xff", b"NaN", b"[NaN,NaN]", b"[Infinity,1]",
    b"9" * 5000, b"[1e400,1e400]", b'["\\ud800","\\udc00"]', b"[" * 900 + b"]" * 900, b"\x00", b'{"a":1,"a":2}',
]  # fmt: skip


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
)


def lists(target: Target) -> list[str]:
    """Return the address of each list, once per sort order."""
    found = []
    for path, operations in target.contract["paths"].items():
        parameters = {one["name"]: one["schema"] for one in operations.get("get", {}).get("parameters", ())}
        if "cursor" in parameters:
            sorts = parameters["sort"]["enum"] if "sort" in parameters else [None]
            found += [f"{path}?sort={sort}&" if sort else f"{path}?" for sort in sorts]
    return found


async def ask(target: Target, address: str, cursor: str) -> Reply:
    return await target.send(Attack("a cursor", 400, "", f"{address}cursor={cursor}", "GET", headers=(), who="admin"))


async def binding_of(target: Target, address: str) -> tuple[str, Order]:
    """Return the binding and the order with which the application reads the cursors of a list."""
    seen: list[tuple[str, Order]] = []

    def note(_signer: object, _cursor: str, order: Order, *, binding: str) -> Position:
        seen.append((binding, order))
        raise InvalidCursorError

    with patch.object(CursorSigner, "decode", note):
        await ask(target, address, "x")
    return seen[0]


def signed(target: Target, binding: str, content: bytes) -> str:
    return urlsafe_b64encode(b"\x01" + target.signer._mac(content, binding) + content).rstrip(b"=").decode()


def written(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def wrong_contents(order: Order) -> Iterator[bytes]:
    """Return contents that are not a position in this order: another form, another length, or one invalid value."""
    values = [RIGHT.get(column.type.python_type, "a") for column in order.columns]
    yield from DOCUMENTS
    yield written(values[:-1])
    yield written([*values, "1"])
    yield written(dict.fromkeys(values))
    for place, column in enumerate(order.columns):
        for value in [*INVALID_VALUES, *(INVALID_TEXTS if column.type.python_type is not str else ())]:
            yield written([*values[:place], value, *values[place + 1 :]])


async def test_every_list_refuses_a_signed_cursor_with_invalid_contents(
    target: Target, recording: Recording, subtests: pytest.Subtests
) -> None:
    attacks: list[Attack] = []
    for address in lists(target):
        binding, order = await binding_of(target, address)
        for content in wrong_contents(order):
            query = f"{address}cursor={signed(target, binding, content)}"
            attacks.append(
                Attack(f"{address} {content[:60]!r}", 400, "invalid-cursor", query, "GET", headers=(), who="admin")
            )

    assert attacks
    await check_refusals(target, recording, subtests, attacks)


async def test_every_list_accepts_a_signed_cursor_with_valid_contents(target: Target) -> None:
    for address in lists(target):
        binding, order = await binding_of(target, address)
        values = [RIGHT.get(column.type.python_type, "a") for column in order.columns]

        assert (await ask(target, address, signed(target, binding, written(values)))).status == 200


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
async def test_no_content_of_a_signed_cursor_causes_500(target: Target, data: st.DataObject) -> None:
    address = data.draw(st.sampled_from(lists(target)))
    binding, order = await binding_of(target, address)
    texts = [ANYTHING | st.just(RIGHT.get(column.type.python_type, "a")) for column in order.columns]
    content = data.draw(st.tuples(*texts) | ANYTHING)

    reply = await ask(target, address, signed(target, binding, written(content)))

    assert reply.status == 200 or (reply.status, reply.document["code"]) == (400, "invalid_cursor")
