"""Sealed values: attacks on each part of one, and the keys that open it."""

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.core.security.keys import KeyRing, generate_key_set, new_seal_key, parse_key_ring
from app.core.security.sealing import NoSealKeyError, SealBrokenError, Sealer

SECRET = b"a secret of 20 bytes"
OWNER = UUID("0197a8f0-0000-7000-8000-000000000001")
KEY_SET: dict[str, Any] = json.loads(generate_key_set())


def ring_with(*seal_keys: dict[str, Any]) -> KeyRing:
    return parse_key_ring(json.dumps({**KEY_SET, "seal_keys": seal_keys}), source="here")


@pytest.fixture
def ring() -> KeyRing:
    """A ring with the active seal key 1."""
    return ring_with(new_seal_key(1, "active"))


@pytest.fixture
def sealer(ring: KeyRing) -> Sealer:
    return Sealer(ring)


@pytest.fixture
def sealed(sealer: Sealer) -> bytes:
    return sealer.seal(SECRET, purpose="totp", owner=OWNER)


@pytest.mark.parametrize("plaintext", [SECRET, b"", b"\0", b"x" * 10_000])
def test_a_sealed_value_can_be_unsealed(sealer: Sealer, plaintext: bytes) -> None:
    sealed = sealer.seal(plaintext, purpose="totp", owner=OWNER)

    assert sealer.unseal(sealed, purpose="totp", owner=OWNER) == plaintext


def test_the_format_is_the_documented_one(ring: KeyRing, sealed: bytes) -> None:
    opened = AESGCM(ring.seal_keys[1]).decrypt(sealed[1:13], sealed[13:], b"totp\0" + OWNER.bytes)

    assert opened == SECRET
    assert sealed[0] == 1
    assert len(sealed) == 1 + 12 + len(SECRET) + 16


def test_a_value_of_the_documented_format_can_be_unsealed(ring: KeyRing, sealer: Sealer) -> None:
    # Rows of every release must stay readable.
    made = b"\x01" + b"n" * 12 + AESGCM(ring.seal_keys[1]).encrypt(b"n" * 12, SECRET, b"totp\0" + OWNER.bytes)

    assert sealer.unseal(made, purpose="totp", owner=OWNER) == SECRET


def test_the_plaintext_is_not_in_the_sealed_value(sealed: bytes) -> None:
    assert SECRET not in sealed


@pytest.mark.slow
def test_no_nonce_is_used_twice_in_a_hundred_thousand_values(sealer: Sealer) -> None:
    nonces = {sealer.seal(b"", purpose="totp", owner=OWNER)[1:13] for _ in range(100_000)}

    assert len(nonces) == 100_000


def broken(sealer: Sealer, sealed: bytes, *, purpose: str = "totp", owner: UUID = OWNER) -> str:
    """Unseal a value, which must fail. Return the text of the error, which must quote no secret."""
    with pytest.raises(SealBrokenError) as refused:
        sealer.unseal(sealed, purpose=purpose, owner=owner)
    assert SECRET.decode() not in str(refused.value)
    # A chained error of the library would only add a traceback.
    assert refused.value.__context__ is None or refused.value.__suppress_context__
    return str(refused.value)


NOT_OURS = "was not sealed with this seal-1 for this owner, or was changed since"


def test_the_value_of_another_owner_is_refused(sealer: Sealer, sealed: bytes) -> None:
    assert NOT_OURS in broken(sealer, sealed, owner=uuid4())


@pytest.mark.parametrize("purpose", ["", "tot", "totp ", "totp\0", "TOTP", "oidc"])
def test_a_value_for_another_purpose_is_refused(sealer: Sealer, sealed: bytes, purpose: str) -> None:
    assert NOT_OURS in broken(sealer, sealed, purpose=purpose)


def test_two_swapped_rows_are_both_refused(sealer: Sealer) -> None:
    ada, bob = uuid4(), uuid4()
    rows = {owner: sealer.seal(owner.bytes, purpose="totp", owner=owner) for owner in (ada, bob)}

    rows = {ada: rows[bob], bob: rows[ada]}

    for owner, sealed in rows.items():
        assert NOT_OURS in broken(sealer, sealed, owner=owner)


def test_the_purpose_and_the_owner_cannot_be_split_at_another_place(sealer: Sealer) -> None:
    shifted = UUID(bytes=b"\0" + OWNER.bytes[:15])
    sealed = sealer.seal(SECRET, purpose="totp", owner=shifted)

    broken(sealer, sealed, purpose="totp\0", owner=OWNER)


def test_every_single_flipped_bit_is_noticed(sealer: Sealer, sealed: bytes) -> None:
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        broken(sealer, bytes(changed))


def test_every_truncated_value_is_refused(sealer: Sealer, sealed: bytes) -> None:
    for length in range(len(sealed)):
        broken(sealer, sealed[:length])
        broken(sealer, sealed[length + 1 :])


@pytest.mark.parametrize("length", [0, 1, 13, 28])
def test_a_value_without_a_complete_tag_is_too_short(sealer: Sealer, length: int) -> None:
    assert broken(sealer, b"\x01" * length) == "a sealed value for totp is too short"


def test_an_appended_byte_is_noticed(sealer: Sealer, sealed: bytes) -> None:
    broken(sealer, sealed + b"\0")


def test_the_same_id_with_another_key_does_not_unseal(sealed: bytes) -> None:
    assert NOT_OURS in broken(Sealer(ring_with(new_seal_key(1, "active"))), sealed)


def test_an_unknown_key_is_named(sealer: Sealer, sealed: bytes) -> None:
    assert broken(sealer, b"\x07" + sealed[1:]) == "a value for totp was sealed with seal-7, which the key set lacks"


def test_no_key_id_selects_a_pepper(ring: KeyRing, sealer: Sealer) -> None:
    # Peppers and seal keys have numbers of their own. The pepper 2 must not open the value of a seal key 2.
    ring.peppers[2] = ring.peppers[1]
    made = b"\x02" + b"n" * 12 + AESGCM(ring.peppers[2]).encrypt(b"n" * 12, SECRET, b"totp\0" + OWNER.bytes)

    assert "seal-2" in broken(sealer, made)


def test_without_a_seal_key_sealing_is_unavailable_and_says_how_to_add_one() -> None:
    sealer = Sealer(ring_with())

    with pytest.raises(NoSealKeyError, match="`app keys add seal`") as refused:
        sealer.seal(SECRET, purpose="totp", owner=OWNER)

    assert refused.value.status == 503


def test_without_a_seal_key_no_value_is_current(sealed: bytes) -> None:
    sealer = Sealer(ring_with())

    assert not sealer.is_current(sealed)
    assert "seal-1" in broken(sealer, sealed)


# Rotation


def rotating(*states: Any) -> Callable[..., Sealer]:
    """Return a function that makes a sealer: the keys 1, 2, … in these states, which are replaced by those given."""
    keys = [new_seal_key(number, state) for number, state in enumerate(states, 1)]

    def sealer(*states: Any) -> Sealer:
        return Sealer(ring_with(*(key | {"state": state} for key, state in zip(keys, states, strict=False) if state)))

    return sealer


def test_the_active_key_seals_and_every_key_of_the_set_unseals() -> None:
    sealer = rotating("active", "next")
    before, after = sealer("active", "next"), sealer("retiring", "active")

    old = before.seal(SECRET, purpose="totp", owner=OWNER)
    new = after.seal(SECRET, purpose="totp", owner=OWNER)

    assert (old[0], new[0]) == (1, 2)
    # A process that has not read the newer file yet unseals what one that has read it seals.
    for each in (before, after):
        for sealed in (old, new):
            assert each.unseal(sealed, purpose="totp", owner=OWNER) == SECRET
    assert (before.is_current(old), before.is_current(new)) == (True, False)
    assert (after.is_current(old), after.is_current(new)) == (False, True)
    assert not after.is_current(b"")


def test_a_removed_key_unseals_nothing() -> None:
    sealer = rotating("active", "next")
    sealed = sealer("active", "next").seal(SECRET, purpose="totp", owner=OWNER)

    assert "seal-1" in broken(sealer(None, "active"), sealed)
