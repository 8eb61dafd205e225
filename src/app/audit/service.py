"""Records events in the transaction of the change, and reads those about an account."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import CTE, Row

from app.audit import crud
from app.core.db.database import ReadSession, WriteSession
from app.core.http.addresses import Network


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, in which login session and request, and from where. All fields are None for the system itself."""

    user_id: UUID | None = None
    session_id: UUID | None = None
    ip_prefix: Network | None = None
    request_id: str | None = None
    # The audit log does not store these. The list of login sessions shows the user agent, and rate limits count by the address.
    user_agent: str | None = None
    address: str | None = None


SYSTEM = Actor()


async def record(
    session: WriteSession,
    actor: Actor,
    event: str,
    *,
    subject_id: UUID | None = None,
    **detail: str | bool | int | None,
) -> None:
    """Write an event in the caller's transaction. `detail` must not contain a secret."""
    await crud.create(session, _values(actor, event, subject_id, detail))


def record_cte(actor: Actor, event: str, *, subject_id: UUID | None = None, **detail: str | bool | int | None) -> CTE:
    """Return a CTE that does the same as `record` within another statement, which saves a round trip."""
    return crud.create_cte(_values(actor, event, subject_id, detail))


def _values(actor: Actor, event: str, subject_id: UUID | None, detail: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "event": event,
        "actor_id": actor.user_id,
        "session_id": actor.session_id,
        "ip_prefix": actor.ip_prefix,
        "request_id": actor.request_id,
        "subject_id": subject_id,
        "detail": detail,
    }


async def list_about(session: ReadSession, owner_id: UUID, *, limit: int) -> list[dict[str, Any]]:
    """Read the newest events about an account, newest first, without data of other accounts."""
    return [_for_owner(row, owner_id) for row in await crud.list_about(session, owner_id, limit=limit)]


def _for_owner(row: Row[Any], owner_id: UUID) -> dict[str, Any]:
    """Remove the data of other accounts.

    If another account acted, this removes who and from where. If the owner acted on another account, it removes on whom, and the
    detail.
    """
    event = row._asdict()
    if row.actor_id != owner_id:
        event |= {"actor_id": None, "ip_prefix": None, "request_id": None}
        # Without an actor, the session belongs to this account: an unknown client used one of its tokens.
        event["session_id"] = row.session_id if row.actor_id is None else None
    if row.subject_id != owner_id:
        event |= {"subject_id": None, "detail": {}}
    return event
