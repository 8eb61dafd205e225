"""Bodies of the second leg of a login, and of the operations on second factors."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import AfterValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic_core import PydanticCustomError

from app.auth.schemas import Secret, TokenPair
from app.core.schemas.fields import Answer, Omittable, OpaqueSecret, Payload
from app.factors import totp

_ASCII_DIGITS = frozenset("0123456789")


def _refuse_other_than_digits(code: SecretStr) -> SecretStr:
    if not _ASCII_DIGITS.issuperset(code.get_secret_value()):
        raise PydanticCustomError("malformed", f"This must be {totp.DIGITS} digits.", {"ours": True})
    return code


Code = Annotated[
    SecretStr,
    Field(min_length=totp.DIGITS, max_length=totp.DIGITS, json_schema_extra={"pattern": f"^[0-9]{{{totp.DIGITS}}}$"}),
    OpaqueSecret,
    AfterValidator(_refuse_other_than_digits),
]


class TotpCode(Payload):
    """The code that the authenticator app shows."""

    code: Code


class SecondLeg(Payload):
    """What the first leg of the login has answered, and a second factor: `code` or `recovery_code`."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 2, "maxProperties": 2})

    mfa_token: Secret = Field(description="From the response of `POST /auth/token`.")
    code: Omittable[Code] = Field(default=None, description="The code that the authenticator app shows.")
    recovery_code: Omittable[Secret] = Field(
        default=None, description="Instead of `code`. Case, hyphens and spaces do not matter. It works once."
    )

    @model_validator(mode="after")
    def _refuse_both_or_none(self) -> Self:
        if (self.code is None) == (self.recovery_code is None):
            raise PydanticCustomError("one_of", "Give either `code` or `recovery_code`.", {"ours": True})
        return self


class TotpRead(Answer):
    """The authenticator app of an account."""

    created_at: datetime
    last_used_at: datetime | None


class MfaRead(Answer):
    """The second factors of an account."""

    totp: TotpRead | None
    recovery_codes_left: int
    passkeys: int = Field(description="Always 0: this service has no passkeys yet.")
    is_required: bool = Field(description="Whether the role of the account needs a second factor.")


class TotpPending(Answer):
    """A secret for an authenticator app. It protects nothing until a code of it is confirmed."""

    secret: str = Field(description="To type into the app, if it cannot scan.")
    otpauth_uri: str
    qr_svg: str = Field(description="The URI as a QR code: an SVG image without scripts and styles.")
    expires_at: datetime = Field(description="Until when a code must be confirmed.")


class RecoveryCodes(Answer):
    """Codes for a login without the app. Each works once, and this is the only response that shows them."""

    recovery_codes: list[str]


class TotpConfirmed(TokenPair):
    """Recovery codes, and the next tokens of this login session, which has given a second factor now."""

    recovery_codes: list[str] = Field(description="Each works once. This is the only response that shows them.")
