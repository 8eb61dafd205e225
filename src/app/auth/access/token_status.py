"""Checks whether a verified access token is still valid: its session is live, and its account is active and unchanged.

While the revocation listener is current, the check needs no query.
"""

from collections.abc import Collection
from uuid import UUID

from app.auth.access import crud
from app.auth.access.crud import TokenStatus
from app.auth.access.revocation import RevocationListener
from app.auth.access.tokens import AccessClaims
from app.auth.errors import InsufficientAuthenticationError, InsufficientScopeError, InvalidTokenError
from app.auth.settings import AuthSettings
from app.core.db.database import Database, WriteSession
from app.users.roles import granted


class TokenStatusCheck:
    """Refuses tokens of ended sessions, and of disabled or changed accounts."""

    def __init__(self, database: Database, listener: RevocationListener | None, settings: AuthSettings) -> None:
        self._database = database
        self._listener = listener
        self._settings = settings

    async def refuse_revoked(
        self, claims: AccessClaims, needed: Collection[str] = (), *, always_query: bool = False
    ) -> None:
        """Raise `InvalidTokenError` for a revoked token. With `always_query`, always query the database.

        A query also checks that the account's role grants the needed scopes to the session; without one, those of the token count. If the
        listener is not current and the database is unreachable, the error of the database is raised: the response is a 503.
        """
        listener = self._listener
        must_query = always_query or self._may_be_withheld(claims, needed)
        if listener is not None and not must_query and listener.is_current:
            if listener.is_revoked(session_id=claims.session_id, user_id=claims.user_id, version=claims.version):
                raise InvalidTokenError
            return
        async with self._database.read_sessions() as session:
            status = await crud.get_token_status(session, claims.user_id, claims.session_id)
        checked(status, claims.version, needed, self._settings)

    def _may_be_withheld(self, claims: AccessClaims, needed: Collection[str]) -> bool:
        """Return whether a token lacks scopes that a second factor could give it. Only the database knows the role."""
        is_weak = bool(self._settings.mfa_required_roles) and claims.acr != "aal2"
        return is_weak and not claims.scopes.issuperset(needed)


async def lock(
    session: WriteSession,
    *,
    user_id: UUID,
    session_id: UUID,
    version: int,
    settings: AuthSettings,
    needed: Collection[str] = (),
    accounts: Collection[UUID] = (),
    with_admins: bool = False,
) -> Collection[UUID]:
    """Raise unless the token is still valid and its role grants the needed scopes. Both stay true until the transaction ends.

    Locks the caller's account, the other accounts given and, with `with_admins`, all administrators who can log in; then the login
    session. Returns those among the locked accounts. Transactions that end the session or change one of the
    accounts wait.
    """
    status = await crud.lock_token_status(
        session,
        user_id,
        session_id,
        accounts=accounts,
        with_admins=with_admins,
        unverified_can_log_in=not settings.require_verified_email,
    )
    return checked(status, version, needed, settings).admins or ()


def checked(status: TokenStatus | None, version: int, needed: Collection[str], settings: AuthSettings) -> TokenStatus:
    """Raise unless the session is live, the account is active and unchanged, and its role grants the needed scopes to the session."""
    if status is None or not status.is_active or not status.is_session_live:
        raise InvalidTokenError
    # A higher version than that of the account means that the database was restored to an earlier state.
    if version != status.authz_version:
        raise InvalidTokenError
    # The token is current, but the role of the account no longer grants these scopes.
    if not granted(status.role).issuperset(needed):
        raise InsufficientScopeError(needed)
    if needed and settings.withholds(status.role, status.acr):
        raise InsufficientAuthenticationError(acr="aal2")
    return status
