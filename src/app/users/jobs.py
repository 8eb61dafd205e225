"""Mail to account owners; each job ends where a service call ends."""

from uuid import UUID

from app.jobs.queue import Work
from app.users import crud, links

# The path of the page that asks for the password; the secret is in the fragment, which no server ever logs.
_SET_PASSWORD_PAGE = "/account/set-password"


async def mail_set_password_link(work: Work, link_id: UUID) -> None:
    """Mail the link through which the owner of a new account sets its password."""
    async with work.database.read_sessions() as session:
        link = await links.find_live(session, link_id)
        account = await crud.get_account(session, link.user_id) if link else None
    if link is None or account is None:
        # Used, replaced or deleted since: there is nothing left to say.
        return
    await work.mailer.send(
        "set_password",
        to=account.email,
        message_id=str(link_id),
        name=account.full_name,
        link=f"{work.settings.public_url}{_SET_PASSWORD_PAGE}#token={links.secret(work.keys, link)}",
        expires_in="3 days",
    )
