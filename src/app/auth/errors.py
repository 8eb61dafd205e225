"""Errors of login, tokens and login sessions."""

from collections.abc import Iterable, Sequence
from typing import ClassVar
from uuid import UUID

from app.core import product
from app.core.errors import ForbiddenError, MalformedRequestError, NotFoundError, RateLimitedError, UnauthenticatedError

REALM = product.SLUG


class MissingTokenError(UnauthenticatedError):
    detail = "The request has no access token. Send one as `Authorization: Bearer …`."

    def __init__(self) -> None:
        super().__init__(headers={"WWW-Authenticate": f'Bearer realm="{REALM}"'})


class InvalidTokenError(UnauthenticatedError):
    """An access token was sent and is refused. The response does not say why."""

    code = "invalid_token"
    detail = "The access token is not valid. Refresh it, or log in again."

    def __init__(self) -> None:
        challenge = f'Bearer realm="{REALM}", error="invalid_token", error_description="The access token is not valid"'
        super().__init__(headers={"WWW-Authenticate": challenge})


class InsufficientAuthenticationError(UnauthenticatedError):
    """The token is valid, but its login is too weak or too old for the operation (RFC 9470)."""

    code = "insufficient_user_authentication"
    detail = (
        "This operation needs a second factor, or a more recent login. Give a code or your password again, or set up a "
        "second factor."
    )
    challenge: ClassVar[str] = "A stronger or more recent login is needed"

    def __init__(self, *, acr: str | None = None, max_age: int | None = None) -> None:
        needs = [*([f'acr_values="{acr}"'] if acr else []), *([f"max_age={max_age}"] if max_age is not None else [])]
        challenge = (
            f'Bearer realm="{REALM}", error="{self.code}", error_description="{self.challenge}", {", ".join(needs)}'
        )
        super().__init__(headers={"WWW-Authenticate": challenge})


class StaleLoginError(InsufficientAuthenticationError):
    """The token is valid, but its login is too old for a sensitive operation."""

    detail = "This operation needs a recent login. Give your password again, or a code of your second factor."
    challenge = "A more recent login is needed"

    def __init__(self, max_age: int) -> None:
        super().__init__(max_age=max_age)


class InsufficientScopeError(ForbiddenError):
    """The token is valid, but lacks a scope that the operation needs."""

    code = "insufficient_scope"
    detail = "The access token lacks a scope that this operation needs."

    def __init__(self, needed: Iterable[str]) -> None:
        scope = " ".join(sorted(needed))
        super().__init__(
            headers={"WWW-Authenticate": f'Bearer realm="{REALM}", error="insufficient_scope", scope="{scope}"'}
        )


class InvalidGrantError(MalformedRequestError):
    """Wrong password, unknown address or disabled account. The error is the same for each, so it reveals nothing."""

    problem = "invalid-grant"
    code = "invalid_grant"
    detail = "These credentials are not valid. They are wrong, expired, or have been used before."
    oauth_error = "invalid_grant"


class RefreshRefusedError(InvalidGrantError):
    """A genuine refresh token of a session that has ended. Only the audit log gets the reason."""

    def __init__(self, reason: str, user_id: UUID, session_id: UUID) -> None:
        super().__init__()
        self.reason = reason
        self.user_id = user_id
        self.session_id = session_id


class EmailNotVerifiedError(ForbiddenError):
    """The password is correct, but the address has not been verified."""

    code = "email_not_verified"
    detail = "Verify your email address first. The link is in the mail that we sent."
    oauth_error = "invalid_grant"


class MfaRequiredError(ForbiddenError):
    """The password is correct, and the account has a second factor: the first leg of a login has no tokens."""

    code = "mfa_required"
    detail = "This account has a second factor. Give a code of it."
    oauth_error = "mfa_required"

    def __init__(self, *, mfa_token: str, expires_in: int, methods: Sequence[str]) -> None:
        super().__init__()
        self.members = {"mfa_token": mfa_token, "expires_in": expires_in, "methods": list(methods)}


class InvalidRequestError(MalformedRequestError):
    """A malformed token request (RFC 6749, 5.2)."""

    code = "invalid_request"
    detail = "A parameter is missing, repeated or malformed, or the URL has a query."


class TokenTransportError(MalformedRequestError):
    """The header `Token-Transport` has another value than `cookie`, or the operator has turned cookies off."""

    code = "token_transport_refused"

    def __init__(self, *, is_on: bool) -> None:
        self.detail = (
            "The header Token-Transport can only have the value cookie."
            if is_on
            else "This server sets no cookies. Leave the header Token-Transport out."
        )
        super().__init__()


class UnsupportedGrantTypeError(MalformedRequestError):
    code = "unsupported_grant_type"
    detail = "This grant type is not supported."
    oauth_error = "unsupported_grant_type"


class InvalidScopeError(MalformedRequestError):
    code = "invalid_scope"
    detail = "A requested scope is unknown or not granted to this account."
    oauth_error = "invalid_scope"


class InvalidClientError(UnauthenticatedError):
    """The request has client credentials, but there are no confidential clients."""

    code = "invalid_client"
    detail = "This server has no clients with credentials. Send no client credentials."

    def __init__(self) -> None:
        super().__init__(headers={"WWW-Authenticate": f'Basic realm="{REALM}"'})


class TooManyReplaysError(RateLimitedError):
    """The same refresh token was presented hundreds of times within seconds. The session continues."""

    code = "too_many_replays"
    detail = "This refresh token was presented too often. Use its successor."

    def __init__(self) -> None:
        super().__init__(retry_after=30)


class TooManyStreamsError(RateLimitedError):
    """The account has too many long responses at the same time."""

    code = "too_many_streams"
    detail = "This account has too many open streams. Close one, then try again."

    def __init__(self) -> None:
        super().__init__(retry_after=10)


class InvalidTicketError(UnauthenticatedError):
    """The handshake of a WebSocket has no usable ticket. The response does not say why."""

    code = "invalid_ticket"
    detail = (
        "The ticket is missing, expired, or has been used before. Ask for a new one, then open the WebSocket again."
    )

    def __init__(self) -> None:
        super().__init__(headers={"WWW-Authenticate": f'Ticket realm="{REALM}"'})


class TooManyTicketsError(RateLimitedError):
    """The login session has many tickets that have not been used."""

    code = "too_many_tickets"
    detail = "This login session has too many unused tickets. Use them, or wait until they expire."


class SessionNotFoundError(NotFoundError):
    code = "session_not_found"
    detail = "There is no such login session."


class WrongPasswordError(ForbiddenError):
    code = "wrong_password"
    detail = "The current password is wrong."


class CodeRequiredError(ForbiddenError):
    """A password alone does not renew the login of an account that has a second factor."""

    code = "code_required"
    detail = "This account has a second factor. Give a code of it instead of the password."


class WrongCodeError(ForbiddenError):
    """The account has no second factor, or the code is wrong, expired or used. Only the audit log gets the reason."""

    code = "wrong_code"
    detail = (
        "This code is wrong, or has been used before. Give the current code of your app, or an unused recovery code."
    )

    def __init__(self, reason: str = "wrong") -> None:
        super().__init__()
        self.reason = reason
