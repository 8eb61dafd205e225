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
    detail = "This is the last administrator who can log in. First make another account an administrator whose owner has set a password."
