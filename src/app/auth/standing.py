"""Does a verified access token still speak for its account and session? Decided without a query where that is safe."""

from uuid import UUID

from app.auth import crud
from app.auth.crud import Standing
from app.auth.errors import InvalidTokenError
from app.auth.revocation import RevocationListener
from app.auth.tokens import AccessClaims
from app.core.database import Database, WriteSession


class StandingCheck:
    """Refuses tokens of ended sessions, disabled or changed accounts and withdrawn keys."""

    def __init__(self, database: Database, listener: RevocationListener | None) -> None:
        self._database = database
        self._listener = listener

    async def refuse_revoked(self, claims: AccessClaims, *, ask: bool = False) -> None:
        """Raise `InvalidTokenError` for a revoked token; with `ask` the database decides, whatever this process knows.

        When neither this process nor the database can tell, the error is that of the database: a 503, never a guess.
        """
        listener = self._listener
        if listener is not None and not ask and listener.is_current:
            if listener.covers(
                session_id=claims.session_id, user_id=claims.user_id, version=claims.version, kid=claims.kid
            ):
                raise InvalidTokenError
            return
        await self._ask(claims)

    async def _ask(self, claims: AccessClaims) -> None:
        async with self._database.read_sessions() as session:
            standing = await crud.get_standing(session, claims.user_id, claims.session_id, claims.kid)
        _judge(standing, claims.version)


async def hold(session: WriteSession, *, user_id: UUID, session_id: UUID, version: int, kid: str) -> None:
    """Raise `InvalidTokenError` for a token that has been revoked by now, and keep it good until the transaction ends.

    Whoever ends the session or changes the account meanwhile waits: once they have their answer, nothing is written by it.
    """
    _judge(await crud.hold_standing(session, user_id, session_id, kid), version)


def _judge(standing: Standing | None, version: int) -> None:
    if standing is None or not standing.is_active or not standing.is_session_live or standing.is_key_withdrawn:
        raise InvalidTokenError
    # A version to come is one the account has not had: the database has been set back to an earlier state.
    if version != standing.authz_version:
        raise InvalidTokenError
