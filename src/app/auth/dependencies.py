"""The caller of a request: its principal, and its account."""

import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, override
from uuid import UUID

from fastapi import Depends, Request, Security, WebSocket
from fastapi.openapi.models import OAuth2, OAuthFlowPassword, OAuthFlows
from fastapi.requests import HTTPConnection
from fastapi.security import SecurityScopes
from fastapi.security.base import SecurityBase

from app.audit.service import Actor
from app.auth.access import tickets, token_status
from app.auth.access.session_watch import EndReason, SessionWatch, SessionWatches
from app.auth.access.token_status import TokenStatusCheck
from app.auth.errors import (
    InsufficientAuthenticationError,
    InsufficientScopeError,
    InvalidTicketError,
    InvalidTokenError,
    MissingTokenError,
    StaleLoginError,
    TooManyStreamsError,
)
from app.auth.models import Acr
from app.auth.settings import AuthSettings
from app.auth.toolkit import Toolkit
from app.core.db.database import WriteSession
from app.core.db.failures import DatabaseUnavailableError
from app.core.db.reads import Reads
from app.core.errors import AppError, MalformedRequestError
from app.core.http import routing
from app.core.http.access import Guard
from app.core.http.addresses import ip_prefix
from app.core.http.dependencies import CoreState, DatabaseDep
from app.core.http.middleware import ShuttingDownError
from app.core.http.problems import raises
from app.core.http.sockets.exchange import end_socket, ticket_of
from app.users import service as users_service
from app.users.roles import SCOPES
from app.users.service import Account

_SCOPE_ERRORS = (InsufficientScopeError, InsufficientAuthenticationError)
TOKEN_PATH = "/api/v1/auth/token"
RECENT_LOGIN = 300


class AuthState(CoreState):
    """The state of the application that logins and tokens need."""

    auth: Toolkit
    token_status: TokenStatusCheck
    session_watches: SessionWatches


class AuthRequest(Request[AuthState]):
    """A request with a typed `state`."""


class AuthSocket(WebSocket[AuthState]):
    """A WebSocket with a typed `state`."""


class AuthConnection(HTTPConnection[AuthState]):
    """A request or a WebSocket with a typed `state`."""


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller, as the verified access token says."""

    user_id: UUID
    session_id: UUID
    version: int
    scopes: frozenset[str]
    auth_time: int
    # `aal2`: the login session has given a second factor.
    acr: str
    # When the access token expires, in seconds since 1970.
    expires_at: int
    # The scopes that the operation needs.
    needed: frozenset[str]
    settings: AuthSettings
    # Returns the address, user agent and id of the request. Only writes need them, so only writes call it.
    visitor: Callable[[], Actor]

    @property
    def actor(self) -> Actor:
        """The caller, for the audit log."""
        return replace(self.visitor(), user_id=self.user_id, session_id=self.session_id)

    def require_recent_login(self) -> None:
        """Raise if the login is too old for a sensitive operation (RFC 9470)."""
        if self._is_older(RECENT_LOGIN):
            raise StaleLoginError(RECENT_LOGIN)

    def require(self, *, acr: Acr | None = None, max_age: int | None = None) -> None:
        """Raise if the login is weaker than `acr`, or more than `max_age` seconds old. An operation declares it with `require`."""
        is_weak = acr == "aal2" and self.acr != "aal2"
        if is_weak or (max_age is not None and self._is_older(max_age)):
            raise InsufficientAuthenticationError(acr=acr, max_age=max_age)

    def _is_older(self, seconds: int) -> bool:
        return time.time() - self.auth_time > seconds

    async def confirm(self, session: WriteSession, *accounts: UUID, with_admins: bool = False) -> Collection[UUID]:
        """Check again, in the transaction of a write, that the token is not revoked and its role grants the needed scopes.

        Call it before anything else locks a row. Pass every account that the write acts on: all of them are locked in one order,
        see `users.locks`. With `with_admins` it also locks the administrators who can log in, and returns them.
        """
        return await token_status.lock(
            session,
            user_id=self.user_id,
            session_id=self.session_id,
            version=self.version,
            settings=self.settings,
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
        return (MissingTokenError, InvalidTokenError, *(_SCOPE_ERRORS if scopes else ()))

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
            acr=claims.acr,
            expires_at=claims.expires_at,
            needed=frozenset(needed.scopes),
            settings=state["auth"].settings.of(AuthSettings),
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


class TicketGuard(Guard):
    """Returns the caller of a WebSocket, and closes it when the caller may no longer use it."""

    @override
    def errors(self, scopes: Collection[str]) -> Iterable[type[AppError]]:
        return (InvalidTicketError, TooManyStreamsError, *(_SCOPE_ERRORS if scopes else ()))

    async def __call__(self, socket: AuthSocket, needed: SecurityScopes) -> AsyncIterator[Principal]:
        """Use the ticket of the handshake up, and watch the caller until the socket is closed."""
        routing.refuse_undeclared_parameters(socket.scope)
        settings = socket.state["settings"].of(AuthSettings)
        bearer = await tickets.redeem(socket.state["database"], ticket_of(socket.scope), needed.scopes, settings)
        socket.scope["user_id"], socket.scope["session_id"] = bearer.user_id, bearer.session_id
        watch = SessionWatch(
            user_id=bearer.user_id,
            session_id=bearer.session_id,
            version=bearer.version,
            expires_at=bearer.expires_at,
            on_end=lambda reason: end_socket(socket.scope, _END_ERRORS[reason]()),
        )
        with socket.state["session_watches"].watching(watch):
            yield Principal(
                user_id=bearer.user_id,
                session_id=bearer.session_id,
                version=bearer.version,
                scopes=bearer.scopes,
                auth_time=bearer.auth_time,
                acr=bearer.acr,
                expires_at=bearer.expires_at,
                needed=frozenset(needed.scopes),
                settings=settings,
                visitor=partial(_visitor, socket),
            )


# The code that closes a WebSocket follows from the error.
_END_ERRORS: Mapping[EndReason, type[AppError]] = {
    "expired": InvalidTokenError,
    "revoked": InvalidTokenError,
    "unconfirmed": DatabaseUnavailableError,
    "shutdown": ShuttingDownError,
}


async def get_toolkit(connection: AuthConnection) -> Toolkit:
    """Return the objects that the use cases of auth work with."""
    return connection.state["auth"]


type ToolkitDep = Annotated[Toolkit, Depends(get_toolkit)]


async def get_visitor(connection: AuthConnection) -> Actor:
    """Return the address, user agent and request id of the client, for limits and the audit log."""
    return _visitor(connection)


def _visitor(request: HTTPConnection[AuthState]) -> Actor:
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


type CurrentPrincipal = Annotated[Principal, Security(access_token)]
type ConfirmedPrincipal = Annotated[Principal, Security(confirmed_access_token)]
type OptionalPrincipal = Annotated[Principal | None, Security(OptionalTokenGuard())]
ticket = TicketGuard()
type SocketPrincipal = Annotated[Principal, Security(ticket)]


def require(*, acr: Acr | None = None, max_age: int | None = None) -> Any:
    """Return a dependency that refuses a login weaker than `acr`, or more than `max_age` seconds old: `dependencies=[require(…)]`."""

    @raises(InsufficientAuthenticationError)
    async def check(principal: CurrentPrincipal) -> None:
        principal.require(acr=acr, max_age=max_age)

    return Depends(check)


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
