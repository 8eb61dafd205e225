"""Uses mailed links, and counts those that are not valid."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from app.account.errors import InvalidLinkError
from app.audit.service import Actor
from app.auth import service as auth
from app.auth.toolkit import Toolkit
from app.core.db.database import WriteSession
from app.core.errors import InvalidInputError
from app.users import links
from app.users import service as users_service
from app.users.models import AccountLink, Purpose
from app.users.service import Account


async def use(
    session: WriteSession, kit: Toolkit, secret: str, purposes: Collection[Purpose]
) -> tuple[AccountLink, Account]:
    link = await links.find_by_secret(session, kit.keys, secret, purposes)
    # Lock the account before the use of the link. Other changes of the account are then committed already, or they wait.
    account = await users_service.lock_account(session, link.user_id) if link else None
    if link is None or account is None or not account.is_active or not await links.use(session, link):
        raise InvalidLinkError
    return link, account


@asynccontextmanager
async def counting_misuse(kit: Toolkit, actor: Actor) -> AsyncIterator[None]:
    """Count an invalid link or a refused new password by the client's address, so that the client cannot retry without a limit.

    The failed transaction has returned its connection before the count.
    """
    try:
        yield
    except (InvalidLinkError, InvalidInputError):
        await auth.count_misuse(kit, actor)
        raise
