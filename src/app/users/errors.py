"""Errors of the users API."""

from app.core.errors import ConflictError, NotFoundError


class UserNotFoundError(NotFoundError):
    code = "user_not_found"
    detail = "This user does not exist."


class EmailTakenError(ConflictError):
    code = "email_taken"
    detail = "Another account already uses this email address."


class LastAdminError(ConflictError):
    code = "last_admin"
    detail = "This is the last active administrator. Make another account an administrator first."
