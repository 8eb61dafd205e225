"""`/auth`, login sessions below `/users`, and the key set with which other services verify access tokens."""

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Annotated, Any, override

from fastapi import Form, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError

from app.auth import service
from app.auth.access import tickets
from app.auth.dependencies import (
    ConfirmedPrincipal,
    CurrentPrincipal,
    ToolkitDep,
    UsersWriter,
    Visitor,
)
from app.auth.errors import (
    CodeRequiredError,
    EmailNotVerifiedError,
    InvalidClientError,
    InvalidGrantError,
    InvalidRequestError,
    InvalidScopeError,
    MfaRequiredError,
    SessionNotFoundError,
    TooManyReplaysError,
    TooManyTicketsError,
    UnsupportedGrantTypeError,
    WrongCodeError,
    WrongPasswordError,
)
from app.auth.schemas import (
    JsonWebKeySet,
    PasswordGrant,
    Reauthentication,
    RefreshGrant,
    RevocationRequest,
    SessionRead,
    SocketTicketRead,
    TokenPair,
)
from app.auth.sessions import service as sessions
from app.auth.sessions.dependencies import TokenTransportDep
from app.auth.settings import AuthSettings
from app.core.errors import AppError, InvalidInputError, RateLimitedError
from app.core.http import routing
from app.core.http.access import public
from app.core.http.dependencies import KeyRingDep, ReadSessionDep, SessionDep, SettingsDep
from app.core.http.pagination import Page, PageQuery, PagerDep
from app.core.http.problems import problem_responses
from app.core.schemas.fields import PathIdentifier
from app.core.security.hashing import HashingBusyError
from app.users.dependencies import UserId
from app.users.errors import UserNotFoundError

# Seconds. A new key is published a day before it signs, so up to half a day would be safe.
KEY_SET_MAX_AGE = 3600


class TokenRoute(routing.Route):
    """An operation with the errors that OAuth client libraries expect (RFC 6749, 5.2)."""

    has_oauth_errors = True

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def with_oauth_errors(request: Request) -> Response:
            if any(_is_basic(header) for header in request.headers.getlist("authorization")):
                raise InvalidClientError
            try:
                response = await handle(request)
            except RequestValidationError as error:
                raise _oauth_error(error) from error
            except InvalidInputError as error:
                raise InvalidRequestError from error
            # RFC 6749, 5.1 requires this and Cache-Control, which every response has.
            response.headers["Pragma"] = "no-cache"
            return response

        return with_oauth_errors


def _is_basic(authorization: str) -> bool:
    # There are no client credentials to check. Other schemes are ignored: many clients send their bearer token with every request.
    return authorization.partition(" ")[0].lower() == "basic"


def _oauth_error(error: RequestValidationError) -> AppError:
    errors = {(one["loc"][-1], one["type"]): one for one in error.errors()}
    if ("client_secret", "too_long") in errors:
        return InvalidClientError()
    if {name for name, _ in errors} == {"scope"}:
        return InvalidScopeError()
    unknown_grant = errors.get(("body", "union_tag_invalid"))
    # RFC 6749, 3.1: an empty parameter counts as omitted.
    return UnsupportedGrantTypeError() if unknown_grant and unknown_grant["ctx"]["tag"] else InvalidRequestError()


tokens = routing.router(prefix="/auth", tags=["auth"], route_class=TokenRoute)
router = routing.router(prefix="/auth", tags=["auth"])
me = routing.router(prefix="/users/me", tags=["users"])
users = routing.router(prefix="/users", tags=["users"])
well_known = routing.router(tags=["auth"])

ROUTERS = (tokens, router, me, users)
ROOT_ROUTERS = (well_known,)

type SessionId = Annotated[PathIdentifier, Path(description="The login session's id.")]


@tokens.post(
    "/token",
    openapi_extra=public,
    responses=problem_responses(
        InvalidGrantError,
        EmailNotVerifiedError,
        MfaRequiredError,
        InvalidRequestError,
        InvalidScopeError,
        UnsupportedGrantTypeError,
        InvalidClientError,
        RateLimitedError,
        TooManyReplaysError,
        HashingBusyError,
    ),
)
async def create_token(
    toolkit: ToolkitDep,
    response: Response,
    visitor: Visitor,
    transport: TokenTransportDep,
    payload: Annotated[PasswordGrant | RefreshGrant, Form(discriminator="grant_type")],
) -> TokenPair:
    """Log in, or continue a login session.

    `grant_type=password` exchanges an email address and a password for a pair of tokens. For an account with a second factor, the
    response is 403 `mfa_required`, with an `mfa_token` instead of tokens. `grant_type=refresh_token` exchanges a refresh token, which
    works once, for the next pair.
    """
    if isinstance(payload, PasswordGrant):
        return transport.sent(response, await service.log_in(toolkit, visitor, payload))
    token = transport.refresh_token(payload.refresh_token)
    if not token:
        raise InvalidRequestError
    try:
        return transport.sent(response, await service.refresh(toolkit, visitor, token, scope=payload.scope))
    except InvalidGrantError as error:
        error.headers |= transport.clearing
        raise


@tokens.post("/revoke", openapi_extra=public, responses=problem_responses(InvalidRequestError, InvalidClientError))
async def revoke_token(
    toolkit: ToolkitDep,
    response: Response,
    visitor: Visitor,
    session: SessionDep,
    transport: TokenTransportDep,
    payload: Annotated[RevocationRequest, Form()],
) -> None:
    """Log out: end the login session that the token belongs to (RFC 7009).

    An unknown token is not an error. With the header `Token-Transport`, the cookie is the token, and is deleted.
    """
    token = transport.refresh_token(payload.token)
    if not token and not transport.is_cookie:
        raise InvalidRequestError
    response.headers.update(transport.clearing)
    if token and await service.revoke(session, toolkit, visitor, token):
        # Only if a session ended: a form on a foreign site can send any other token, and must not clear the storage of this origin.
        # Without "cache": no response may be cached, and clearing the cache blocks Chromium for seconds.
        response.headers["Clear-Site-Data"] = '"storage"'


@router.post(
    "/reauthenticate",
    responses=problem_responses(
        WrongPasswordError, WrongCodeError, CodeRequiredError, RateLimitedError, HashingBusyError
    ),
)
async def reauthenticate(
    toolkit: ToolkitDep,
    response: Response,
    transport: TokenTransportDep,
    principal: ConfirmedPrincipal,
    payload: Reauthentication,
) -> TokenPair:
    """Prove again who you are, for an operation that needs a recent login or a second factor. The login session stays the same.

    Give a code if your account has a second factor, and your password otherwise.
    """
    pair = await service.reauthenticate(toolkit, principal.actor, principal.user_id, payload, confirm=principal.confirm)
    return transport.sent(response, pair)


@router.post("/socket-tickets", status_code=HTTPStatus.CREATED, responses=problem_responses(TooManyTicketsError))
async def create_socket_ticket(
    principal: CurrentPrincipal, session: SessionDep, settings: SettingsDep
) -> SocketTicketRead:
    """Get a ticket for a WebSocket.

    It opens one WebSocket, within seconds, with the rights of your access token: `new WebSocket(url, ["ticket", ticket])`.
    """
    await principal.confirm(session)
    return await tickets.issue(
        session,
        session_id=principal.session_id,
        version=principal.version,
        scopes=principal.scopes,
        expires_at=principal.expires_at,
        lifetime=settings.of(AuthSettings).socket_ticket_ttl,
    )


@me.get("/sessions", response_model=Page[SessionRead])
async def list_my_sessions(
    principal: CurrentPrincipal, session: ReadSessionDep, pager: PagerDep, query: Annotated[PageQuery, Query()]
) -> dict[str, Any]:
    """List your login sessions, the most recently refreshed first."""
    return await pager.list(
        query,
        sessions.ORDER,
        lambda page: sessions.list_page(session, principal.user_id, page, current=principal.session_id),
    )


@me.delete("/sessions", status_code=HTTPStatus.NO_CONTENT)
async def end_my_other_sessions(principal: ConfirmedPrincipal, session: SessionDep) -> None:
    """End all your login sessions but this one. Their access tokens stop working at once."""
    await principal.confirm(session)
    await sessions.end_others(session, principal.actor, principal.user_id, except_id=principal.session_id)


@me.delete(
    "/sessions/{session_id}", status_code=HTTPStatus.NO_CONTENT, responses=problem_responses(SessionNotFoundError)
)
async def end_my_session(principal: ConfirmedPrincipal, session: SessionDep, session_id: SessionId) -> None:
    """End one of your login sessions. Its access tokens stop working at once."""
    await sessions.end_one(session, principal.actor, principal.user_id, session_id)


@users.delete("/{user_id}/sessions", status_code=HTTPStatus.NO_CONTENT, responses=problem_responses(UserNotFoundError))
async def end_user_sessions(writer: UsersWriter, session: SessionDep, user_id: UserId) -> None:
    """End every login session of an account."""
    await writer.confirm(session, user_id)
    await sessions.end_all(session, writer.actor, user_id)


@well_known.get("/.well-known/jwks.json", response_model=JsonWebKeySet, openapi_extra=public)
async def read_key_set(keys: KeyRingDep, response: Response) -> dict[str, Any]:
    """Show the public keys that verify access tokens (RFC 7517)."""
    response.headers["Cache-Control"] = f"public, max-age={KEY_SET_MAX_AGE}"
    return keys.public_set()
