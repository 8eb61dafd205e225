"""Background half of register, resend and forgot.

It runs outside of the request, so response times do not reveal whether the account exists. Each job may run twice: the second
run of a registration does nothing, and a second link replaces the first.
"""

from app.account import limits
from app.audit import service as audit
from app.audit.service import Actor
from app.core.db.database import WriteSession
from app.core.errors import RateLimitedError
from app.core.security.rate_limits import RateLimiter
from app.jobs import queue
from app.jobs.queue import Work
from app.users import jobs as user_jobs
from app.users import service as users_service
from app.users.models import Purpose


@queue.formerly("auth.jobs:register")
async def register(work: Work, email: str, full_name: str | None, hashed_password: str | None = None) -> None:
    """Create the account and mail its verification link. If the address has an account already, mail its owner a notice instead."""
    async with work.database.begin() as session:
        # An earlier run of this job has taken the hash, and committed the registration.
        if hashed_password is None or not await queue.take(session, work, "hashed_password"):
            return
        # Counted before the account is inserted: the counters of mails are locked before accounts, see `users.locks`.
        may_mail = await _count_mail(session, work, email)
        user = await users_service.create_unverified(
            session, _actor(work), email=email, full_name=full_name, hashed_password=hashed_password
        )
        if user is not None:
            # Mailed even above the limit: without this link the account cannot be used, and a registration sends it once.
            await users_service.mail_link(session, work.keys, user.id, "verify_email")
        elif may_mail and (owner_id := await users_service.find_id(session, email)):
            await queue.enqueue(session, user_jobs.mail_user_notice, "already_registered", owner_id)
            await audit.record(session, _actor(work), "auth.registration_repeated", subject_id=owner_id)


@queue.formerly("auth.jobs:resend_verification")
async def resend_verification(work: Work, email: str) -> None:
    """Mail another verification link to an active account that still needs one."""
    await _mail_requested_link(work, email, "verify_email", "auth.verification_requested")


@queue.formerly("auth.jobs:forgot_password")
async def forgot_password(work: Work, email: str) -> None:
    """Mail a link to set a new password to an active account."""
    await _mail_requested_link(work, email, "reset_password", "auth.password_reset_requested")


async def _mail_requested_link(work: Work, email: str, purpose: Purpose, event: str) -> None:
    async with work.database.begin() as session:
        if not await _count_mail(session, work, email):
            return
        # If the account is deleted between the two reads, the second one finds nothing, and no link is created for it.
        user_id = await users_service.find_id(session, email)
        account = await users_service.lock_account(session, user_id) if user_id else None
        if account is None or not account.is_active or (purpose == "verify_email" and account.email_verified_at):
            return
        await users_service.mail_link(session, work.keys, account.id, purpose)
        await audit.record(session, _actor(work), event, subject_id=account.id)


async def _count_mail(session: WriteSession, work: Work, email: str) -> bool:
    """Count a mail to an address, whether or not it has an account. Return False if the address is above its limit."""
    # The count is part of the job's transaction. If the job fails and is retried, the rollback has undone the count.
    limiter = RateLimiter(work.database, work.keys.derive("rate-limit"), enabled=work.settings.rate_limit.enabled)
    try:
        async with session.begin_nested():
            await limiter.hit_within(session, *limits.mail(email))
    except RateLimitedError:
        return False
    return True


def _actor(work: Work) -> Actor:
    # The client was not logged in; only its request is known.
    return Actor(request_id=work.request_id)


JOBS = (register, resend_verification, forgot_password)
