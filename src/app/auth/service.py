"""Log in."""

import time
from collections.abc import Iterable
from typing import Any

from uuid_utils.compat import uuid7

from app.audit import service as audit
from app.auth.errors import EmailNotVerifiedError, InvalidGrantError, InvalidScopeError, InvalidTokenError
from app.auth.schemas import AccessTokenRead, PasswordGrant
from app.auth.tokens import AccessClaims, AccessTokens
from app.core.database import Database, ReadSession
from app.core.security import PasswordHasher
from app.users import service as users_service
from app.users.roles import GRANTS, Role
from app.users.service import Account, Credentials


async def refuse_revoked(session: ReadSession, claims: AccessClaims) -> None:
    """Raise `InvalidTokenError` when the account is gone or disabled, or its rights have changed since the token."""
    account = await users_service.find_account(session, claims.user_id)
    if account is None or not account.is_active or account.authz_version != claims.version:
        raise InvalidTokenError


async def log_in(
    database: Database,
    hasher: PasswordHasher,
    tokens: AccessTokens,
    payload: PasswordGrant,
    *,
    require_verified_email: bool,
) -> AccessTokenRead:
    """Trade an address and a password for an access token; every refusal costs the same work and looks the same."""
    # No connection is held while the password is hashed: read, give back, hash, and write only if there is a need.
    async with database.read_sessions() as session:
        credentials = await users_service.find_credentials(session, payload.username)
    usable = credentials if credentials and credentials.is_active else None
    stored = usable.hashed_password if usable else None
    verification = await hasher.verify(payload.password.get_secret_value(), stored)
    if usable is None or stored is None or not verification.is_valid:
        raise InvalidGrantError
    if require_verified_email and usable.email_verified_at is None:
        raise EmailNotVerifiedError
    if verification.new_hash is not None:
        async with database.begin() as session:
            await users_service.upgrade_hash(session, usable.id, old=stored, new=verification.new_hash)
    return _issue(tokens, usable, _granted(usable, payload.scope))


def _granted(credentials: Credentials, requested: str | None) -> Iterable[str]:
    granted = GRANTS[Role(credentials.role)]
    wanted = frozenset((requested or "").split())
    if not wanted <= granted:
        raise InvalidScopeError
    return wanted or granted


def _issue(tokens: AccessTokens, credentials: Credentials, scopes: Iterable[str]) -> AccessTokenRead:
    scopes = sorted(scopes)
    token = tokens.issue(
        user_id=credentials.id,
        session_id=uuid7(),
        version=credentials.authz_version,
        scopes=scopes,
        auth_time=int(time.time()),
    )
    return AccessTokenRead(access_token=token, expires_in=tokens.lifetime, scope=" ".join(scopes))


async def export(session: ReadSession, user: Account) -> dict[str, Any]:
    """Gather all that is stored about an account, less secrets."""
    return {"user": user, "audit_events": await audit.list_about(session, user.id)}
