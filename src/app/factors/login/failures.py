"""Wrong codes of a second leg or of a session: the audit event, and the mail to the owner."""

from uuid import UUID

from app.audit import service as audit
from app.audit.service import Actor
from app.auth.toolkit import Toolkit
from app.factors.login import limits
from app.jobs import queue
from app.users import jobs


async def record(kit: Toolkit, actor: Actor, user_id: UUID, reason: str) -> None:
    """Record the failure in a transaction of its own, because the request is about to fail."""
    needs_mail = await limits.needs_mail(kit.limiter, user_id)
    async with kit.database.begin() as session:
        await audit.record(session, actor, "auth.second_factor_failed", subject_id=user_id, reason=reason)
        if needs_mail:
            # The person who guesses knows the password, or has a session of the account.
            await queue.enqueue(session, jobs.mail_user_notice, "second_factor_guessed", user_id)
