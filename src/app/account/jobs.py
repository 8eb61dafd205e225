"""Background half of register, resend and forgot.

It runs outside of the request, so response times do not reveal whether the account exists. Each job may run twice: the second
run of a registration does nothing, and a second link replaces the first.
"""

from uuid import UUID

from app.account import limits
from app.audit import service as audit
from app.audit.service import Actor
from app.core.db.database import WriteSession
from app.core.errors import RateLimitedError
from app.core.security.rate_limits import RateLimiter
from app.jobs import queue
from app.jobs.queue import Work
from app.users import jobs as user_jobs
from app.users import links
from app.users import service as users_service
from app.users.models import Purpose
from app.users.service import Account


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
            await _mail_link(session, work, user.id, "verify_email")
        elif may_mail and (owner := await users_service.find_credentials(session, email)):
            await queue.enqueue(session, user_jobs.mail_user_notice, "already_registered", owner.id)
            await audit.record(session, _actor(work), "auth.registration_repeated", subject_id=owner.id)


@queue.formerly("auth.jobs:resend_verification")
async def resend_verification(work: Work, email: str) -> None:
    """Mail another verification link to an active account that still needs one."""
    async with work.database.begin() as session:
        if not await _count_mail(session, work, email):
            return
        account = await _lock_account(session, email)
        if account and account.is_active and account.email_verified_at is None:
            await _mail_link(session, work, account.id, "verify_email")
            await audit.record(session, _actor(work), "auth.verification_requested", subject_id=account.id)


@queue.formerly("auth.jobs:forgot_password")
async def forgot_password(work: Work, email: str) -> None:
    """Mail a link to set a new password to an active account."""
    async with work.database.begin() as session:
        if not await _count_mail(session, work, email):
            return
        account = await _lock_account(session, email)
        if account and account.is_active:
            await _mail_link(session, work, account.id, "reset_password")
            await audit.record(session, _actor(work), "auth.password_reset_requested", subject_id=account.id)


async def _lock_account(session: WriteSession, email: str) -> Account | None:
    # If the account is deleted between the two reads, the second one finds nothing, and no link is created for it.
    credentials = await users_service.find_credentials(session, email)
    return await users_service.lock_account(session, credentials.id) if credentials else None


async def _mail_link(session: WriteSession, work: Work, user_id: UUID, purpose: Purpose) -> None:
    link_id = await links.create(session, work.keys, user_id, purpose)
    await queue.enqueue(session, user_jobs.mail_link, link_id)


async def _count_mail(session: WriteSession, work: Work, email: str) -> bool:
    """Count a mail to an address, whether or not it has an account. Return False if the address is above its limit."""
    # The count is part of the job's transaction. If the job fails and is retried, the rollback has undone the count.
    try:
        async with session.begin_nested():
            await _limiter(work).hit_within(session, *limits.mail(email))
    except RateLimitedError:
        return False
    return True


def _actor(work: Work) -> Actor:
    # The client was not logged in; only its request is known.
    return Actor(request_id=work.request_id)


def _limiter(work: Work) -> RateLimiter:
    return RateLimiter(work.database, work.keys.derive("rate-limit"), enabled=work.settings.rate_limit.enabled)


JOBS = (register, resend_verification, forgot_password)
