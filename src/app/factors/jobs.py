"""Mails about second factors, and the purge of secrets and logins that nobody completed."""

from functools import partial
from uuid import UUID

from app.factors import crud
from app.factors.login import crud as login_crud
from app.jobs import housekeeping
from app.jobs.housekeeping import BATCH
from app.jobs.queue import Periodic, Work
from app.users import service as users_service


async def mail_recovery_code_used(work: Work, user_id: UUID, left: int) -> None:
    """Tell the owner of an account that a recovery code was used, and how many are left."""
    async with work.database.read_sessions() as session:
        account = await users_service.find_account(session, user_id)
    if account is not None:
        await work.mailer.send(
            "recovery_code_used", to=account.email, message_id=work.key, name=account.full_name, left=str(left)
        )


async def purge(work: Work) -> None:
    await housekeeping.purge_all(
        work.database,
        {
            "login_challenges": partial(login_crud.purge_challenges, batch=BATCH),
            "pending_totp_secrets": partial(crud.purge_pending, batch=BATCH),
        },
    )


JOBS = (mail_recovery_code_used,)
PERIODIC = (Periodic("*/10 * * * *", purge),)
