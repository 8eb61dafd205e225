"""The format of refresh tokens: tokens that we make are parsed, and nothing else is accepted."""

import hashlib
import hmac
from base64 import urlsafe_b64decode
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.auth.sessions import refresh_tokens
from app.auth.sessions.refresh_tokens import Presented
from app.core.security.keys import KeyRing

PEPPERS = {0: b"\0" * 32, 1: b"\1" * 32, 255: b"\xff" * 64}
KEYS = KeyRing(signing={}, active="", peppers=PEPPERS, active_pepper=1, root=b"")
HIGHEST = 2**63 - 2

generations = st.integers(0, HIGHEST)
nonces = st.binary(min_size=32, max_size=32)
pepper_ids = st.sampled_from(sorted(PEPPERS))


def made(session_id: UUID, generation: int, pepper_id: int, nonce: bytes) -> str:
    return refresh_tokens.make(KEYS, session_id, generation=generation, pepper_id=pepper_id, nonce=nonce)


def believed(token: str, nonce: bytes) -> bool:
    presented = refresh_tokens.parse(token)
    return presented is not None and refresh_tokens.is_genuine(KEYS, presented, nonce)


@given(st.uuids(), generations, pepper_ids, nonces)
def test_a_token_contains_what_it_was_made_of(session_id: UUID, generation: int, pepper_id: int, nonce: bytes) -> None:
    token = made(session_id, generation, pepper_id, nonce)

    presented = refresh_tokens.parse(token)

    assert presented == Presented(session_id, generation, pepper_id, presented.mac if presented else b"")
    assert refresh_tokens.is_genuine(KEYS, presented, nonce)
    assert made(session_id, generation, pepper_id, nonce) == token


def test_a_token_has_the_specified_format() -> None:
    session_id, nonce = UUID(int=7), bytes(range(32))

    token = made(session_id, 3, 255, nonce)

    raw = urlsafe_b64decode(token.removeprefix("rt1."))
    message = b"rt1" + session_id.bytes + b"\0\0\0\0\0\0\0\3" + nonce
    assert raw == session_id.bytes + b"\0\0\0\0\0\0\0\3\xff" + hmac.digest(PEPPERS[255], message, hashlib.sha256)
    assert token.startswith("rt1.")
    assert len(token) == 80


@given(st.uuids(), generations, pepper_ids, nonces, st.data())
def test_a_token_with_a_changed_character_is_not_genuine(
    session_id: UUID, generation: int, pepper_id: int, nonce: bytes, data: st.DataObject
) -> None:
    token = made(session_id, generation, pepper_id, nonce)
    index = data.draw(st.integers(0, len(token) - 1))
    character = data.draw(st.characters().filter(lambda other: other != token[index]))

    changed = token[:index] + character + token[index + 1 :]

    assert not believed(changed, nonce)


@given(st.uuids(), generations, pepper_ids, nonces, nonces)
def test_the_nonce_of_another_session_verifies_nothing(
    session_id: UUID, generation: int, pepper_id: int, nonce: bytes, other: bytes
) -> None:
    token = made(session_id, generation, pepper_id, nonce)

    assert believed(token, other) == (nonce == other)


@given(st.uuids(), generations, nonces)
def test_another_pepper_verifies_nothing(session_id: UUID, generation: int, nonce: bytes) -> None:
    presented = refresh_tokens.parse(made(session_id, generation, 0, nonce))

    assert presented is not None
    for pepper_id in (1, 255, 2):
        assert not refresh_tokens.is_genuine(KEYS, replace(presented, pepper_id=pepper_id), nonce)


@given(st.uuids(), st.integers(0, HIGHEST - 1), nonces)
def test_the_mac_of_one_generation_is_not_that_of_the_next(session_id: UUID, generation: int, nonce: bytes) -> None:
    presented = refresh_tokens.parse(made(session_id, generation, 1, nonce))

    assert presented is not None
    assert not refresh_tokens.is_genuine(KEYS, replace(presented, generation=generation + 1), nonce)


@given(st.text() | st.from_regex(r"rt1\.[A-Za-z0-9_-]{70,80}", fullmatch=True) | st.text().map("rt1.{}".format))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    presented = refresh_tokens.parse(text)

    assert presented is None or (len(text) == 80 and 0 <= presented.generation <= HIGHEST)
    assert not believed(text, bytes(32))


@pytest.mark.parametrize(
    ("generation", "is_read"), [(HIGHEST, True), (HIGHEST + 1, False), (2**63, False), (2**64 - 1, False)]
)
def test_a_generation_beyond_the_column_is_refused(generation: int, *, is_read: bool) -> None:
    token = made(UUID(int=1), generation, 1, bytes(32))

    assert (refresh_tokens.parse(token) is not None) == is_read
