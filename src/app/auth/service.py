"""Logging in, refreshing, logging out, and giving the password again."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Literal
from uuid import UUID

from pydantic import SecretStr

from app.audit import service as audit
from app.audit.service import Actor
from app.auth.errors import (
    EmailNotVerifiedError,
    InvalidGrantError,
    InvalidTokenError,
    MfaRequiredError,
    RefreshRefusedError,
    WrongCodeError,
    WrongPasswordError,
)
from app.auth.schemas import PasswordGrant, Reauthentication, TokenPair
from app.auth.second_factor import MfaRequired
from app.auth.sessions import crud, limits, rotation
from app.auth.sessions import service as sessions
from app.auth.sessions.crud import Credentials, LockedUser
from app.auth.settings import AuthSettings
from app.auth.toolkit import Toolkit
from app.core.db.database import ReadSession, WriteSession
from app.core.errors import RateLimitedError
from app.core.observability.metrics import Counter
from app.core.schemas.emails import InvalidEmailError, identity
from app.core.security.hashing import HashingBusyError, Verification
from app.core.security.rate_limits import Counted
from app.users import service as users_service
from app.users.service import Account, Confirm

_LOGINS = Counter("logins", "Logins with a password, by outcome.", outcome=("succeeded", "invalid_grant"))
_FAILURES = Counter("login_failures", "Refused logins, by the reason that the client is not told.", reason=())
_REFRESHES = Counter("token_refreshes", "Uses of refresh tokens, by outcome.", outcome=("succeeded", "invalid_grant"))


async def log_in(kit: Toolkit, actor: Actor, payload: PasswordGrant) -> TokenPair:
    """Exchange an address and a password for a pair of tokens.

    Until the password is proved, neither a refusal nor the time that it takes reveals whether the account exists.
    """
    with _LOGINS.outcome():
        return await _log_in(kit, actor, payload)


async def refresh(kit: Toolkit, actor: Actor, token: str, *, scope: str | None) -> TokenPair:
    """Exchange a refresh token for the next pair of tokens."""
    with _REFRESHES.outcome():
        return await _refresh(kit, actor, token, scope)


async def _refresh(kit: Toolkit, actor: Actor, token: str, scope: str | None) -> TokenPair:
    try:
        async with kit.database.begin() as session:
            return await rotation.refresh(session, kit, actor, token, scope=scope)
    except InvalidGrantError as error:
        # Only failures count, so a client with valid refresh tokens is never limited.
        await count_misuse(kit, actor)
        if isinstance(error, RefreshRefusedError):
            await _record_refusal(kit, actor, error)
        raise


async def _record_refusal(kit: Toolkit, actor: Actor, refused: RefreshRefusedError) -> None:
    # Only after the limit, and only for genuine tokens: otherwise an attacker could fill the audit log.
    actor = replace(actor, session_id=refused.session_id)
    async with kit.database.begin() as session:
        await audit.record(session, actor, "auth.refresh_refused", subject_id=refused.user_id, reason=refused.reason)


async def _log_in(kit: Toolkit, actor: Actor, payload: PasswordGrant) -> TokenPair:
    login = await _verify_login(kit, actor, payload)
    if login.credentials.is_enrolled:
        required = await kit.database.unit(partial(_ask, kit=kit, actor=actor, login=login, scope=payload.scope))
        raise MfaRequiredError(**asdict(required))
    return await kit.database.unit(partial(_start, kit=kit, actor=actor, login=login, scope=payload.scope))


@dataclass(frozen=True, slots=True)
class _VerifiedLogin:
    """A login with the right password. `new_hash` replaces a hash with outdated parameters."""

    credentials: Credentials
    stored: str
    new_hash: str | None
    # The limits that have counted the attempt.
    counted: tuple[Counted, ...]
    # The attempt exceeds the limit of the account, which has not counted it.
    is_over_limit: bool


async def _verify_login(kit: Toolkit, actor: Actor, payload: PasswordGrant) -> _VerifiedLogin:
    counted = limits.login(actor, payload.username)
    retry_after = await kit.limiter.hit(*counted)
    if retry_after is not None:
        # The exhausted limit has not counted this attempt, so a success must not decrement its counter.
        counted = tuple((limit, subject) for limit, subject in counted if limit.refuses)
    # The connection goes back to the pool before hashing, which is slow. The writes use another one.
    async with kit.database.read_sessions() as session:
        credentials = await _find_login(session, kit, actor, payload.username)
    is_limited = retry_after is not None and not (credentials and credentials.is_known_origin)
    stored = credentials.hashed_password if credentials and credentials.is_active and not is_limited else None
    verification = await _verify(kit, counted, payload.password.get_secret_value(), stored)
    if credentials is None or stored is None or not verification.is_valid:
        await _record_failure(kit, actor, credentials, "account_limit" if is_limited else _reason(credentials))
        # Above the limit, every caller gets the same error. It reveals neither the account nor the addresses of its owner.
        raise InvalidGrantError if retry_after is None else RateLimitedError(retry_after=retry_after)
    if kit.settings.of(AuthSettings).require_verified_email and credentials.email_verified_at is None:
        await _record_failure(kit, actor, credentials, "email_not_verified")
        raise EmailNotVerifiedError
    return _VerifiedLogin(credentials, stored, verification.new_hash, counted, is_over_limit=retry_after is not None)


async def _ask(
    session: WriteSession, *, kit: Toolkit, actor: Actor, login: _VerifiedLogin, scope: str | None
) -> MfaRequired:
    await _upgrade_hash(session, login)
    return await kit.second_factor.ask(
        session,
        kit,
        actor,
        login.credentials.id,
        authz_version=login.credentials.authz_version,
        scope=scope,
        is_over_limit=login.is_over_limit,
    )


async def _start(
    session: WriteSession, *, kit: Toolkit, actor: Actor, login: _VerifiedLogin, scope: str | None
) -> TokenPair:
    await _upgrade_hash(session, login)
    # During hashing the account may have been disabled, or its password changed. So it is locked and read again.
    user = await sessions.lock_unchanged(session, login.credentials.id, login.credentials.authz_version)
    forgiven = kit.limiter.forgiveness(*login.counted)
    return await sessions.start(session, kit, actor, user, scope, acr="aal1", amr=("pwd",), ctes=(forgiven,))


async def _upgrade_hash(session: WriteSession, login: _VerifiedLogin) -> None:
    if login.new_hash is not None:
        await users_service.upgrade_hash(session, login.credentials.id, old=login.stored, new=login.new_hash)


async def complete_login(
    session: WriteSession,
    kit: Toolkit,
    actor: Actor,
    user: LockedUser,
    scope: str | None,
    *,
    amr: Sequence[str],
    is_over_limit: bool,
    counted: Sequence[Counted] = (),
) -> TokenPair:
    """Start the session of a login that was asked for a second factor and has given one: the second leg.

    The caller has locked the account with `sessions.lock_unchanged`. `amr` has the methods of the factor, such as `("otp",)`. Only now
    is the attempt taken back that the first leg counted: a right password alone resets no limit. The limit that it was over has not
    counted it. `counted` has the limits of the second leg.
    """
    with _LOGINS.outcome():
        first_leg = (one for one in limits.login(actor, user.email_key) if one[0].refuses or not is_over_limit)
        forgiven = kit.limiter.forgiveness(*first_leg, *counted)
        return await sessions.start(
            session, kit, actor, user, scope, acr="aal2", amr=("pwd", *amr, "mfa"), ctes=(forgiven,)
        )


async def _find_login(session: ReadSession, kit: Toolkit, actor: Actor, username: str) -> Credentials | None:
    try:
        email_key = identity(username)
    except InvalidEmailError:
        return None
    return await crud.get_login(session, email_key, sessions.origin(kit, actor), kit.second_factor.is_enrolled)


async def _verify(kit: Toolkit, counted: tuple[Counted, ...], password: str, stored: str | None) -> Verification:
    try:
        return await kit.hasher.verify(password, stored)
    except HashingBusyError:
        # The password was not checked, so the attempt does not count.
        await kit.limiter.forgive(*counted)
        raise


def _reason(credentials: Credentials | None) -> str:
    if credentials is None:
        return "unknown_account"
    if not credentials.is_active:
        return "disabled"
    return "wrong_password" if credentials.hashed_password else "no_password"


async def _record_failure(kit: Toolkit, actor: Actor, credentials: Credentials | None, reason: str) -> None:
    """Record the real reason in a transaction of its own, because the request is about to fail."""
    _FAILURES.count(reason)
    async with kit.database.begin() as session:
        subject_id = credentials.id if credentials else None
        await audit.record(session, actor, "auth.login_failed", subject_id=subject_id, reason=reason)


async def revoke(session: WriteSession, kit: Toolkit, actor: Actor, token: str) -> bool:
    """End the login session that a token belongs to. Returns False for an unknown token, which is no error (RFC 7009)."""
    try:
        claims = kit.access_tokens.read(token)
    except InvalidTokenError:
        return await sessions.end_by_refresh_token(session, kit, actor, token)
    else:
        return await sessions.end_by_access_token(session, actor, claims.user_id, claims.session_id)


async def reauthenticate(
    kit: Toolkit, actor: Actor, user_id: UUID, payload: Reauthentication, *, confirm: Confirm
) -> TokenPair:
    """Check the strongest that the account has, and give the same login session a new `auth_time` (RFC 9470).

    That is a code of its second factor, which raises the session to `aal2`, or else the password.
    """
    if payload.password is None:
        return await _reauthenticate_with_factor(kit, actor, user_id, payload, confirm)
    await confirm_password(kit, actor, user_id, payload.password.get_secret_value())
    return await kit.database.unit(lambda session: sessions.renew(session, kit, actor))


async def _reauthenticate_with_factor(
    kit: Toolkit, actor: Actor, user_id: UUID, payload: Reauthentication, confirm: Confirm
) -> TokenPair:
    counted = kit.second_factor.limits(actor, user_id)
    await kit.limiter.hit(*counted)
    code, recovery_code = map(_revealed, (payload.code, payload.recovery_code))

    async def renew(session: WriteSession) -> TokenPair:
        # The account and the session are locked before the rows of the factor: see `users.locks`.
        await confirm(session)
        factor = await kit.second_factor.check(session, kit, actor, user_id, code=code, recovery_code=recovery_code)
        return await sessions.renew(session, kit, actor, factor=factor)

    try:
        pair = await kit.database.unit(renew)
    except WrongCodeError as error:
        await kit.second_factor.record_failure(kit, actor, user_id, error.reason)
        raise
    await kit.limiter.forgive(*counted)
    return pair


def _revealed(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


async def confirm_password(kit: Toolkit, actor: Actor, user_id: UUID, password: str) -> str:
    """Return the stored hash of the account's password, or raise `WrongPasswordError` if the given one is wrong."""
    counted = limits.password(actor, user_id)
    await kit.limiter.hit(*counted)
    # The connection goes back to the pool before hashing.
    async with kit.database.read_sessions() as session:
        stored = await users_service.find_hash(session, user_id)
    verification = await _verify(kit, counted, password, stored)
    if stored is None or not verification.is_valid:
        async with kit.database.begin() as session:
            await audit.record(session, actor, "auth.password_confirmation_failed", subject_id=user_id)
        raise WrongPasswordError
    await kit.limiter.forgive(*counted)
    return stored


async def restart_limits(
    session: WriteSession, kit: Toolkit, actor: Actor, account: Account, *, by: Literal["change", "reset"]
) -> None:
    """Give the owner of an account with a new password the attempts back that others have used up.

    Guesses of the earlier password are worth nothing any more. Guesses of codes are, so new ones are limited. The caller has locked
    the account.
    """
    counted = limits.of_account(actor, account.email)
    if await kit.limiter.hit_within(session, *limits.code_restart(account.id, by)) is None:
        counted += kit.second_factor.counters(account.id)
    await kit.limiter.restart(session, *counted)


async def count_misuse(kit: Toolkit, actor: Actor) -> None:
    """Count an invalid refresh token or an invalid secret of a link, by the client's address."""
    await kit.limiter.hit(*limits.token_misuse(actor))
