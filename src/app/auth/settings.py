"""Settings of logins and tokens."""

from datetime import timedelta
from typing import Literal

from pydantic import Field

from app.core import product
from app.core.config import HashingSettings, KeySettings, Settings
from app.core.config.groups import Duration, Pause


class AuthSettings(KeySettings, HashingSettings):
    """Login, tokens, passwords."""

    issuer: str | None = Field(
        default=None, max_length=255, description="`iss` of access tokens. Unset: the public URL."
    )
    audience: str = Field(default=product.SLUG, min_length=1, max_length=255, description="`aud` of access tokens.")
    access_token_ttl: Duration = Field(
        default=timedelta(minutes=10),
        le=timedelta(minutes=15),
        description="Lifetime of an access token, 15 minutes at most.",
    )
    registration: Literal["open", "invite"] = Field(
        default="open", description="Who may make an account: anybody, or administrators alone (register is then 404)."
    )
    refresh_idle_ttl: Duration = Field(
        default=timedelta(days=14), description="A login session not refreshed for this long ends."
    )
    refresh_absolute_ttl: Duration = Field(
        default=timedelta(days=90), description="A login session ends this long after the login, used or not."
    )
    refresh_reuse_grace: Pause = Field(
        default=timedelta(seconds=30),
        description="How long a refresh token that has been used gives the same successor again (tabs, lost answers). "
        "0 is strict: any second use ends the session.",
    )
    sessions_per_user: int = Field(
        default=25,
        ge=1,
        le=1000,
        description="Live login sessions of one account; beyond that the one idle longest ends.",
    )
    access_check: Literal["memory", "database"] = Field(
        default="memory",
        description="How a request learns that its token is revoked: from memory, fed by PostgreSQL, or by asking each time.",
    )
    require_verified_email: bool = Field(
        default=True,
        description="Refuse to log in an account whose address is not verified (403 `email_not_verified`).",
    )


def issuer(settings: Settings) -> str:
    """Return `iss` of access tokens."""
    return settings.of(AuthSettings).issuer or settings.public_url
