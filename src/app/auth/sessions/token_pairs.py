"""Issues the pair of tokens of a login session."""

from datetime import UTC, datetime

from app.auth.errors import InvalidScopeError
from app.auth.schemas import TokenPair
from app.auth.sessions import refresh_tokens
from app.auth.sessions.crud import SessionState
from app.auth.toolkit import Toolkit
from app.users.roles import GRANTS, Role


def granted_scopes(role: str, requested: str | None, within: str = "") -> frozenset[str]:
    """Return the scopes of the role, limited to those requested now and, with `within`, to those of the login."""
    granted = GRANTS[Role(role)]
    if within:
        granted &= frozenset(within.split())
    wanted = frozenset((requested or "").split())
    if not wanted <= granted:
        raise InvalidScopeError
    return wanted or granted


def issue(kit: Toolkit, state: SessionState, requested_scope: str | None = None) -> TokenPair:
    """Issue the pair of tokens for the current state of a session."""
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
    # If the pepper of this generation has been removed, the active one makes an equally valid token.
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
