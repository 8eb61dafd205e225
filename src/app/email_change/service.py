"""Change of address: requested with the password, and confirmed with a link to the new address."""

from app.account import links as account_links
from app.account.errors import InvalidLinkError
from app.audit import service as audit
from app.audit.service import Actor
from app.auth import service as auth
from app.auth.sessions import service as sessions
from app.auth.toolkit import Toolkit
from app.core.db.database import WriteSession
from app.email_change import limits
from app.email_change.schemas import EmailChange
from app.jobs import queue
from app.users import jobs as user_jobs
from app.users import links
from app.users import service as users_service
from app.users.service import Account, Confirm


async def change_email(kit: Toolkit, actor: Actor, account: Account, payload: EmailChange, *, confirm: Confirm) -> None:
    """Request a change of address: mail a link to the new address, and a notice to the old one."""
    users_service.refuse_special_use_domain(kit.settings, payload.new_email, member="new_email")
    await auth.confirm_password(kit, actor, account.id, payload.password.get_secret_value())
    await kit.limiter.hit(*limits.email_change(account.id, payload.new_email))

    async def request(session: WriteSession) -> None:
        link_id = await links.create(
            session, kit.keys, account.id, "confirm_email", email=payload.new_email, session_id=actor.session_id
        )
        # Check only now, because `links.create` has locked the account. If a password reset was committed before, it has ended
        # this session, and the check refuses this request.
        await confirm(session)
        await queue.enqueue(session, user_jobs.mail_link, link_id)
        await audit.record(session, actor, "auth.email_change_requested", subject_id=account.id)
        await _notify(session, "email_change_requested", account)

    await kit.database.unit(request)


async def confirm_email(kit: Toolkit, actor: Actor, secret: str) -> None:
    """Use the link that was mailed to a new address: the account moves to it, and the old address gets a notice."""
    async with account_links.counting_misuse(kit, actor), kit.database.begin() as session:
        link, account = await account_links.use(session, kit, secret, {"confirm_email"})
        if link.email is None or not await users_service.set_email(session, account.id, link.email):
            # Another account has taken the address since. The error is that of an invalid link: it must not reveal the account.
            raise InvalidLinkError
        # The owner may no longer read mail at the old address, so links that were sent there are deleted.
        await links.discard(session, account.id, frozenset(links.LIFETIMES))
        await sessions.revoke_all(session, account.id, "email_changed", except_id=link.session_id)
        await audit.record(session, actor, "auth.email_changed", subject_id=account.id)
        await _notify(session, "email_changed", account)


async def _notify(session: WriteSession, notice: str, account: Account) -> None:
    await queue.enqueue(session, user_jobs.mail_notice, notice, account.email, account.full_name)
