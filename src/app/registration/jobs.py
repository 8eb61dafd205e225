"""Background half of register and resend.

It runs outside of the request, so response times do not reveal whether the account exists. Each job may run twice: the second
run of a registration does nothing, and a second link replaces the first.
"""

from app.account.jobs import actor_of, count_mail, lock_for_mail
from app.audit import service as audit
from app.jobs import queue
from app.jobs.queue import Work
from app.users import jobs as user_jobs
from app.users import service as users_service


@queue.formerly("account.jobs:register", "auth.jobs:register")
async def register(work: Work, email: str, full_name: str | None, hashed_password: str | None = None) -> None:
    """Create the account and mail its verification link. If the address has an account already, mail its owner a notice instead."""
    async with work.database.begin() as session:
        # An earlier run of this job has taken the hash, and committed the registration.
        if hashed_password is None or not await queue.take(session, work, "hashed_password"):
            return
        # Counted before the account is inserted: the counters of mails are locked before accounts, see `users.locks`.
        may_mail = await count_mail(session, work, email)
        user = await users_service.create_unverified(
            session, actor_of(work), email=email, full_name=full_name, hashed_password=hashed_password
        )
        if user is not None:
            # Mailed even above the limit: without this link the account cannot be used, and a registration sends it once.
            await users_service.mail_link(session, work.keys, user.id, "verify_email")
        elif may_mail and (owner_id := await users_service.find_id(session, email)):
            await queue.enqueue(session, user_jobs.mail_user_notice, "already_registered", owner_id)
            await audit.record(session, actor_of(work), "auth.registration_repeated", subject_id=owner_id)


@queue.formerly("account.jobs:resend_verification", "auth.jobs:resend_verification")
async def resend_verification(work: Work, email: str) -> None:
    """Mail another verification link to an active account that still needs one."""
    async with work.database.begin() as session:
        account = await lock_for_mail(session, work, email)
        if account is not None and account.email_verified_at is None:
            await users_service.mail_link(session, work.keys, account.id, "verify_email")
            await audit.record(session, actor_of(work), "auth.verification_requested", subject_id=account.id)


JOBS = (register, resend_verification)
