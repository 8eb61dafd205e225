"""Bodies of the token endpoint."""

from datetime import datetime
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal
from uuid import UUID

from pydantic import ConfigDict, Field, SecretStr, StringConstraints

from app.audit.schemas import AuditEventExport
from app.core.schemas.fields import Answer, FormPayload, OpaqueSecret, Payload, Plain, PrintableSecret, ShortText
from app.users.schemas import Email, UserRead

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


# Room for what is refused with a code of its own; the rules are in `core/security/passwords.py`.
FreshPassword = Annotated[SecretStr, Field(min_length=1, max_length=1024), PrintableSecret]


class Registration(Payload):
    """A new account."""

    email: Email
    password: FreshPassword
    full_name: ShortText | None = None


class EmailRequest(Payload):
    """An address that mail is wanted to."""

    email: Email


class LinkProof(Payload):
    """The secret of a mailed link."""

    token: Secret


class NewPassword(Payload):
    """The secret of a mailed link, and the password to set."""

    token: Secret
    new_password: FreshPassword


class PasswordChange(Payload):
    """The present password, and the one to set."""

    current_password: Secret
    new_password: FreshPassword


class EmailChange(Payload):
    """The address to move to, and the present password."""

    new_email: Email
    password: Secret


class Accepted(Answer):
    """The request has been taken; what comes of it is mailed."""

    detail: str = "If this can be done, a mail is on its way."


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


# Sessions and events of an export. It is written in one piece, and holds up other requests for as long.
EXPORTED = 2000


class AccountExport(Answer):
    """What is stored about an account, less secrets and less what is about others."""

    user: UserRead
    sessions: list[SessionExport] = Field(description="The one seen last first.")
    audit_events: list[AuditEventExport] = Field(description="The newest first.")
    is_complete: bool = Field(
        description=f"False when there are more sessions or events: an export holds the newest {EXPORTED:,} of each."
    )
