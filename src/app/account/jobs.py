"""Background half of forgot, and what jobs share that mail to an address which a client has given.

They run outside of the request, so response times do not reveal whether the account exists. Each job may run twice: a second link
replaces the first.
"""

from app.account import limits
from app.audit import service as audit
from app.audit.service import Actor
from app.core.db.database import WriteSession
from app.core.errors import RateLimitedError
from app.core.security.rate_limits import make_rate_limiter
from app.jobs import queue
from app.jobs.queue import Work
from app.users import service as users_service
from app.users.service import Account


@queue.formerly("auth.jobs:forgot_password")
async def forgot_password(work: Work, email: str) -> None:
    """Mail a link to set a new password to an active account."""
    async with work.database.begin() as session:
        if (account := await lock_for_mail(session, work, email)) is not None:
            await users_service.mail_link(session, work.keys, account.id, "reset_password")
            await audit.record(session, actor_of(work), "auth.password_reset_requested", subject_id=account.id)


async def lock_for_mail(session: WriteSession, work: Work, email: str) -> Account | None:
    """Count a mail to an address, and lock its account. Return None if it has no active account, or is above its limit."""
    if not await count_mail(session, work, email):
        return None
    # If the account is deleted between the two reads, the second one finds nothing, and no link is created for it.
    user_id = await users_service.find_id(session, email)
    account = await users_service.lock_account(session, user_id) if user_id else None
    return account if account is not None and account.is_active else None


async def count_mail(session: WriteSession, work: Work, email: str) -> bool:
    """Count a mail to an address, whether or not it has an account. Return False if the address is above its limit."""
    # The count is part of the job's transaction. If the job fails and is retried, the rollback has undone the count.
    limiter = make_rate_limiter(work.database, work.keys, work.settings)
    try:
        async with session.begin_nested():
            await limiter.hit_within(session, *limits.mail(email))
    except RateLimitedError:
        return False
    return True


def actor_of(work: Work) -> Actor:
    """Return the actor of a job: the client was not logged in, and only its request is known."""
    return Actor(request_id=work.request_id)


JOBS = (forgot_password,)
