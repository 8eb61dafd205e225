"""Links that prove whoever follows them reads an account's mail.

The secret is `lt1.` and base64url of link id (16 B), pepper id (1 B) and HMAC-SHA-256 (32 B) over purpose, id and the
row's nonce: neither a copy of the database nor the pepper alone makes a valid one, and nothing secret is stored.
"""

import hmac
import os
from base64 import urlsafe_b64encode
from datetime import timedelta
from typing import Literal
from uuid import UUID

from app.core.database import ReadSession, WriteSession
from app.core.keys import KeyRing
from app.users import crud
from app.users.models import AccountLink

type Purpose = Literal["set_password"]

LIFETIMES: dict[Purpose, timedelta] = {"set_password": timedelta(days=3)}
_PREFIX = "lt1"
_NONCE_BYTES = 32


async def create(session: WriteSession, keys: KeyRing, user_id: UUID, purpose: Purpose) -> UUID:
    """Make a link; older ones of the same purpose die with it."""
    await crud.delete_links(session, user_id, purpose)
    values = {
        "user_id": user_id,
        "purpose": purpose,
        "nonce": os.urandom(_NONCE_BYTES),
        "pepper_id": keys.active_pepper,
    }
    return await crud.add_link(session, values, LIFETIMES[purpose])


async def find_live(session: ReadSession, link_id: UUID) -> AccountLink | None:
    """Read a link that can still be used."""
    return await crud.get_live_link(session, link_id)


def secret(keys: KeyRing, link: AccountLink) -> str:
    """Derive what the mail carries."""
    message = b"\0".join([_PREFIX.encode(), link.purpose.encode(), link.id.bytes, link.nonce])
    mac = hmac.digest(keys.peppers[link.pepper_id], message, "sha256")
    return f"{_PREFIX}.{urlsafe_b64encode(link.id.bytes + bytes([link.pepper_id]) + mac).decode().rstrip('=')}"
