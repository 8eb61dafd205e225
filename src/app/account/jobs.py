"""What register, resend and forgot come to: decided where nobody waits for the answer, so that no time tells.

Each may be run twice: a registration does nothing the second time, and a second link replaces the first.
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
    """Create the account and mail its verification link; the owner of an address that is known gets a notice instead."""
    async with work.database.begin() as session:
        if hashed_password is None or not await queue.take(session, work, "hashed_password"):
            return
        may_mail = await _may_mail(session, work, email)
        user = await users_service.create_unverified(
            session, _actor(work), email=email, full_name=full_name, hashed_password=hashed_password
        )
        if user is not None:
            # Counted, and mailed in any case: without it the account is of no use, and there is one a registration.
            await _mail_link(session, work, user.id, "verify_email")
        elif may_mail and (known := await users_service.find_credentials(session, email)):
            await queue.enqueue(session, user_jobs.mail_user_notice, "already_registered", known.id)
            await audit.record(session, _actor(work), "auth.registration_repeated", subject_id=known.id)


@queue.formerly("auth.jobs:resend_verification")
async def resend_verification(work: Work, email: str) -> None:
    """Mail another verification link to an active account that still needs one."""
    async with work.database.begin() as session:
        if not await _may_mail(session, work, email):
            return
        known = await _hold(session, email)
        if known and known.is_active and known.email_verified_at is None:
            await _mail_link(session, work, known.id, "verify_email")
            await audit.record(session, _actor(work), "auth.verification_requested", subject_id=known.id)


@queue.formerly("auth.jobs:forgot_password")
async def forgot_password(work: Work, email: str) -> None:
    """Mail a link to set a new password to an active account."""
    async with work.database.begin() as session:
        if not await _may_mail(session, work, email):
            return
        known = await _hold(session, email)
        if known and known.is_active:
            await _mail_link(session, work, known.id, "reset_password")
            await audit.record(session, _actor(work), "auth.password_reset_requested", subject_id=known.id)


async def _hold(session: WriteSession, email: str) -> Account | None:
    # A deletion may commit between the two reads. The second read then finds no account, and no link refers to it.
    known = await users_service.find_credentials(session, email)
    return await users_service.hold_account(session, known.id) if known else None


async def _mail_link(session: WriteSession, work: Work, user_id: UUID, purpose: Purpose) -> None:
    link_id = await links.create(session, work.keys, user_id, purpose)
    await queue.enqueue(session, user_jobs.mail_link, link_id)


async def _may_mail(session: WriteSession, work: Work, email: str) -> bool:
    # Counted whether or not there is such an account, and in the job's transaction: when that fails and the job is run
    # again, the first attempt has not used up the mail of the second.
    try:
        async with session.begin_nested():
            await _limiter(work).hit_within(session, *limits.mail(email))
    except RateLimitedError:
        return False
    return True


def _actor(work: Work) -> Actor:
    # Who asked has not said who they are; the request is known.
    return Actor(request_id=work.request_id)


def _limiter(work: Work) -> RateLimiter:
    return RateLimiter(work.database, work.keys.derive("rate-limit"), enabled=work.settings.rate_limit.enabled)


JOBS = (register, resend_verification, forgot_password)
