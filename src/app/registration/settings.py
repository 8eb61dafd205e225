"""Setting of registration."""

from typing import Literal

from app.auth.settings import AuthSettings


class RegistrationSettings(AuthSettings):
    """Registration. The group `auth` includes this setting."""

    registration: Literal["open", "invite"] = "open"
    """Who can create an account. With `invite`, only administrators can, and registration returns 404."""
