"""Settings for logins and tokens."""

from datetime import timedelta
from typing import Literal

from pydantic import Field, field_validator

from app.core import product
from app.core.config import HashingSettings, KeySettings, Settings
from app.core.config.groups import Duration, Listed, Pause, refuse
from app.users.roles import Role


class AuthSettings(KeySettings, HashingSettings):
    """Login, tokens, passwords."""

    issuer: str | None = Field(default=None, max_length=255)
    """Issuer (`iss`) of access tokens. Unset: the public URL."""
    audience: str = Field(default=product.SLUG, min_length=1, max_length=255)
    """Audience (`aud`) of access tokens."""
    access_token_ttl: Duration = Field(default=timedelta(minutes=10), le=timedelta(minutes=15))
    """Lifetime of an access token, at most 15 minutes."""
    refresh_idle_ttl: Duration = timedelta(days=14)
    """Time without a refresh after which a login session expires."""
    refresh_absolute_ttl: Duration = timedelta(days=90)
    """Time after the login at which a login session expires, even if it is used."""
    refresh_reuse_grace: Pause = timedelta(seconds=30)
    """Time in which a used refresh token returns the same new tokens again, for retries after a lost response and for
    other browser tabs. With 0, each second use ends the session."""
    sessions_per_user: int = Field(default=25, ge=1, le=1000)
    """Maximum number of active login sessions of an account. A further login ends the session that was unused for the
    longest time."""
    streams_per_account: int = Field(default=50, ge=1, le=10_000)
    """Maximum number of event streams and WebSockets of an account at the same time, in each process. A further one gets 429."""
    socket_ticket_ttl: Duration = Field(default=timedelta(seconds=30), le=timedelta(minutes=5))
    """Time in which a ticket can open its WebSocket, at most 5 minutes. It works once."""
    access_check: Literal["memory", "database"] = "memory"
    """Where a request looks up whether its access token is revoked. `memory`: in a copy that PostgreSQL notifications
    keep current. `database`: with a query for each request."""
    cookie_transport: bool = True
    """Let pages of this service and of `APP_SERVER__CORS_ORIGINS` keep their refresh token in a cookie: requests with the header
    `Token-Transport: cookie`."""
    require_verified_email: bool = True
    """Refuse logins of accounts without a verified email address (403 `email_not_verified`)."""
    mfa_required_roles: Listed[str] = ()
    """Roles that need a second factor, separated by commas, such as `admin`. Without it, their accounts can log in and set it up, but
    no scope of the role is granted."""
    mfa_token_ttl: Duration = Field(default=timedelta(minutes=5), le=timedelta(minutes=15))
    """Time in which a login with a correct password can be completed with a second factor, at most 15 minutes."""
    mfa_issuer: str | None = Field(default=None, min_length=1, max_length=64)
    """Name of this service in authenticator apps. Unset: the name of the sender of mails."""

    def withholds(self, role: str, acr: str) -> bool:
        """Return whether a session of this assurance gets no scopes, because the role needs a second factor."""
        return acr != "aal2" and role in self.mfa_required_roles

    @field_validator("mfa_required_roles")
    @classmethod
    def _refuse_unknown_role(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for name in given:
            if name not in Role:
                refuse(f"there is no role {name!r}; the roles are {', '.join(Role)}")
        return given


def issuer(settings: Settings) -> str:
    """Return the issuer of access tokens."""
    return settings.of(AuthSettings).issuer or settings.public_url
