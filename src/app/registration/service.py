"""Registration, and verification of the address of a new account.

A client can call register and resend with the address of another person. These functions do the same work for every address:
they enqueue one job. The job checks whether the account exists, and mails its owner.
"""

from app.account import limits, links
from app.account.errors import InvalidLinkError
from app.audit import service as audit
from app.audit.service import Actor
from app.auth.toolkit import Toolkit
from app.core.db.database import WriteSession
from app.core.security.passwords import refuse_weak
from app.jobs import queue
from app.registration import jobs
from app.registration.errors import RegistrationClosedError
from app.registration.schemas import Registration
from app.registration.settings import RegistrationSettings
from app.users import service as users_service


async def register(session: WriteSession, kit: Toolkit, actor: Actor, payload: Registration) -> None:
    """Enqueue a registration. The job mails the result to the address."""
    settings = kit.settings.of(RegistrationSettings)
    users_service.refuse_special_use_domain(kit.settings, payload.email)
    if settings.registration == "invite":
        raise RegistrationClosedError
    await kit.limiter.hit(*limits.mail_request(actor))
    password = payload.password.get_secret_value()
    about = [payload.email, payload.full_name or ""]
    refuse_weak(password, min_length=settings.password_min_length, about=about)
    # No statement has run yet, so the session holds no connection while the password is hashed.
    hashed_password = await kit.hasher.hash(password)
    await queue.enqueue(session, jobs.register, payload.email, payload.full_name, hashed_password)


async def resend_verification(session: WriteSession, kit: Toolkit, actor: Actor, email: str) -> None:
    users_service.refuse_special_use_domain(kit.settings, email)
    await kit.limiter.hit(*limits.mail_request(actor))
    await queue.enqueue(session, jobs.resend_verification, email)


async def verify_email(kit: Toolkit, actor: Actor, secret: str) -> None:
    """Use a verification link: it proves that the address belongs to the owner of the account."""
    async with links.counting_misuse(kit, actor), kit.database.begin() as session:
        _, account = await links.use(session, kit, secret, {"verify_email"})
        if account.email_verified_at is not None:
            raise InvalidLinkError
        await users_service.verify_email(session, account.id)
        await audit.record(session, actor, "auth.email_verified", subject_id=account.id)
