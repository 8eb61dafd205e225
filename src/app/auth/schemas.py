"""Bodies of the token endpoint."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, SecretStr, StringConstraints

from app.audit.schemas import AuditEventRead
from app.core.fields import Answer, Payload, Printable
from app.users.schemas import UserRead

MAX_PASSWORD_LENGTH = 256


class PasswordGrant(Payload):
    """RFC 6749, 4.3, in the shape that OAuth tools send."""

    grant_type: Literal["password"] = Field(description="How to log in.")
    username: Annotated[str, StringConstraints(min_length=1, max_length=320), Printable] = Field(
        description="The email address."
    )
    password: SecretStr = Field(min_length=1, max_length=MAX_PASSWORD_LENGTH, description="The password.")
    scope: Annotated[str, StringConstraints(max_length=512, pattern=r"^[\x21\x23-\x5b\x5d-\x7e ]*$")] | None = Field(
        default=None, description="Scopes wanted, separated by spaces; unset: all that the account's role grants."
    )
    client_id: Annotated[str, StringConstraints(max_length=255)] | None = Field(
        default=None, description="Ignored: there is one first-party client."
    )
    client_secret: SecretStr | None = Field(default=None, max_length=0, description="Refused unless empty.")


class AccessTokenRead(Answer):
    """RFC 6749, 5.1."""

    access_token: str = Field(description="Send as `Authorization: Bearer …`.")
    token_type: Literal["Bearer"] = "Bearer"
    expires_in: int = Field(description="Seconds until the access token ends.")
    scope: str = Field(description="Scopes granted, separated by spaces.")


class JsonWebKey(Answer):
    """The public half of a signing key (RFC 7517); a member that its kind does not have is left out."""

    model_config = ConfigDict(extra="allow")

    kty: str
    crv: str
    x: str
    kid: str
    use: Literal["sig"]
    alg: str


class JsonWebKeySet(Answer):
    """The keys to verify access tokens with."""

    keys: list[JsonWebKey]


class AccountExport(Answer):
    """All that is stored about an account, less secrets."""

    user: UserRead
    audit_events: list[AuditEventRead]
