"""The second factors of an account, for its export: never secrets or codes."""

from uuid import UUID

from app.core.db.database import ReadSession
from app.factors import crud
from app.factors.schemas import TotpRead

SCHEMA = TotpRead | None


async def export(session: ReadSession, user_id: UUID) -> TotpRead | None:
    status = await crud.get_status(session, user_id)
    if status is None or status.created_at is None:
        return None
    return TotpRead(created_at=status.created_at, last_used_at=status.last_used_at)
