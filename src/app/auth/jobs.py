"""What register, resend and forgot come to: decided where nobody waits for the answer, so that no time tells.

Each may be run twice: accounts are unique by their address, and a second link replaces the first.
"""

from datetime import timedelta
from uuid import UUID

from app.audit import service as audit
from app.auth import crud, limits
from app.core.database import WriteSession
from app.core.errors import RateLimitedError
from app.core.rate_limits import RateLimiter
from app.jobs import queue
from app.jobs.queue import Work
from app.users import jobs as user_jobs
from app.users import links
from app.users import service as users_service

_KEEP_ENDED_SESSIONS = timedelta(days=30)


async def register(work: Work, email: str, full_name: str | None, hashed_password: str) -> None:
    """Create the account and mail its verification link; the owner of an address that is known gets a notice instead."""
    may_mail = await _may_mail(work, email)
    async with work.database.begin() as session:
        user = await users_service.create_unverified(
            session, email=email, full_name=full_name, hashed_password=hashed_password
        )
        if user is not None:
            await _mail_link(session, work, user.id, "verify_email")
        elif may_mail and (known := await users_service.find_credentials(session, email)):
            account = await users_service.get_account(session, known.id)
            await queue.enqueue(session, user_jobs.mail_notice, "already_registered", account.email, account.full_name)


async def resend_verification(work: Work, email: str) -> None:
    """Mail another verification link to an active account that still needs one."""
    if not await _may_mail(work, email):
        return
    async with work.database.begin() as session:
        known = await users_service.find_credentials(session, email)
        if known and known.is_active and known.email_verified_at is None:
            await _mail_link(session, work, known.id, "verify_email")


async def forgot_password(work: Work, email: str) -> None:
    """Mail a link to set a new password to an active account."""
    if not await _may_mail(work, email):
        return
    async with work.database.begin() as session:
        known = await users_service.find_credentials(session, email)
        if known and known.is_active:
            await _mail_link(session, work, known.id, "reset_password")
            await audit.record(session, audit.SYSTEM, "auth.password_reset_requested", subject_id=known.id)


async def purge(work: Work) -> None:
    """Delete sessions long ended, revocations no token can still need, and counters that are over."""
    async with work.database.begin() as session:
        await crud.purge(session, keep=_KEEP_ENDED_SESSIONS)
    await _limiter(work).purge()


async def _mail_link(session: WriteSession, work: Work, user_id: UUID, purpose: links.Purpose) -> None:
    link_id = await links.create(session, work.keys, user_id, purpose)
    await queue.enqueue(session, user_jobs.mail_link, link_id)


async def _may_mail(work: Work, email: str) -> bool:
    # Counted whether or not there is such an account, and before a connection is held for the rest.
    try:
        await _limiter(work).hit(*limits.mail(email))
    except RateLimitedError:
        return False
    return True


def _limiter(work: Work) -> RateLimiter:
    return RateLimiter(work.database, work.keys.derive("rate-limit"), enabled=work.settings.rate_limit.enabled)
