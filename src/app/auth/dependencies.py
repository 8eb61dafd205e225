"""The caller of a request: its principal, and its account."""

import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, override
from uuid import UUID

from fastapi import Depends, Header, Request, Response, Security
from fastapi.openapi.models import OAuth2, OAuthFlowPassword, OAuthFlows
from fastapi.security import SecurityScopes
from fastapi.security.base import SecurityBase
from pydantic import SecretStr

from app.audit.service import Actor
from app.auth.access import token_status
from app.auth.access.session_watch import SessionWatch, SessionWatches
from app.auth.access.token_status import TokenStatusCheck
from app.auth.errors import (
    InsufficientScopeError,
    InvalidRequestError,
    InvalidTokenError,
    MissingTokenError,
    StaleLoginError,
    TokenTransportError,
    TooManyStreamsError,
)
from app.auth.schemas import TokenPair
from app.auth.settings import AuthSettings
from app.auth.toolkit import Toolkit
from app.core.db.database import WriteSession
from app.core.db.reads import Reads
from app.core.errors import AppError, MalformedRequestError
from app.core.http.access import Guard
from app.core.http.addresses import ip_prefix
from app.core.http.cookies import (
    AmbiguousCookieError,
    OriginRefusedError,
    clear_host_cookie,
    host_cookie,
    refuse_foreign_page,
    set_host_cookie,
)
from app.core.http.dependencies import CoreState, DatabaseDep
from app.core.http.problems import raises
from app.core.schemas.fields import Plain
from app.users import service as users_service
from app.users.roles import SCOPES
from app.users.service import Account

TOKEN_PATH = "/api/v1/auth/token"
RECENT_LOGIN = 300
# The name of the cookie with the refresh token, after the prefix `__Host-`.
COOKIE = "refresh"


class AuthState(CoreState):
    """The state of the application that logins and tokens need."""

    auth: Toolkit
    token_status: TokenStatusCheck
    session_watches: SessionWatches


class AuthRequest(Request[AuthState]):
    """A request with a typed `state`."""


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller, as the verified access token says."""

    user_id: UUID
    session_id: UUID
    version: int
    scopes: frozenset[str]
    auth_time: int
    # When the access token expires, in seconds since 1970.
    expires_at: int
    # The scopes that the operation needs.
    needed: frozenset[str]
    # Returns the address, user agent and id of the request. Only writes need them, so only writes call it.
    visitor: Callable[[], Actor]

    @property
    def actor(self) -> Actor:
        """The caller, for the audit log."""
        return replace(self.visitor(), user_id=self.user_id, session_id=self.session_id)

    def require_recent_login(self) -> None:
        """Raise if the login is too old for a sensitive operation (RFC 9470)."""
        if time.time() - self.auth_time > RECENT_LOGIN:
            raise StaleLoginError(RECENT_LOGIN)

    async def confirm(self, session: WriteSession, *accounts: UUID, with_admins: bool = False) -> Collection[UUID]:
        """Check again, in the transaction of a write, that the token is not revoked and its role grants the needed scopes.

        Call it before anything else locks a row. Pass every account that the write acts on: all of them are locked in one order,
        see `users.locks`. With `with_admins` it also locks the active administrators, and returns them.
        """
        return await token_status.lock(
            session,
            user_id=self.user_id,
            session_id=self.session_id,
            version=self.version,
            needed=self.needed,
            accounts=accounts,
            with_admins=with_admins,
        )


class _TokenGuard(SecurityBase, Guard):
    """Reads the access token from `Authorization: Bearer …` alone: no query, form or cookie (RFC 9700, 4.3.2)."""

    def __init__(self, *, always_query: bool = False) -> None:
        self._always_query = always_query
        self.scheme_name = "login"
        self.model = OAuth2(
            flows=OAuthFlows(password=OAuthFlowPassword(tokenUrl=TOKEN_PATH, scopes=SCOPES)),
            description="Log in with email address and password.",
        )

    @override
    def errors(self, scopes: Collection[str]) -> Iterable[type[AppError]]:
        return (MissingTokenError, InvalidTokenError, *((InsufficientScopeError,) if scopes else ()))

    async def principal(self, request: AuthRequest, needed: SecurityScopes) -> Principal:
        """Verify the token, then check that it is not revoked, then check its scopes. Return the caller."""
        state = request.state
        claims = state["auth"].access_tokens.read(_bearer_token(request))
        await state["token_status"].refuse_revoked(claims, needed.scopes, always_query=self._always_query)
        request.scope["user_id"], request.scope["session_id"] = claims.user_id, claims.session_id
        if not claims.scopes.issuperset(needed.scopes):
            raise InsufficientScopeError(needed.scopes)
        return Principal(
            user_id=claims.user_id,
            session_id=claims.session_id,
            version=claims.version,
            scopes=claims.scopes,
            auth_time=claims.auth_time,
            expires_at=claims.expires_at,
            needed=frozenset(needed.scopes),
            visitor=partial(_visitor, request),
        )


class AccessTokenGuard(_TokenGuard):
    """Returns the caller of an operation."""

    async def __call__(self, request: AuthRequest, needed: SecurityScopes) -> Principal:
        """Return the caller, or refuse the request."""
        return await self.principal(request, needed)


class OptionalTokenGuard(_TokenGuard):
    """Returns the caller of an operation, or None for an anonymous one."""

    is_optional = True

    async def __call__(self, request: AuthRequest, needed: SecurityScopes) -> Principal | None:
        """Return None without an `Authorization` header. Refuse one that is not valid, such as an expired token.

        Otherwise a caller who believes to be logged in would silently get the response for anonymous callers.
        """
        return await self.principal(request, needed) if "authorization" in request.headers else None


class AccountGuard(_TokenGuard):
    """Returns the caller's account. It is one dependency instead of two, because each dependency costs time."""

    async def __call__(self, request: AuthRequest, needed: SecurityScopes) -> Account:
        """Return the caller's account, or refuse the request."""
        principal = await self.principal(request, needed)
        return await _current_account(request.state["database"].reads, principal)


async def get_toolkit(request: AuthRequest) -> Toolkit:
    """Return the objects that the use cases of auth work with."""
    return request.state["auth"]


type ToolkitDep = Annotated[Toolkit, Depends(get_toolkit)]


async def get_visitor(request: AuthRequest) -> Actor:
    """Return the address, user agent and request id of the client, for limits and the audit log."""
    return _visitor(request)


def _visitor(request: AuthRequest) -> Actor:
    address = request.state["addresses"].find(
        request.client.host if request.client else None,
        x_forwarded_for=",".join(request.headers.getlist("x-forwarded-for")),
        forwarded=request.headers.get("forwarded"),
    )
    return Actor(
        ip_prefix=ip_prefix(address),
        request_id=request.scope["request_id"],
        user_agent=request.headers.get("user-agent"),
        address=address,
    )


type Visitor = Annotated[Actor, Depends(get_visitor)]


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
# "Confirmed": every request queries the database for a revocation, and does not rely on the copy in memory. For changes of
# credentials, and for changes by administrators.
confirmed_access_token = AccessTokenGuard(always_query=True)


@dataclass(frozen=True, slots=True)
class TokenTransport:
    """How the refresh token of a request travels: in bodies, or in a cookie that no script can read."""

    is_cookie: bool = False
    cookie: str | None = None

    def refresh_token(self, in_body: SecretStr | None) -> str | None:
        """Return the token that the client sent. Raises `InvalidRequestError` for a token in the body beside the header."""
        if not self.is_cookie:
            return in_body.get_secret_value() if in_body else None
        if in_body:
            raise InvalidRequestError
        return self.cookie

    def sent(self, response: Response, pair: TokenPair) -> TokenPair:
        """Move the refresh token from the body of the response to its cookie, if the client asked for that."""
        if self.is_cookie and pair.refresh_token:
            response.headers.update(set_host_cookie(COOKIE, pair.refresh_token, pair.refresh_expires_in))
            return pair.model_copy(update={"refresh_token": None})
        return pair

    @property
    def clearing(self) -> dict[str, str]:
        """The header that deletes the cookie, if the client uses it."""
        return clear_host_cookie(COOKIE) if self.is_cookie else {}


@raises(TokenTransportError, OriginRefusedError, AmbiguousCookieError)
async def get_token_transport(
    request: AuthRequest,
    token_transport: Annotated[
        Annotated[str, Plain] | None,
        Header(
            description="`cookie`: the refresh token is in a cookie, and not in bodies. Only for pages of this site.",
            json_schema_extra={"enum": ["cookie"]},
        ),
    ] = None,
) -> TokenTransport:
    """Return how the refresh token of this request travels.

    No form can send the header, and a script of another origin needs the permission of a preflight. So the header is what protects
    the cookie from requests that other sites forge; the checks of the page's origin are the second line.
    """
    given = request.headers.getlist("token-transport")
    if token_transport is None:
        return TokenTransport()
    is_on = request.state["settings"].of(AuthSettings).cookie_transport
    if not is_on or given != ["cookie"]:
        raise TokenTransportError(is_on=is_on)
    refuse_foreign_page(request.headers, request.state["settings"].trusted_origins)
    return TokenTransport(is_cookie=True, cookie=host_cookie(request.headers, COOKIE))


type TokenTransportDep = Annotated[TokenTransport, Depends(get_token_transport)]
type CurrentPrincipal = Annotated[Principal, Security(access_token)]
type ConfirmedPrincipal = Annotated[Principal, Security(confirmed_access_token)]
type OptionalPrincipal = Annotated[Principal | None, Security(OptionalTokenGuard())]


@raises(TooManyStreamsError)
async def get_session_watch(request: AuthRequest, principal: CurrentPrincipal) -> AsyncIterator[SessionWatch]:
    """Watch the caller until the response ends. Only for responses that last long, such as event streams."""
    watch = SessionWatch(
        user_id=principal.user_id,
        session_id=principal.session_id,
        version=principal.version,
        expires_at=principal.expires_at,
    )
    with request.state["session_watches"].watching(watch):
        yield watch


# scope="request": the watch must last until the response has been sent.
type SessionWatchDep = Annotated[SessionWatch, Depends(get_session_watch, scope="request")]
type UsersReader = Annotated[Principal, Security(access_token, scopes=["users:read"])]
type UsersWriter = Annotated[Principal, Security(confirmed_access_token, scopes=["users:write"])]


async def _current_account(reads: Reads, principal: Principal) -> Account:
    account = await users_service.find_account(reads, principal.user_id)
    if account is None or not account.is_active or account.authz_version != principal.version:
        raise InvalidTokenError
    return account


async def get_confirmed_user(principal: ConfirmedPrincipal, database: DatabaseDep) -> Account:
    """Read the caller's account for a change of credentials. The database has confirmed that the token is not revoked."""
    # `reads` holds no connection afterwards, while the password is hashed.
    return await _current_account(database.reads, principal)


type CurrentUser = Annotated[Account, Security(AccountGuard())]
type ConfirmedUser = Annotated[Account, Depends(get_confirmed_user)]
