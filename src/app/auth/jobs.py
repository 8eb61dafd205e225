"""What register, resend and forgot come to: decided where nobody waits for the answer, so that no time tells.

Each may be run twice: accounts are unique by their address, and a second link replaces the first.
"""

from app.audit import service as audit
from app.auth import crud
from app.core.database import WriteSession
from app.jobs import queue
from app.jobs.queue import Work
from app.users import jobs as user_jobs
from app.users import links
from app.users import service as users_service
from app.users.service import Credentials


async def register(work: Work, email: str, full_name: str | None, hashed_password: str) -> None:
    """Create the account and mail its verification link; the owner of an address that is known gets a notice instead."""
    async with work.database.begin() as session:
        user = await users_service.create_unverified(
            session, email=email, full_name=full_name, hashed_password=hashed_password
        )
        if user is not None:
            await _mail_link(session, work, user.id, "verify_email")
            return
        known = await users_service.find_credentials(session, email)
        if known is not None and await allows_mail(session, email):
            account = await users_service.get_account(session, known.id)
            notice = "already_registered"
            await queue.enqueue(session, user_jobs.mail_notice, notice, account.email, account.full_name)


async def resend_verification(work: Work, email: str) -> None:
    """Mail another verification link to an active account that still needs one."""
    async with work.database.begin() as session:
        known = await users_service.find_credentials(session, email)
        if known and known.is_active and known.email_verified_at is None and await allows_mail(session, email):
            await _mail_link(session, work, known.id, "verify_email")


async def forgot_password(work: Work, email: str) -> None:
    """Mail a link to set a new password to an active account."""
    async with work.database.begin() as session:
        known = await users_service.find_credentials(session, email)
        if known and known.is_active and await allows_mail(session, email):
            await _mail_link(session, work, known.id, "reset_password")
            await audit.record(session, audit.SYSTEM, "auth.password_reset_requested", subject_id=known.id)
