"""Bodies of the token endpoint."""

from datetime import datetime
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal
from uuid import UUID

from pydantic import ConfigDict, Field, SecretStr, StringConstraints

from app.core.schemas.fields import Answer, FormPayload, OpaqueSecret, Payload, Plain

Scope = Annotated[str, StringConstraints(max_length=512, pattern=r"^[\x21\x23-\x5b\x5d-\x7e ]*$")]
Hint = Annotated[str, StringConstraints(max_length=255), Plain]
# A password to compare, a token, the secret of a link.
Secret = Annotated[SecretStr, Field(min_length=1), OpaqueSecret]


class _Grant(FormPayload):
    scope: Scope | None = Field(
        default=None, description="Scopes wanted, separated by spaces; unset: all that the account's role grants."
    )
    client_id: Hint | None = Field(default=None, description="Ignored: there is one first-party client.")
    client_secret: SecretStr | None = Field(default=None, max_length=0, description="Refused unless empty.")


class PasswordGrant(_Grant):
    """RFC 6749, 4.3, in the shape that OAuth tools send."""

    grant_type: Literal["password"] = Field(description="Log in.")
    # A longer one is the name of no account, and is answered like any other unknown one.
    username: Annotated[str, StringConstraints(min_length=1), Plain] = Field(
        description="The email address.", json_schema_extra={"maxLength": 320}
    )
    password: Secret = Field(description="The password.")


class RefreshGrant(_Grant):
    """RFC 6749, 6."""

    grant_type: Literal["refresh_token"] = Field(description="Go on with a login session.")
    refresh_token: Secret = Field(description="The refresh token; it works once.")


class TokenPair(Answer):
    """RFC 6749, 5.1."""

    access_token: str = Field(description="Send as `Authorization: Bearer …`.")
    token_type: Literal["Bearer"] = "Bearer"
    expires_in: int = Field(description="Seconds until the access token ends.")
    refresh_token: str = Field(description="Trade it for the next pair; it works once.")
    refresh_expires_in: int = Field(description="Seconds until the login session ends if it is not refreshed.")
    scope: str = Field(description="Scopes granted, separated by spaces.")


class RevocationRequest(FormPayload):
    """RFC 7009, 2.1."""

    token: Secret = Field(description="Any token of the login session.")
    token_type_hint: Hint | None = Field(default=None, description="Ignored: a token says itself what it is.")
    client_id: Hint | None = Field(default=None, description="Ignored.")
    client_secret: SecretStr | None = Field(default=None, max_length=0, description="Refused unless empty.")


class Reauthentication(Payload):
    """The password, given again."""

    password: Secret


class SessionRead(Answer):
    """A login session."""

    id: UUID
    created_at: datetime
    last_seen_at: datetime = Field(description="When it was last refreshed.")
    user_agent: str | None
    ip_prefix: IPv4Network | IPv6Network | None = Field(description="The network it was begun from.")
    is_current: bool = Field(description="The one this request is made in.")


class SessionExport(Answer):
    """A login session, ended ones included."""

    id: UUID
    created_at: datetime
    last_seen_at: datetime
    user_agent: str | None
    ip_prefix: IPv4Network | IPv6Network | None
    revoked_at: datetime | None
    revoke_reason: str | None


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
