"""Use cases of an account: passwords, and export.

A client can call forgot with the address of another person. It does the same work for every address: it enqueues one job. The job
checks whether the account exists, and mails its owner.
"""

from typing import Any
from uuid import UUID

from app import features
from app.account import jobs, limits, links
from app.account.errors import InvalidLinkError
from app.account.schemas import MAX_EXPORTED, NewPassword, PasswordChange
from app.audit import service as audit
from app.audit.service import Actor
from app.auth import service as auth
from app.auth.errors import WrongPasswordError
from app.auth.sessions import service as sessions
from app.auth.settings import AuthSettings
from app.auth.toolkit import Toolkit
from app.core.db.database import ReadSession, WriteSession
from app.core.errors import FieldError, InvalidInputError
from app.core.security.passwords import composed, refuse_weak
from app.jobs import queue
from app.users import jobs as user_jobs
from app.users import links as user_links
from app.users import service as users_service
from app.users.models import Purpose
from app.users.service import Account, Confirm

_PASSWORD_LINKS = frozenset[Purpose]({"set_password", "reset_password"})
_ALL_LINKS = frozenset(user_links.LIFETIMES)
_NEW_PASSWORD = "#/new_password"


async def forgot_password(session: WriteSession, kit: Toolkit, actor: Actor, email: str) -> None:
    users_service.refuse_special_use_domain(kit.settings, email)
    await kit.limiter.hit(*limits.mail_request(actor))
    await queue.enqueue(session, jobs.forgot_password, email)


async def reset_password(kit: Toolkit, actor: Actor, payload: NewPassword) -> None:
    """Use a link to set a password. This ends every login session and verifies the address."""
    secret, password = payload.token.get_secret_value(), payload.new_password.get_secret_value()
    async with links.counting_misuse(kit, actor):
        # A weak password is refused before the link is used, so the link still works for a better one.
        _refuse_weak(kit, await _owner(kit, secret), password)
        hashed_password = await kit.hasher.hash(password, pointer=_NEW_PASSWORD)
        async with kit.database.begin() as session:
            _, account = await links.use(session, kit, secret, _PASSWORD_LINKS)
            await user_links.discard(session, account.id, _ALL_LINKS)
            await users_service.set_password(session, account.id, hashed_password)
            await sessions.revoke_all(session, account.id, "password_reset")
            await auth.restart_limits(session, kit, actor, account, by="reset")
            await audit.record(session, actor, "auth.password_reset", subject_id=account.id)
            await _notify(session, "password_changed", account)


async def _owner(kit: Toolkit, secret: str) -> Account:
    """Return the account that a link belongs to. This does not use the link, and holds no connection afterwards."""
    async with kit.database.read_sessions() as session:
        link = await user_links.find_by_secret(session, kit.keys, secret, _PASSWORD_LINKS)
        account = await users_service.find_account(session, link.user_id) if link else None
    if account is None:
        raise InvalidLinkError
    return account


async def change_password(
    kit: Toolkit, actor: Actor, account: Account, payload: PasswordChange, *, confirm: Confirm
) -> None:
    """Change the password of a logged-in owner, and end the other login sessions."""
    old, new = payload.current_password.get_secret_value(), payload.new_password.get_secret_value()
    stored = await auth.confirm_password(kit, actor, account.id, old)
    _refuse_unchanged(old, new)
    _refuse_weak(kit, account, new)
    hashed_password = await kit.hasher.hash(new, pointer=_NEW_PASSWORD)

    async def change(session: WriteSession) -> None:
        # If another request has changed the password since, for example with a reset link, this change is refused.
        if not await users_service.replace_password(
            session, account.id, old=stored, new=hashed_password, confirm=confirm
        ):
            raise WrongPasswordError
        # Links for a pending change of address are deleted too: an attacker may have requested it.
        await user_links.discard(session, account.id, {*_PASSWORD_LINKS, "confirm_email"})
        await sessions.revoke_all(session, account.id, "password_changed", except_id=actor.session_id)
        await auth.restart_limits(session, kit, actor, account, by="change")
        await audit.record(session, actor, "auth.password_changed", subject_id=account.id)
        await _notify(session, "password_changed", account)

    await kit.database.unit(change)


async def send_password_reset(session: WriteSession, kit: Toolkit, actor: Actor, user_id: UUID) -> None:
    """Mail the owner of an account a link to set a new password, on behalf of an administrator, who does not see the link."""
    account = await users_service.get_account(session, user_id)
    await users_service.mail_link(session, kit.keys, account.id, "reset_password")
    await audit.record(session, actor, "auth.password_reset_requested", subject_id=account.id)


async def export(session: ReadSession, user: Account) -> dict[str, Any]:
    """Return what is stored about an account, without secrets, and what the `export.py` of each feature adds.

    This contains at most the newest `MAX_EXPORTED` sessions and events.
    """
    found = {
        "sessions": await sessions.list_newest(session, user.id, limit=MAX_EXPORTED + 1),
        "audit_events": await audit.list_about(session, user.id, limit=MAX_EXPORTED + 1),
    }
    is_complete = all(len(rows) <= MAX_EXPORTED for rows in found.values())
    return {
        "user": user,
        **{name: rows[:MAX_EXPORTED] for name, rows in found.items()},
        "is_complete": is_complete,
        **{name: await module.export(session, user.id) for name, module in features.parts("export")},
    }


def _refuse_unchanged(old: str, new: str) -> None:
    # The caller has proved the current password, so the error reveals nothing. A reset does not compare: there, the error would
    # confirm a guess of the current password.
    if composed(old) == composed(new):
        detail = "This is your current password. Choose another one."
        raise InvalidInputError(FieldError(_NEW_PASSWORD, "password_unchanged", detail))


def _refuse_weak(kit: Toolkit, account: Account, password: str) -> None:
    refuse_weak(
        password,
        min_length=kit.settings.of(AuthSettings).password_min_length,
        about=[account.email, account.full_name or ""],
        pointer=_NEW_PASSWORD,
    )


async def _notify(session: WriteSession, notice: str, account: Account) -> None:
    await queue.enqueue(session, user_jobs.mail_notice, notice, account.email, account.full_name)
