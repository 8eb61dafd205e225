"""Tickets for WebSockets. A browser cannot send an access token with a handshake, so it exchanges the token for a ticket before.

A ticket is `st1.` and base64url of 32 random bytes. It opens one WebSocket within seconds. The row has only its SHA-256 digest.
"""

import os
import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from uuid import UUID

from app.auth.access import crud, token_status
from app.auth.errors import InsufficientScopeError, InvalidTicketError, InvalidTokenError, TooManyTicketsError
from app.auth.schemas import SocketTicketRead
from app.auth.settings import AuthSettings
from app.core import base64url
from app.core.db.database import Database, WriteSession

# The last character holds two bits of the secret and four zeros.
FORM = re.compile(r"st1\.[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")
_PREFIX = "st1."
# Unused tickets of a login session. A client with many tabs connects all of them at once after an interruption.
_MAX_UNUSED = 20


@dataclass(frozen=True, slots=True)
class Bearer:
    """The caller that a ticket stands for: the claims of the access token that asked for it."""

    user_id: UUID
    session_id: UUID
    version: int
    scopes: frozenset[str]
    auth_time: int
    acr: str
    expires_at: int


async def issue(
    session: WriteSession,
    *,
    session_id: UUID,
    version: int,
    scopes: Collection[str],
    expires_at: int,
    lifetime: timedelta,
) -> SocketTicketRead:
    """Create a ticket with the rights of an access token. It expires with the token at the latest."""
    ticket = _PREFIX + base64url.encode(os.urandom(32))
    values = {
        "digest": _digest(ticket),
        "session_id": session_id,
        "version": version,
        "scope": " ".join(sorted(scopes)),
        "token_expires_at": datetime.fromtimestamp(expires_at, UTC),
    }
    if not await crud.create_ticket(session, values, lifetime=lifetime, keep=_MAX_UNUSED):
        raise TooManyTicketsError(retry_after=int(lifetime.total_seconds()))
    seconds = min(int(lifetime.total_seconds()), expires_at - int(time.time()))
    return SocketTicketRead(ticket=ticket, expires_in=seconds)


async def redeem(database: Database, ticket: str, needed: Collection[str], settings: AuthSettings) -> Bearer:
    """Use a ticket up, and return its caller. Raise unless login session and account are as they were when it was issued.

    A refused ticket is used up too.
    """
    if FORM.fullmatch(ticket) is None:
        raise InvalidTicketError
    used = await database.unit(partial(crud.use_ticket, digest=_digest(ticket)))
    if used is None or not used.is_current:
        raise InvalidTicketError
    try:
        token_status.checked(used.status, used.version, needed, settings)
    except InvalidTokenError:
        raise InvalidTicketError from None
    scopes = frozenset(used.scope.split())
    if not scopes.issuperset(needed):
        raise InsufficientScopeError(needed)
    return Bearer(
        user_id=used.user_id,
        session_id=used.session_id,
        version=used.version,
        scopes=scopes,
        auth_time=int(used.auth_time.timestamp()),
        acr=used.acr,
        expires_at=int(used.token_expires_at.timestamp()),
    )


def _digest(ticket: str) -> bytes:
    return sha256(ticket.encode()).digest()
