"""`/auth`, and the key set that lets any other service check an access token."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, override

from fastapi import Form, Request, Response
from fastapi.exceptions import RequestValidationError

from app.auth import service
from app.auth.dependencies import AuthRequest, CurrentUser
from app.auth.errors import (
    EmailNotVerifiedError,
    InvalidClientError,
    InvalidGrantError,
    InvalidRequestError,
    InvalidScopeError,
    UnsupportedGrantTypeError,
)
from app.auth.schemas import AccessTokenRead, AccountExport, JsonWebKeySet, PasswordGrant
from app.core import routing
from app.core.access import public
from app.core.dependencies import ReadSessionDep
from app.core.errors import AppError, InvalidInputError
from app.core.problems import problem_responses
from app.core.security import HashingBusyError

# A key is announced a day before it signs, so half a day would still be safe.
KEY_SET_MAX_AGE = 3600


class TokenRoute(routing.Route):
    """An operation whose errors OAuth client libraries read (RFC 6749, 5.2)."""

    speaks_oauth = True

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def with_oauth_errors(request: Request) -> Response:
            if "authorization" in request.headers:
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


def _oauth_error(error: RequestValidationError) -> AppError:
    kinds = {(one["loc"][-1], one["type"]) for one in error.errors()}
    if ("client_secret", "too_long") in kinds:
        return InvalidClientError()
    return UnsupportedGrantTypeError() if ("grant_type", "literal_error") in kinds else InvalidRequestError()


router = routing.router(prefix="/auth", tags=["auth"], route_class=TokenRoute)
me = routing.router(prefix="/users/me", tags=["users"])
well_known = routing.router(tags=["auth"])


@router.post(
    "/token",
    response_model=AccessTokenRead,
    openapi_extra=public,
    responses=problem_responses(
        InvalidGrantError,
        EmailNotVerifiedError,
        InvalidRequestError,
        InvalidScopeError,
        UnsupportedGrantTypeError,
        InvalidClientError,
        HashingBusyError,
    ),
)
async def create_token(request: AuthRequest, payload: Annotated[PasswordGrant, Form()]) -> AccessTokenRead:
    """Log in: trade an email address and a password for an access token."""
    state = request.state
    return await service.log_in(
        state["database"],
        state["hasher"],
        state["access_tokens"],
        payload,
        require_verified_email=state["settings"].auth.require_verified_email,
    )


@well_known.get("/.well-known/jwks.json", response_model=JsonWebKeySet, openapi_extra=public)
async def read_key_set(request: AuthRequest, response: Response) -> dict[str, Any]:
    """Show the public keys that verify access tokens (RFC 7517)."""
    response.headers["Cache-Control"] = f"public, max-age={KEY_SET_MAX_AGE}"
    return request.state["access_tokens"].public_set()


@me.get("/export", response_model=AccountExport)
async def export_me(user: CurrentUser, session: ReadSessionDep) -> dict[str, Any]:
    """Download all that is stored about one's own account, less secrets."""
    return await service.export(session, user)
