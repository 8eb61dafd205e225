"""Jobs that send mail to account owners."""

from typing import NamedTuple
from uuid import UUID

from app.jobs.queue import Work
from app.users import crud, links


class _Page(NamedTuple):
    """The page that a link opens, and the text for the lifetime in the mail. The template has the name of the purpose."""

    path: str
    expires_in: str


# The secret is in the fragment of the URL. Browsers do not send fragments to servers, so no log contains it.
_PAGES = {
    "verify_email": _Page("/account/verify-email", "24 hours"),
    "set_password": _Page("/account/set-password", "3 days"),
    "reset_password": _Page("/account/set-password", "30 minutes"),
    "confirm_email": _Page("/account/confirm-email", "24 hours"),
}


async def mail_link(work: Work, link_id: UUID) -> None:
    """Mail a link to the account owner. The job derives the secret of the link, which is stored nowhere."""
    async with work.database.read_sessions() as session:
        link = await links.find_live(session, link_id)
        account = await crud.get_account(session, link.user_id) if link else None
    if link is None or account is None:
        # The link was used, replaced or deleted, or it has expired.
        return
    page = _PAGES[link.purpose]
    await work.mailer.send(
        link.purpose,
        # To the stored address, never to one from a request. Only the confirmation of a new address goes to that address.
        to=link.email or account.email,
        message_id=str(link_id),
        name=account.full_name,
        link=f"{work.settings.public_url}{page.path}#token={links.secret(work.keys, link)}",
        expires_in=page.expires_in,
    )


async def mail_notice(work: Work, notice: str, to: str, name: str | None) -> None:
    """Mail a notice about an account to an address. `notice` is the name of a template."""
    await work.mailer.send(notice, to=to, message_id=work.key, name=name)


async def mail_user_notice(work: Work, notice: str, user_id: UUID) -> None:
    """Mail a notice about an account to the address that the account has when the job runs."""
    async with work.database.read_sessions() as session:
        account = await crud.get_account(session, user_id)
    if account is not None:
        await work.mailer.send(notice, to=account.email, message_id=work.key, name=account.full_name)


JOBS = (mail_link, mail_notice, mail_user_notice)
