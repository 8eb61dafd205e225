"""Does a verified access token still speak for its account and session? Decided without a query where that is safe."""

from collections.abc import Collection
from uuid import UUID

from app.auth.access import crud
from app.auth.access.crud import Standing
from app.auth.access.revocation import RevocationListener
from app.auth.access.tokens import AccessClaims
from app.auth.errors import InsufficientScopeError, InvalidTokenError
from app.core.db.database import Database, WriteSession
from app.users.roles import granted


class StandingCheck:
    """Refuses tokens of ended sessions and of disabled or changed accounts."""

    def __init__(self, database: Database, listener: RevocationListener | None) -> None:
        self._database = database
        self._listener = listener

    async def refuse_revoked(self, claims: AccessClaims, needed: Collection[str] = (), *, ask: bool = False) -> None:
        """Raise `InvalidTokenError` for a revoked token; with `ask` the database decides, whatever this process knows.

        The database also tells whether the account's role grants the needed scopes; without a query, the token's word is taken.
        When neither this process nor the database can tell, the error is that of the database: a 503, never a guess.
        """
        listener = self._listener
        if listener is not None and not ask and listener.is_current:
            if listener.covers(session_id=claims.session_id, user_id=claims.user_id, version=claims.version):
                raise InvalidTokenError
            return
        await self._ask(claims, needed)

    async def _ask(self, claims: AccessClaims, needed: Collection[str]) -> None:
        async with self._database.read_sessions() as session:
            standing = await crud.get_standing(session, claims.user_id, claims.session_id)
        _judge(standing, claims.version, needed)


async def hold(
    session: WriteSession,
    *,
    user_id: UUID,
    session_id: UUID,
    version: int,
    needed: Collection[str] = (),
    accounts: Collection[UUID] = (),
    with_admins: bool = False,
) -> Collection[UUID]:
    """Raise for a token that no longer speaks for its account or these scopes; otherwise it does until the transaction ends.

    Locks the caller's account, the others given and, if asked for, all active administrators, then the login session. Returns
    the active administrators among the locked accounts. A transaction that ends the session or changes one of the accounts waits.
    """
    held = await crud.hold_standing(session, user_id, session_id, accounts=accounts, with_admins=with_admins)
    _judge(held and held.standing, version, needed)
    return held.admins if held else ()


def _judge(standing: Standing | None, version: int, needed: Collection[str]) -> None:
    if standing is None or not standing.is_active or not standing.is_session_live:
        raise InvalidTokenError
    # A version to come is one the account has not had: the database has been set back to an earlier state.
    if version != standing.authz_version:
        raise InvalidTokenError
    # The token is current, but says more than its account may do.
    if not granted(standing.role).issuperset(needed):
        raise InsufficientScopeError(needed)
