"""`/auth`, and the key set that lets any other service check an access token."""

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Annotated, Any, override

from fastapi import Form, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError

from app.auth import service
from app.auth.dependencies import (
    AuthRequest,
    ConfirmedPrincipal,
    CurrentPrincipal,
    UsersWriter,
    Visitor,
)
from app.auth.errors import (
    EmailNotVerifiedError,
    InvalidClientError,
    InvalidGrantError,
    InvalidRequestError,
    InvalidScopeError,
    SessionNotFoundError,
    TooManyReplaysError,
    UnsupportedGrantTypeError,
    WrongPasswordError,
)
from app.auth.schemas import (
    JsonWebKeySet,
    PasswordGrant,
    Reauthentication,
    RefreshGrant,
    RevocationRequest,
    SessionRead,
    TokenPair,
)
from app.auth.sessions import service as sessions
from app.core.db.keyset import InvalidCursorError
from app.core.errors import AppError, InvalidInputError, RateLimitedError
from app.core.http import routing
from app.core.http.access import public
from app.core.http.dependencies import ReadSessionDep, SessionDep
from app.core.http.pages import Page, PageQuery
from app.core.http.pagination import PagerDep
from app.core.http.problems import problem_responses
from app.core.schemas.fields import PathIdentifier
from app.core.security.hashing import HashingBusyError
from app.users.dependencies import UserId
from app.users.errors import UserNotFoundError

# A key is announced a day before it signs, so half a day would still be safe.
KEY_SET_MAX_AGE = 3600


class TokenRoute(routing.Route):
    """An operation whose errors OAuth client libraries read (RFC 6749, 5.2)."""

    speaks_oauth = True

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
            # RFC 6749, 5.1 asks for both this and Cache-Control, which every response has.
            response.headers["Pragma"] = "no-cache"
            return response

        return with_oauth_errors


def _is_basic(authorization: str) -> bool:
    # There are no client credentials to check. Any other scheme is ignored: many clients add their bearer token to every request.
    return authorization.partition(" ")[0].lower() == "basic"


def _oauth_error(error: RequestValidationError) -> AppError:
    errors = {(one["loc"][-1], one["type"]): one for one in error.errors()}
    if ("client_secret", "too_long") in errors:
        return InvalidClientError()
    if {name for name, _ in errors} == {"scope"}:
        return InvalidScopeError()
    unknown_grant = errors.get(("body", "union_tag_invalid"))
    # RFC 6749, 3.1: a parameter sent empty counts as left out.
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
    response_model=TokenPair,
    openapi_extra=public,
    responses=problem_responses(
        InvalidGrantError,
        EmailNotVerifiedError,
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
    request: AuthRequest,
    visitor: Visitor,
    payload: Annotated[PasswordGrant | RefreshGrant, Form(discriminator="grant_type")],
) -> TokenPair:
    """Log in, or go on with a login session.

    `grant_type=password` trades an email address and a password for a pair of tokens; `grant_type=refresh_token` trades a
    refresh token, which works once, for the next pair.
    """
    return await service.grant(request.state["auth"], visitor, payload)


@tokens.post("/revoke", openapi_extra=public, responses=problem_responses(InvalidRequestError, InvalidClientError))
async def revoke_token(
    request: AuthRequest,
    response: Response,
    visitor: Visitor,
    session: SessionDep,
    payload: Annotated[RevocationRequest, Form()],
) -> None:
    """Log out: end the login session that any of its tokens names (RFC 7009).

    A token that names none is no error: it is worthless either way.
    """
    if await service.revoke(session, request.state["auth"], visitor, payload.token.get_secret_value()):
        # Only then: a form on a foreign site can send any other token, and must not clear what this origin stores. Not "cache":
        # no response may be cached, and Chromium hangs for seconds while it clears that.
        response.headers["Clear-Site-Data"] = '"storage"'


@router.post(
    "/reauthenticate",
    response_model=TokenPair,
    responses=problem_responses(WrongPasswordError, RateLimitedError, HashingBusyError),
)
async def reauthenticate(request: AuthRequest, principal: ConfirmedPrincipal, payload: Reauthentication) -> TokenPair:
    """Give one's password again, for an operation that needs a recent login. The login session stays the same."""
    return await service.reauthenticate(request.state["auth"], principal.actor, principal.user_id, payload)


@me.get("/sessions", response_model=Page[SessionRead], responses=problem_responses(InvalidCursorError))
async def list_my_sessions(
    principal: CurrentPrincipal, session: ReadSessionDep, pager: PagerDep, query: Annotated[PageQuery, Query()]
) -> dict[str, Any]:
    """List one's own login sessions, the one used last first."""
    position = pager.position(query, sessions.ORDER)
    page = await sessions.list_page(session, principal.user_id, position, query.limit, current=principal.session_id)
    return pager.page(query, *page)


@me.delete("/sessions", status_code=HTTPStatus.NO_CONTENT)
async def end_my_other_sessions(principal: ConfirmedPrincipal, session: SessionDep) -> None:
    """End all of one's login sessions but this one; their access tokens die at once."""
    await principal.confirm(session)
    await sessions.end_others(session, principal.actor, principal.user_id, but=principal.session_id)


@me.delete(
    "/sessions/{session_id}", status_code=HTTPStatus.NO_CONTENT, responses=problem_responses(SessionNotFoundError)
)
async def end_my_session(principal: ConfirmedPrincipal, session: SessionDep, session_id: SessionId) -> None:
    """End one of one's login sessions; its access tokens die at once."""
    await sessions.end_one(session, principal.actor, principal.user_id, session_id)


@users.delete("/{user_id}/sessions", status_code=HTTPStatus.NO_CONTENT, responses=problem_responses(UserNotFoundError))
async def end_user_sessions(writer: UsersWriter, session: SessionDep, user_id: UserId) -> None:
    """End every login session of an account."""
    await writer.confirm(session, user_id)
    await sessions.end_all(session, writer.actor, user_id)


@well_known.get("/.well-known/jwks.json", response_model=JsonWebKeySet, openapi_extra=public)
async def read_key_set(request: AuthRequest, response: Response) -> dict[str, Any]:
    """Show the public keys that verify access tokens (RFC 7517)."""
    response.headers["Cache-Control"] = f"public, max-age={KEY_SET_MAX_AGE}"
    return request.state["keys"].public_set()
