"""What the API can say about the life of an account."""

from app.core.errors import MalformedRequestError, NotFoundError


class InvalidLinkError(MalformedRequestError):
    """The secret of a link is not valid: wrong, expired, used, replaced; one answer for all."""

    problem = "invalid-token"
    code = "invalid_token"
    detail = "The link is not valid any more; ask for a new one."


class RegistrationClosedError(NotFoundError):
    """Accounts are made by administrators alone."""

    code = "registration_closed"
    detail = "Accounts are made by invitation here."
