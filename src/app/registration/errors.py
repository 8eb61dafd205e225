"""Error of registration."""

from app.core.errors import NotFoundError


class RegistrationClosedError(NotFoundError):
    code = "registration_closed"
    detail = "Registration is closed. Ask an administrator for an account."
