"""Who is calling: the principal of a request, and the account behind it."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Annotated, override
from uuid import UUID

from fastapi import Depends, Request, Security
from fastapi.openapi.models import OAuthFlowPassword, OAuthFlows
from fastapi.security import OAuth2, SecurityScopes

from app.auth.errors import InsufficientScopeError, InvalidTokenError, MissingTokenError
from app.auth.tokens import AccessTokens
from app.core.access import Guard
from app.core.dependencies import CoreState, ReadSessionDep
from app.core.errors import AppError, MalformedRequestError
from app.core.security import PasswordHasher
from app.users import service as users_service
from app.users.errors import UserNotFoundError
from app.users.roles import SCOPES
from app.users.service import Account

TOKEN_PATH = "/api/v1/auth/token"


class AuthState(CoreState):
    """What the lifespan makes for logins and tokens."""

    hasher: PasswordHasher
    access_tokens: AccessTokens


class AuthRequest(Request[AuthState]):
    """A request whose `state` is typed; FastAPI passes a plain one."""


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller, as a verified access token names them."""

    user_id: UUID
    session_id: UUID
    version: int
    scopes: frozenset[str]
    auth_time: int


class AccessTokenGuard(OAuth2, Guard):
    """Reads `Authorization: Bearer …` and nothing else: no query, no form, no cookie (RFC 9700, 4.3.2)."""

    def __init__(self) -> None:
        super().__init__(
            flows=OAuthFlows(password=OAuthFlowPassword(tokenUrl=TOKEN_PATH, scopes=SCOPES)),
            scheme_name="login",
            description="Log in with email address and password.",
        )

    @override
    def errors(self, scopes: Collection[str]) -> Iterable[type[AppError]]:
        return (MissingTokenError, InvalidTokenError, *((InsufficientScopeError,) if scopes else ()))

    @override
    async def __call__(self, request: AuthRequest, needed: SecurityScopes) -> Principal:  # type: ignore[override]  # Not the header.
        """Give the caller, or say what is missing."""
        claims = request.state["access_tokens"].read(_bearer_token(request))
        request.scope["user_id"] = claims.user_id
        if not claims.scopes.issuperset(needed.scopes):
            raise InsufficientScopeError(needed.scopes)
        return Principal(claims.user_id, claims.session_id, claims.version, claims.scopes, claims.auth_time)


def _bearer_token(request: AuthRequest) -> str:
    given = request.headers.getlist("authorization")
    if len(given) > 1:
        raise MalformedRequestError
    scheme, _, token = (given[0] if given else "").partition(" ")
    if scheme.lower() != "bearer":
        raise MissingTokenError
    if not token:
        raise InvalidTokenError
    return token


access_token = AccessTokenGuard()

type CurrentPrincipal = Annotated[Principal, Security(access_token)]


async def get_current_user(principal: CurrentPrincipal, session: ReadSessionDep) -> Account:
    """Read the caller's account; a token from before its last change of rights no longer speaks for it."""
    try:
        account = await users_service.get_account(session, principal.user_id)
    except UserNotFoundError as error:
        raise InvalidTokenError from error
    if not account.is_active or account.authz_version != principal.version:
        raise InvalidTokenError
    return account


type CurrentUser = Annotated[Account, Depends(get_current_user)]
