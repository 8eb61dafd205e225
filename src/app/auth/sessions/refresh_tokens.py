"""Refresh tokens. They are opaque to clients, and derived from the session's row and a pepper, so they are not stored.

A token is `rt1.` and base64url of session id (16 B), generation (8 B), pepper id (1 B) and HMAC-SHA-256 (32 B). The HMAC, keyed
by that pepper, is over `rt1`, session id, generation and the session's nonce. An attacker needs both a copy of the database and
the pepper to make one.
"""

import hmac
import re
import struct
from dataclasses import dataclass
from uuid import UUID

from app.core import base64url
from app.core.security.keys import KeyRing

_PREFIX = "rt1."
_FORM = re.compile(r"rt1\.[A-Za-z0-9_-]{76}")
_LAYOUT = struct.Struct(">16sQB32s")
_MAX_GENERATION = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Presented:
    """The content of a token, before it is verified."""

    session_id: UUID
    generation: int
    pepper_id: int
    mac: bytes


def parse(token: str) -> Presented | None:
    """Parse a token. Returns None for malformed text, which then never reaches the database."""
    if _FORM.fullmatch(token) is None:
        return None
    session_id, generation, pepper_id, mac = _LAYOUT.unpack(base64url.decode(token.removeprefix(_PREFIX)))
    if generation >= _MAX_GENERATION:
        return None
    return Presented(UUID(bytes=session_id), generation, pepper_id, mac)


def make(keys: KeyRing, session_id: UUID, *, generation: int, pepper_id: int, nonce: bytes) -> str:
    """Derive the token of one generation. The same arguments always give the same token."""
    mac = _mac(keys.peppers[pepper_id], session_id, generation, nonce)
    return _PREFIX + base64url.encode(_LAYOUT.pack(session_id.bytes, generation, pepper_id, mac))


def is_genuine(keys: KeyRing, presented: Presented, nonce: bytes) -> bool:
    """Return whether this server issued the token."""
    pepper = keys.pepper(presented.pepper_id)
    if pepper is None:
        return False
    expected = _mac(pepper, presented.session_id, presented.generation, nonce)
    return hmac.compare_digest(expected, presented.mac)


def _mac(pepper: bytes, session_id: UUID, generation: int, nonce: bytes) -> bytes:
    message = b"rt1" + session_id.bytes + generation.to_bytes(8) + nonce
    return hmac.digest(pepper, message, "sha256")
