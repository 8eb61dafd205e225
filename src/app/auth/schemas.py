"""Bodies of the token endpoint, login sessions and the key set."""

from datetime import datetime
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import ConfigDict, Field, SecretStr, StringConstraints, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from app.core.schemas.fields import Answer, FormPayload, Omittable, OpaqueSecret, Payload, Plain

Scope = Annotated[str, StringConstraints(max_length=512, pattern=r"^[\x21\x23-\x5b\x5d-\x7e ]*$")]
Hint = Annotated[str, StringConstraints(max_length=255), Plain]
# A secret that is only compared: a password, a token, the secret of a link.
Secret = Annotated[SecretStr, Field(min_length=1), OpaqueSecret]


class _Grant(FormPayload):
    scope: Scope | None = Field(
        default=None, description="Requested scopes, separated by spaces. Unset: all scopes of the account's role."
    )
    client_id: Hint | None = Field(default=None, description="Ignored: there is one first-party client.")
    client_secret: SecretStr | None = Field(default=None, max_length=0, description="Refused unless empty.")


class PasswordGrant(_Grant):
    """RFC 6749, 4.3, in the shape that OAuth tools send."""

    grant_type: Literal["password"] = Field(description="Log in.")
    # A longer name belongs to no account; it gets the same error as any unknown name.
    username: Annotated[str, StringConstraints(min_length=1), Plain] = Field(
        description="The email address.", json_schema_extra={"maxLength": 320}
    )
    password: Secret = Field(description="The password.")


class RefreshGrant(_Grant):
    """RFC 6749, 6."""

    grant_type: Literal["refresh_token"] = Field(description="Continue a login session.")
    refresh_token: Secret | None = Field(
        default=None,
        description="The refresh token. It works once. Required, except with the header `Token-Transport`.",
    )


class TokenPair(Answer):
    """RFC 6749, 5.1."""

    access_token: str = Field(description="Send as `Authorization: Bearer …`.")
    token_type: Literal["Bearer"] = "Bearer"
    expires_in: int = Field(description="Seconds until the access token expires.")
    refresh_token: str | SkipJsonSchema[None] = Field(
        description="Exchange it for the next pair. It works once. With the header `Token-Transport`, it is in the cookie instead.",
        exclude_if=lambda token: token is None,
    )
    refresh_expires_in: int = Field(description="Seconds until the login session ends if it is not refreshed.")
    scope: str = Field(description="Scopes granted, separated by spaces.")


class RevocationRequest(FormPayload):
    """RFC 7009, 2.1."""

    token: Secret | None = Field(
        default=None, description="Any token of the login session. Required, except with the header `Token-Transport`."
    )
    token_type_hint: Hint | None = Field(default=None, description="Ignored: the token shows its type itself.")
    client_id: Hint | None = Field(default=None, description="Ignored.")
    client_secret: SecretStr | None = Field(default=None, max_length=0, description="Refused unless empty.")


class Reauthentication(Payload):
    """The password again or, for an account with a second factor, a code. Exactly one."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    password: Omittable[Secret] = Field(default=None, description="Only for an account without a second factor.")
    code: Omittable[Secret] = Field(default=None, description="The current code of an authenticator app.")
    recovery_code: Omittable[Secret] = Field(default=None, description="An unused recovery code.")

    @model_validator(mode="after")
    def _refuse_several(self) -> Self:
        if sum(given is not None for given in (self.password, self.code, self.recovery_code)) != 1:
            raise PydanticCustomError("one_of", "Give one of password, code and recovery_code.", {"ours": True})
        return self


class SocketTicketRead(Answer):
    """Opens one WebSocket, once."""

    ticket: str = Field(description="Offer it as a subprotocol of the WebSocket, next to `ticket`.")
    expires_in: int = Field(description="Seconds in which it must be used.")


class SessionRead(Answer):
    """A login session."""

    id: UUID
    created_at: datetime
    last_seen_at: datetime = Field(description="When it was last refreshed.")
    user_agent: str | None
    ip_prefix: IPv4Network | IPv6Network | None = Field(description="The network from which it was started.")
    acr: str = Field(description="`aal1`: started with a password. `aal2`: with a second factor too.")
    is_current: bool = Field(description="Whether this request belongs to it.")


class SessionExport(Answer):
    """A login session, live or ended."""

    id: UUID
    created_at: datetime
    last_seen_at: datetime
    user_agent: str | None
    ip_prefix: IPv4Network | IPv6Network | None
    acr: str
    revoked_at: datetime | None
    revoke_reason: str | None


class JsonWebKey(Answer):
    """The public half of a signing key (RFC 7517). Members that its kind does not have are omitted."""

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
