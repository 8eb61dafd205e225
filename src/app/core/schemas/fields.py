"""Field types for all schemas. They accept only printable Unicode of limited length."""

import re
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, TypeVar
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    Strict,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from app.core.schemas import characters


def refuse_controls(text: str) -> str:
    """Return the text, or refuse it if it contains a character that cannot be typed."""
    if not characters.is_printable(text):
        raise PydanticCustomError("unprintable", "This holds a control character. Remove it.", {"ours": True})
    return text


def refuse_unprintable(text: str) -> str:
    """Return the text, or refuse it if a character cannot be typed or seen, or if a letter has too many marks."""
    refuse_controls(text)
    if not characters.is_visible(text):
        raise PydanticCustomError("unprintable", "This holds an invisible character. Remove it.", {"ours": True})
    if characters.has_too_many_marks(text):
        raise PydanticCustomError(
            "too_many_marks", "A letter in this text has more than four marks. Remove some.", {"ours": True}
        )
    return text


def refuse_unprintable_lines(text: str) -> str:
    """Like `refuse_unprintable`, but newlines and tabs are allowed."""
    refuse_unprintable(text.replace("\n", "").replace("\t", ""))
    return text


def refuse_controls_in_secret(secret: SecretStr) -> SecretStr:
    """Like `refuse_controls`, for a secret. Invisible characters are allowed, unlike in `refuse_unprintable`."""
    refuse_controls(secret.get_secret_value())
    return secret


def refuse_unencodable(secret: SecretStr) -> SecretStr:
    """Return the secret, or refuse it if it contains a lone surrogate. UTF-8 cannot encode it, so it cannot be hashed or compared."""
    try:
        secret.get_secret_value().encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("string_unicode", "This must be valid Unicode.", {"ours": True}) from error
    return secret


def refuse_blank(text: str) -> str:
    """Return the text, or refuse it if it looks empty."""
    if characters.is_blank(text):
        raise PydanticCustomError("blank", "This must not be blank.", {"ours": True})
    return text


class Payload(BaseModel):
    """Base class of request bodies. Unknown members are refused, and values are not converted between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def remove_null(schema: dict[str, Any]) -> None:
    """Remove null from a JSON schema. Parameters and form fields are text: they can be missing, but not null."""
    # Some types are unions themselves: a Decimal is a number or a string.
    choices = [choice for choice in schema.pop("anyOf", ()) if choice != {"type": "null"}]
    schema.update(choices[0] if len(choices) == 1 else {"anyOf": choices} if choices else {})


def _fields_without_null(schema: dict[str, Any]) -> None:
    for field in schema.get("properties", {}).values():
        remove_null(field)


class FormPayload(Payload):
    """Base class of OAuth forms. Unknown members are ignored (RFC 6749, 3.2)."""

    model_config = ConfigDict(extra="ignore", json_schema_extra=_fields_without_null)


class Answer(BaseModel):
    """Base class of response bodies. It is built from a row. Declare plain types: the stored values are valid already."""

    model_config = ConfigDict(from_attributes=True)


# Put these after the length limit, so that a text that is too long is not searched.
Printable = AfterValidator(refuse_unprintable)
Plain = AfterValidator(refuse_controls)
PrintableLines = AfterValidator(refuse_unprintable_lines)
PrintableSecret = AfterValidator(refuse_controls_in_secret)
# For a secret that is compared and never stored. Do not declare max_length: a secret that is too long is simply wrong, and gets the
# same error as any wrong one. The limit of the body size applies.
OpaqueSecret = AfterValidator(refuse_unencodable)
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=128), Printable, AfterValidator(refuse_blank)]
"""One line of text, such as a name or a title."""

LongText = Annotated[
    str, StringConstraints(min_length=1, max_length=10_000), PrintableLines, AfterValidator(refuse_blank)
]
"""Lines of text."""

Flag = Annotated[bool, Strict()]
"""`true` or `false`. No other value is converted to one of them."""

Whole = Annotated[int, Field(strict=True, ge=-(10**12), le=10**12)]
"""An integer in a body. JavaScript, whose numbers are floats, reads it exactly."""


def _refuse_null(value: object) -> object:
    if value is None:
        raise PydanticCustomError("null", "This may be left out, but it must not be null.", {"ours": True})
    return value


def _without_null(schema: dict[str, Any]) -> None:
    schema.pop("default", None)
    remove_null(schema)


_T = TypeVar("_T")
# Not SkipJsonSchema[None]: it creates a union, and then errors point to the branches of the union instead of the member.
Omittable = Annotated[_T | None, BeforeValidator(_refuse_null), Field(json_schema_extra=_without_null)]
"""A member of a PATCH body that can be left out, but not be null. Declare it with `= None`."""


def _matching(pattern: str, detail: str) -> BeforeValidator:
    """Return a validator that accepts one spelling of a value, where pydantic would accept several."""
    spelling = re.compile(pattern)

    def check(value: object) -> object:
        if isinstance(value, str) and spelling.fullmatch(value) is None:
            raise PydanticCustomError("malformed", detail, {"ours": True})
        return value

    return BeforeValidator(check)


def _written(pattern: str, detail: str, kind: type) -> BeforeValidator:
    """Like `_matching`, for a body: JSON has other values than text, such as numbers. Code may also pass a value of this type."""
    spelling = re.compile(pattern)

    def check(value: object) -> object:
        if isinstance(value, kind) or (isinstance(value, str) and spelling.fullmatch(value)):
            return value
        raise PydanticCustomError("malformed", detail, {"ours": True})

    return BeforeValidator(check)


# `int` would also accept Unicode digits, a plus sign, spaces and underscores. [0-9] matches ASCII digits only.
QueryInteger = Annotated[int, _matching(r"-?[0-9]{1,18}", "This must be an integer in decimal digits.")]
QueryFlag = Annotated[bool, _matching("true|false", "This must be true or false.")]
_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_NOT_AN_ID = "This must be an id in lower case."
_DAY = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_INSTANT = _DAY + r"T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})"
_NOT_AN_INSTANT = "This must be an RFC 3339 instant, such as 2026-01-31T12:00:00Z."
_AMOUNT = r"-?[1-9][0-9]{0,11}\.[0-9]{2}|0\.[0-9]{2}|-0\.(0[1-9]|[1-9][0-9])"


def _to_utc(instant: datetime) -> datetime:
    # On the first and the last day of the calendar, the conversion can leave the range of `datetime`.
    try:
        return instant.astimezone(UTC)
    except OverflowError as error:
        raise PydanticCustomError("malformed", _NOT_AN_INSTANT, {"ours": True}) from error


QueryIdentifier = Annotated[UUID, _matching(_UUID, _NOT_AN_ID)]
QueryInstant = Annotated[AwareDatetime, _matching(_INSTANT, _NOT_AN_INSTANT), AfterValidator(_to_utc)]
PathIdentifier = QueryIdentifier
"""An id in a path. Any other text there gets 404, like an unknown id."""

# A body is validated strictly, and JSON has no dates: these are text with one spelling.
Identifier = Annotated[UUID, Strict(strict=False), _written(_UUID, _NOT_AN_ID, UUID)]


def _in_order(keys: list[UUID]) -> list[UUID]:
    if len(set(keys)) < len(keys):
        raise PydanticCustomError("repeated", "This must contain each id once.", {"ours": True})
    return sorted(keys)


Identifiers = Annotated[
    list[Identifier], Field(max_length=100, json_schema_extra={"uniqueItems": True}), AfterValidator(_in_order)
]
"""A set of ids in a body. Their order has no meaning, and the value is sorted."""

Instant = Annotated[
    AwareDatetime, Strict(strict=False), _written(_INSTANT, _NOT_AN_INSTANT, datetime), AfterValidator(_to_utc)
]
Day = Annotated[date, Strict(strict=False), _written(_DAY, "This must be a date, such as 2026-01-31.", date)]
Amount = Annotated[
    Decimal,
    Strict(strict=False),
    Field(max_digits=14, decimal_places=2),
    _written(_AMOUNT, "This must be a text with two decimal places, such as 12.50.", Decimal),
    WithJsonSchema({"type": "string", "maxLength": 16, "pattern": f"^({_AMOUNT})$", "examples": ["12.50"]}),
]
"""An amount of money, as text: a float could not store it exactly. For a column `Numeric(14, 2)`."""
