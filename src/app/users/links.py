"""Links sent by mail. A client that opens a link proves access to the mailbox of the account.

The secret is `lt1.` and base64url of link id (16 bytes), pepper id (1 byte) and HMAC-SHA-256 (32 bytes). The HMAC covers the
prefix, the purpose, the id and the nonce of the row. No secret is stored: forging a link requires the database and the pepper.
"""

import hmac
import os
import re
from collections.abc import Collection
from datetime import timedelta
from uuid import UUID

from app.core import base64url
from app.core.db.database import ReadSession, WriteSession
from app.core.errors import TemporaryError
from app.core.security.keys import KeyRing
from app.users import crud
from app.users.models import AccountLink, Purpose


class UnknownPepperError(TemporaryError):
    """The key set of this process does not contain the pepper of a link."""


LIFETIMES: dict[Purpose, timedelta] = {
    "verify_email": timedelta(hours=24),
    "set_password": timedelta(days=3),
    "reset_password": timedelta(minutes=30),
    "confirm_email": timedelta(hours=24),
}
# The statements that services and jobs use as they are.
find_live = crud.get_live_link
discard = crud.delete_links
purge = crud.purge_links

_PREFIX = "lt1"
# The last character holds two bits of the secret, so four characters are possible there.
_FORM = re.compile(r"lt1\.[A-Za-z0-9_-]{65}[AQgw]")


async def create(
    session: WriteSession,
    keys: KeyRing,
    user_id: UUID,
    purpose: Purpose,
    *,
    email: str | None = None,
    session_id: UUID | None = None,
) -> UUID:
    """Create a link, and delete older links with the same purpose, also those of concurrent transactions."""
    # Lock the account before its links, as the use of a link does, so that two transactions cannot deadlock.
    await crud.lock_account(session, user_id)
    await discard(session, user_id, {purpose})
    values = {
        "user_id": user_id,
        "purpose": purpose,
        "nonce": os.urandom(32),
        "pepper_id": keys.active_pepper,
        "email": email,
        "session_id": session_id,
    }
    return await crud.add_link(session, values, LIFETIMES[purpose])


async def find_by_secret(
    session: ReadSession, keys: KeyRing, text: str, purposes: Collection[Purpose]
) -> AccountLink | None:
    """Read the usable link with one of these purposes that the secret belongs to. Malformed texts cause no query."""
    if _FORM.fullmatch(text) is None:
        return None
    raw = base64url.decode(text.partition(".")[2])
    link = await crud.get_live_link(session, UUID(bytes=raw[:16]))
    if link is None or link.purpose not in purposes or keys.pepper(link.pepper_id) is None:
        return None
    return link if hmac.compare_digest(secret(keys, link), text) else None


async def use(session: WriteSession, link: AccountLink) -> bool:
    """Use a link. If several calls use it at the same time, only one returns True."""
    return await crud.use_link(session, link.id)


def secret(keys: KeyRing, link: AccountLink) -> str:
    """Derive the secret that the mail contains."""
    pepper = keys.pepper(link.pepper_id)
    if pepper is None:
        # The link is usable, so the newest key set has its pepper. This machine does not have that key set yet.
        raise UnknownPepperError("the key set of this process does not contain the pepper of this link")
    message = b"\0".join([_PREFIX.encode(), link.purpose.encode(), link.id.bytes, link.nonce])
    mac = hmac.digest(pepper, message, "sha256")
    return f"{_PREFIX}.{base64url.encode(link.id.bytes + bytes([link.pepper_id]) + mac)}"
