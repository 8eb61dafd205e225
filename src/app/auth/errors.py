"""What the API can say about who is calling."""

from collections.abc import Iterable
from uuid import UUID

from app.core import product
from app.core.errors import ForbiddenError, MalformedRequestError, NotFoundError, RateLimitedError, UnauthenticatedError

REALM = product.SLUG


class MissingTokenError(UnauthenticatedError):
    """No access token was sent."""

    code = "unauthorized"
    detail = "This needs an access token; send it as `Authorization: Bearer …`."

    def __init__(self) -> None:
        super().__init__(headers={"WWW-Authenticate": f'Bearer realm="{REALM}"'})


class InvalidTokenError(UnauthenticatedError):
    """An access token was sent and is refused; which of the many reasons is for the log alone."""

    code = "invalid_token"
    detail = "The access token is not valid; log in again or refresh it."

    def __init__(self) -> None:
        challenge = f'Bearer realm="{REALM}", error="invalid_token", error_description="The access token is not valid"'
        super().__init__(headers={"WWW-Authenticate": challenge})


class StaleLoginError(UnauthenticatedError):
    """The token is good, and the login behind it too old for a sensitive operation (RFC 9470)."""

    code = "insufficient_user_authentication"
    detail = "This needs a recent login; give your password again."

    def __init__(self, max_age: int) -> None:
        challenge = (
            f'Bearer realm="{REALM}", error="insufficient_user_authentication", '
            f'error_description="A more recent login is needed", max_age={max_age}'
        )
        super().__init__(headers={"WWW-Authenticate": challenge})


class InsufficientScopeError(ForbiddenError):
    """The token is good, and does not carry a scope that the operation needs."""

    code = "insufficient_scope"
    detail = "The access token lacks a scope that this operation needs."

    def __init__(self, needed: Iterable[str]) -> None:
        scope = " ".join(sorted(needed))
        super().__init__(
            headers={"WWW-Authenticate": f'Bearer realm="{REALM}", error="insufficient_scope", scope="{scope}"'}
        )


class InvalidGrantError(MalformedRequestError):
    """Wrong password, unknown address, disabled account: one answer for all."""

    problem = "invalid-grant"
    code = "invalid_grant"
    detail = "These credentials are not valid: wrong, expired, or used before."
    oauth_error = "invalid_grant"


class RefreshRefusedError(InvalidGrantError):
    """A refresh token of ours whose session has ended; the reason is for the audit log alone."""

    def __init__(self, reason: str, user_id: UUID, session_id: UUID) -> None:
        super().__init__()
        self.reason = reason
        self.user_id = user_id
        self.session_id = session_id


class EmailNotVerifiedError(ForbiddenError):
    """The password is right, and the address has not been verified yet."""

    code = "email_not_verified"
    detail = "Verify your email address first; the link is in the mail we sent."
    oauth_error = "invalid_grant"


class InvalidRequestError(MalformedRequestError):
    """A token request that RFC 6749 calls malformed."""

    code = "invalid_request"
    detail = "A parameter is missing, repeated or malformed, or the address has a query."
    oauth_error = "invalid_request"


class UnsupportedGrantTypeError(MalformedRequestError):
    """A grant type that this server does not offer."""

    code = "unsupported_grant_type"
    detail = "This grant type is not supported."
    oauth_error = "unsupported_grant_type"


class InvalidScopeError(MalformedRequestError):
    """A scope that the account does not have, or that does not exist."""

    code = "invalid_scope"
    detail = "A requested scope is unknown or not granted to this account."
    oauth_error = "invalid_scope"


class InvalidClientError(UnauthenticatedError):
    """Client authentication was tried; there are no confidential clients."""

    problem = "unauthorized"
    code = "invalid_client"
    detail = "This server knows no clients with credentials of their own; send none."
    oauth_error = "invalid_client"

    def __init__(self) -> None:
        super().__init__(headers={"WWW-Authenticate": f'Basic realm="{REALM}"'})


class TooManyReplaysError(RateLimitedError):
    """One refresh token has been presented hundreds of times within seconds; the session goes on."""

    code = "too_many_replays"
    detail = "This refresh token is presented too often; use its successor."

    def __init__(self) -> None:
        super().__init__(retry_after=30)


class SessionNotFoundError(NotFoundError):
    """The account has no such login session, or it has ended already."""

    code = "session_not_found"
    detail = "There is no such login session."


class WrongPasswordError(ForbiddenError):
    """The caller is logged in, and the password they gave again is wrong."""

    code = "wrong_password"
    detail = "The current password is wrong."
