"""Links sent by mail. A client that follows one proves that it reads the mail of the account.

The secret is `lt1.` and base64url of link id (16 B), pepper id (1 B) and HMAC-SHA-256 (32 B). The HMAC, keyed by that pepper, is
over purpose, id and the row's nonce. An attacker needs both a copy of the database and the pepper to make one.
"""

import hmac
import os
import re
from datetime import datetime, timedelta
from uuid import UUID

from app.core import base64url
from app.core.db.database import ReadSession, WriteSession
from app.core.errors import TemporaryError
from app.core.security.keys import KeyRing
from app.users import crud
from app.users.models import AccountLink, Purpose


class UnknownPepperError(TemporaryError):
    """This process does not have the pepper of a link."""


LIFETIMES: dict[Purpose, timedelta] = {
    "verify_email": timedelta(hours=24),
    "set_password": timedelta(days=3),
    "reset_password": timedelta(minutes=30),
    "confirm_email": timedelta(hours=24),
}
_PREFIX = "lt1"
_FORM = re.compile(r"lt1\.[A-Za-z0-9_-]{66}")
_ID_BYTES = 16
_NONCE_BYTES = 32


async def create(
    session: WriteSession,
    keys: KeyRing,
    user_id: UUID,
    purpose: Purpose,
    *,
    email: str | None = None,
    session_id: UUID | None = None,
) -> UUID:
    """Create a link, and delete older links of the account with the same purpose, also those of concurrent requests."""
    # The account is locked before its links, here and where a link is used, so transactions cannot deadlock.
    await crud.lock_account(session, user_id)
    await crud.delete_links(session, user_id, [purpose])
    values = {
        "user_id": user_id,
        "purpose": purpose,
        "nonce": os.urandom(_NONCE_BYTES),
        "pepper_id": keys.active_pepper,
        "email": email,
        "session_id": session_id,
    }
    return await crud.add_link(session, values, LIFETIMES[purpose])


async def find_live(session: ReadSession, link_id: UUID) -> AccountLink | None:
    """Read a link that is neither used nor expired."""
    return await crud.get_live_link(session, link_id)


async def find_by_secret(
    session: ReadSession, keys: KeyRing, text: str, purposes: frozenset[Purpose]
) -> AccountLink | None:
    """Read the live link with this secret and one of these purposes. Malformed text never reaches the database."""
    if _FORM.fullmatch(text) is None:
        return None
    try:
        raw = base64url.decode(text.partition(".")[2])
    except ValueError:
        return None
    link = await crud.get_live_link(session, UUID(bytes=raw[:_ID_BYTES]))
    if link is None or link.purpose not in purposes or keys.pepper(link.pepper_id) is None:
        return None
    return link if hmac.compare_digest(secret(keys, link), text) else None


async def use(session: WriteSession, link: AccountLink) -> bool:
    """Mark a link as used, in one statement. Of concurrent callers, exactly one gets True."""
    return await crud.use_link(session, link.id)


async def discard(session: WriteSession, user_id: UUID, purposes: frozenset[Purpose]) -> None:
    """Delete an account's links of these purposes."""
    await crud.delete_links(session, user_id, sorted(purposes))


async def purge(session: WriteSession, after: datetime | None, *, batch: int) -> datetime | None:
    """Delete the next expired links, with their addresses; return the position to continue from, or None at the end."""
    return await crud.purge_links(session, after, batch=batch)


def secret(keys: KeyRing, link: AccountLink) -> str:
    """Derive the secret of a link, for its mail."""
    pepper = keys.pepper(link.pepper_id)
    if pepper is None:
        # The link is live, so its pepper is in the newest key set, which this machine does not have yet.
        raise UnknownPepperError("the pepper of this link is not in the key set here")
    message = b"\0".join([_PREFIX.encode(), link.purpose.encode(), link.id.bytes, link.nonce])
    mac = hmac.digest(pepper, message, "sha256")
    return f"{_PREFIX}.{base64url.encode(link.id.bytes + bytes([link.pepper_id]) + mac)}"
