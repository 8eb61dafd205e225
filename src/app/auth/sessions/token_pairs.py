"""Makes the pair of tokens that a login session gives its client."""

from datetime import UTC, datetime

from app.auth.errors import InvalidScopeError
from app.auth.schemas import TokenPair
from app.auth.sessions import refresh_tokens
from app.auth.sessions.crud import SessionState
from app.auth.toolkit import Toolkit
from app.users.roles import GRANTS, Role


def granted_scopes(role: str, requested: str | None, within: str = "") -> frozenset[str]:
    """Give what the role grants, limited to what was asked for now and, by `within`, at login."""
    granted = GRANTS[Role(role)]
    if within:
        granted &= frozenset(within.split())
    wanted = frozenset((requested or "").split())
    if not wanted <= granted:
        raise InvalidScopeError
    return wanted or granted


def issue(kit: Toolkit, state: SessionState, requested_scope: str | None = None) -> TokenPair:
    """Make the pair of tokens that the session's present state gives."""
    scopes = granted_scopes(state.role, requested_scope, within=state.scope)
    ends = min(state.idle_expires_at, state.absolute_expires_at)
    access_token, expires_in = kit.access_tokens.issue(
        user_id=state.user_id,
        session_id=state.id,
        version=state.authz_version,
        scopes=scopes,
        auth_time=int(state.auth_time.timestamp()),
        session_ends=ends.timestamp(),
    )
    # A pepper that is removed: the same generation made with another is as good.
    pepper_id = state.pepper_id if kit.keys.pepper(state.pepper_id) else kit.keys.active_pepper
    return TokenPair(
        access_token=access_token,
        expires_in=expires_in,
        refresh_token=refresh_tokens.make(
            kit.keys, state.id, generation=state.generation, pepper_id=pepper_id, nonce=state.nonce
        ),
        refresh_expires_in=max(0, int((ends - datetime.now(UTC)).total_seconds())),
        scope=" ".join(sorted(scopes)),
    )
