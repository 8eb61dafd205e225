"""Second factors of accounts: set up, remove, replace the recovery codes, and reset for an owner who has lost them."""

import asyncio
import io
from uuid import UUID

import segno

from app.audit import service as audit
from app.audit.service import Actor
from app.auth.errors import InvalidTokenError, WrongCodeError
from app.auth.schemas import TokenPair
from app.auth.sessions import service as sessions
from app.auth.settings import AuthSettings
from app.auth.toolkit import Toolkit
from app.core.config import Settings
from app.core.db.database import ReadSession, WriteSession
from app.core.security.rate_limits import RateLimiter
from app.factors import crud, proofs, recovery_codes, sealed, totp
from app.factors.errors import MfaRequiredByRoleError, TotpEnabledError, TotpNotFoundError, TotpNotPendingError
from app.factors.login import limits
from app.factors.schemas import MfaRead, TotpConfirmed, TotpPending, TotpRead
from app.jobs import queue
from app.mail.settings import MailSettings
from app.users import jobs as user_jobs
from app.users import service as users_service
from app.users.service import Account, Confirm


async def get_status(session: ReadSession, settings: Settings, user_id: UUID) -> MfaRead:
    status = await crud.get_status(session, user_id)
    if status is None:
        raise InvalidTokenError
    return MfaRead(
        totp=TotpRead(created_at=status.created_at, last_used_at=status.last_used_at) if status.created_at else None,
        recovery_codes_left=status.recovery_codes_left,
        passkeys=0,
        is_required=_is_required(settings, status.role),
    )


def _is_required(settings: Settings, role: str) -> bool:
    return role in settings.of(AuthSettings).mfa_required_roles


async def start_totp(session: WriteSession, kit: Toolkit, account: Account, *, confirm: Confirm) -> TotpPending:
    """Create a secret for an authenticator app. It replaces one that was not confirmed."""
    secret = totp.new_secret()
    uri = totp.uri(secret, issuer=_issuer(kit.settings), account=account.email)
    # The slow part comes first, in a thread: no statement has run yet, so the session holds no connection.
    qr_svg = await asyncio.to_thread(_draw, uri)
    await confirm(session)
    created_at = await crud.start_enrolment(session, account.id, sealed.seal(kit.keys, account.id, secret))
    if created_at is None:
        raise TotpEnabledError
    return TotpPending(
        secret=totp.encoded(secret), otpauth_uri=uri, qr_svg=qr_svg, expires_at=created_at + crud.PENDING
    )


def _issuer(settings: Settings) -> str:
    return settings.of(AuthSettings).mfa_issuer or settings.of(MailSettings).from_name


def _draw(uri: str) -> str:
    """Return a QR code as SVG. Its background is white, so apps can read it on dark pages too."""
    image = io.BytesIO()
    code = segno.make(uri, error="m", micro=False)
    code.save(image, kind="svg", xmldecl=False, omitsize=True, light="#fff", nl=False)
    return image.getvalue().decode()


async def confirm_totp(kit: Toolkit, actor: Actor, user_id: UUID, code: str, *, confirm: Confirm) -> TotpConfirmed:
    """Make the pending secret the second factor of the account, and create its recovery codes. The other sessions end."""
    counted = limits.guess(actor, user_id)
    await kit.limiter.hit(*counted)

    async def enable(session: WriteSession) -> TotpConfirmed:
        await confirm(session)
        pending = await crud.lock_pending(session, user_id)
        if pending is None:
            raise TotpNotPendingError
        step = proofs.matching_step(kit.keys, user_id, pending, code)
        if step is None:
            raise WrongCodeError
        await crud.confirm(session, user_id, step)
        codes = await _replace_recovery_codes(session, user_id)
        pair = await _raise_session(session, kit, actor, user_id)
        # Wrong codes of the setup do not count for the factor.
        await kit.limiter.restart(session, *limits.of_account(user_id))
        await audit.record(session, actor, "auth.mfa_enabled", subject_id=user_id)
        await queue.enqueue(session, user_jobs.mail_user_notice, "second_factor_added", user_id)
        return TotpConfirmed(**pair.model_dump(), recovery_codes=codes)

    try:
        confirmed = await kit.database.unit(enable)
    except WrongCodeError as error:
        # Without a mail to the owner: the code is one of a secret that protects nothing yet.
        async with kit.database.begin() as session:
            await audit.record(session, actor, "auth.second_factor_failed", subject_id=user_id, reason=error.reason)
        raise
    except TotpNotPendingError:
        # No code was checked. Otherwise the holder of an access token could use up the guesses of logins here.
        await kit.limiter.forgive(*counted)
        raise
    await kit.limiter.forgive(*counted)
    return confirmed


async def _raise_session(session: WriteSession, kit: Toolkit, actor: Actor, user_id: UUID) -> TokenPair:
    """End the other sessions, which have given no second factor. This one has."""
    await sessions.revoke_all(session, user_id, "user", except_id=actor.session_id)
    return await sessions.renew(session, kit, actor, factor=("otp",))


async def _replace_recovery_codes(session: WriteSession, user_id: UUID) -> list[str]:
    codes = recovery_codes.new_codes()
    digests = [digest for digest in map(recovery_codes.digest, codes) if digest]
    await crud.replace_recovery_codes(session, user_id, digests)
    return codes


async def remove_totp(session: WriteSession, kit: Toolkit, actor: Actor, user_id: UUID, *, confirm: Confirm) -> None:
    """Remove the authenticator app with its recovery codes, and end the sessions that were begun with them."""
    await confirm(session)
    account = await users_service.get_account(session, user_id)
    if _is_required(kit.settings, account.role):
        raise MfaRequiredByRoleError
    if not await crud.remove_all(session, user_id):
        raise TotpNotFoundError
    await kit.limiter.restart(session, *limits.of_account(user_id))
    await sessions.revoke_all(session, user_id, "user", acr="aal2")
    await audit.record(session, actor, "auth.mfa_disabled", subject_id=user_id)
    await queue.enqueue(session, user_jobs.mail_user_notice, "second_factor_removed", user_id)


async def create_recovery_codes(session: WriteSession, actor: Actor, user_id: UUID, *, confirm: Confirm) -> list[str]:
    """Create new recovery codes. The old ones stop working."""
    await confirm(session)
    if await crud.get_sealed(session, user_id) is None:
        raise TotpNotFoundError
    codes = await _replace_recovery_codes(session, user_id)
    await audit.record(session, actor, "auth.recovery_codes_created", subject_id=user_id)
    return codes


async def reset_by_admin(session: WriteSession, kit: Toolkit, actor: Actor, user_id: UUID, *, confirm: Confirm) -> None:
    """Remove the second factors of an account, on behalf of an administrator, and end its sessions.

    For the administrator's own account, it refuses what `remove_totp` refuses.
    """
    await confirm(session, user_id)
    account = await users_service.get_account(session, user_id)
    if actor.user_id == user_id and _is_required(kit.settings, account.role):
        raise MfaRequiredByRoleError
    await reset(session, kit.limiter, actor, user_id)


async def reset(session: WriteSession, limiter: RateLimiter, actor: Actor, user_id: UUID) -> None:
    """Remove the second factors of an account, end its sessions, and tell its owner. The caller has locked the account."""
    await crud.remove_all(session, user_id)
    # Otherwise wrong codes of the removed factor would keep the owner from the setup of another one.
    await limiter.restart(session, *limits.of_account(user_id))
    await sessions.revoke_all(session, user_id, "admin")
    await audit.record(session, actor, "auth.mfa_reset_by_admin", subject_id=user_id)
    await queue.enqueue(session, user_jobs.mail_user_notice, "second_factor_reset", user_id)
