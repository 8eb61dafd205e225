"""What the API can say about users."""

from app.core.errors import ConflictError, NotFoundError


class UserNotFoundError(NotFoundError):
    """No such account."""

    code = "user_not_found"
    detail = "There is no such user."


class EmailTakenError(ConflictError):
    """The address belongs to an account already."""

    code = "email_taken"
    detail = "Another account already uses this email address."
