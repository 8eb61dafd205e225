"""Sealing of secrets that the application must read back, such as the secret of a second factor.

A sealed value is authenticated and encrypted with AES-256-GCM: key id (1 byte) ‖ nonce (12 bytes) ‖ ciphertext and tag. The
associated data is purpose ‖ 0 ‖ id of the owner, so a value that was moved to another row or column cannot be unsealed.
"""

import os
from dataclasses import dataclass
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.core.errors import UnavailableError
from app.core.security.keys import KeyRing, seal_kid

_NONCE = slice(1, 13)
_NONCE_BYTES = 12
_TAG_BYTES = 16
_MIN_BYTES = 1 + _NONCE_BYTES + _TAG_BYTES


class NoSealKeyError(UnavailableError):
    """The key set has no seal key, because an earlier release made it."""

    code = "no_seal_key"
    detail = "This service has no key for stored secrets yet. Its operator adds one with `app keys add seal`."


class SealBrokenError(Exception):
    """A sealed value cannot be unsealed: its key is missing, or it belongs to another purpose or owner, or was changed."""


@dataclass(frozen=True, slots=True)
class Sealer:
    """Seals with the active seal key, and unseals with every seal key of the set."""

    keys: KeyRing

    def seal(self, plaintext: bytes, *, purpose: str, owner: UUID) -> bytes:
        """Encrypt a secret for one purpose of one owner. A random nonce is safe for 2^32 values per key."""
        key_id = self.keys.active_seal_key
        if key_id is None:
            raise NoSealKeyError
        nonce = os.urandom(_NONCE_BYTES)
        cipher = AESGCM(self.keys.seal_keys[key_id])
        return bytes([key_id]) + nonce + cipher.encrypt(nonce, plaintext, _associated_data(purpose, owner))

    def unseal(self, sealed: bytes, *, purpose: str, owner: UUID) -> bytes:
        """Return the secret. Raises `SealBrokenError`, whose text quotes neither the value nor a key."""
        if len(sealed) < _MIN_BYTES:
            raise SealBrokenError(f"a sealed value for {purpose} is too short")
        key_id, nonce, ciphertext = sealed[0], sealed[_NONCE], sealed[_NONCE.stop :]
        key = self.keys.seal_key(key_id)
        if key is None:
            raise SealBrokenError(f"a value for {purpose} was sealed with {seal_kid(key_id)}, which the key set lacks")
        try:
            return AESGCM(key).decrypt(nonce, ciphertext, _associated_data(purpose, owner))
        except InvalidTag:
            raise SealBrokenError(
                f"a value for {purpose} was not sealed with this {seal_kid(key_id)} for this owner, or was changed since"
            ) from None

    def is_current(self, sealed: bytes) -> bool:
        """Return whether the active seal key sealed this value."""
        return self.keys.active_seal_key is not None and sealed[:1] == bytes([self.keys.active_seal_key])


def _associated_data(purpose: str, owner: UUID) -> bytes:
    return purpose.encode() + b"\0" + owner.bytes
