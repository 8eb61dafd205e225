"""Logins that wait for the second factor. The client knows one by its `mfa_token`, which opens nothing but the second leg.

A token is `mt1.` and base64url of challenge id (16 bytes), pepper id (1 byte) and HMAC-SHA-256 (32 bytes). The HMAC covers the prefix,
the id and the nonce of the row. No token is stored: forging one requires the database and the pepper.
"""

import hmac
import os
import re
from datetime import timedelta
from uuid import UUID

from sqlalchemy import CTE
from uuid_utils.compat import uuid7

from app.core import base64url
from app.core.db.database import WriteSession
from app.core.security.keys import KeyRing
from app.factors.login import crud
from app.factors.login.crud import Guessed
from app.factors.login.limits import GUESSES_PER_LOGIN

_PREFIX = "mt1"
# The last character holds two bits of the token, so four characters are possible there.
_FORM = re.compile(r"mt1\.[A-Za-z0-9_-]{65}[AQgw]")


async def create(
    session: WriteSession,
    keys: KeyRing,
    user_id: UUID,
    *,
    authz_version: int,
    scope: str | None,
    is_over_limit: bool,
    lifetime: timedelta,
    event: CTE,
) -> str:
    """Store a login that waits, and its audit event, in one statement. Return its token."""
    challenge_id, nonce, pepper_id = uuid7(), os.urandom(32), keys.active_pepper
    values = {
        "id": challenge_id,
        "user_id": user_id,
        "authz_version": authz_version,
        "scope": scope or "",
        "is_over_limit": is_over_limit,
        "nonce": nonce,
        "pepper_id": pepper_id,
    }
    await crud.create_challenge(session, values, lifetime=lifetime, ctes=(event,))
    return _token(keys.peppers[pepper_id], challenge_id, pepper_id, nonce)


async def count_guess(session: WriteSession, keys: KeyRing, token: str) -> Guessed | None:
    """Count a guess for the login that a token belongs to. None if it does not wait any more, or the token is not genuine.

    After None, the caller must roll back: a forged token must not use up the guesses of a login. Malformed texts cause no query.
    """
    if _FORM.fullmatch(token) is None:
        return None
    challenge_id = UUID(bytes=base64url.decode(token.partition(".")[2])[:16])
    guessed = await crud.count_guess(session, challenge_id, most=GUESSES_PER_LOGIN)
    pepper = keys.pepper(guessed.pepper_id) if guessed else None
    if guessed is None or pepper is None:
        return None
    expected = _token(pepper, guessed.id, guessed.pepper_id, guessed.nonce)
    return guessed if hmac.compare_digest(expected, token) else None


def _token(pepper: bytes, challenge_id: UUID, pepper_id: int, nonce: bytes) -> str:
    message = b"\0".join([_PREFIX.encode(), challenge_id.bytes, nonce])
    mac = hmac.digest(pepper, message, "sha256")
    return f"{_PREFIX}.{base64url.encode(challenge_id.bytes + bytes([pepper_id]) + mac)}"
