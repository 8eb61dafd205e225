"""The field types that every schema is built from: whatever comes in is capped, printable Unicode."""

import re
from datetime import UTC, datetime
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
)
from pydantic_core import PydanticCustomError

from app.core.schemas import characters


def refuse_controls(text: str) -> str:
    """Return the text, or refuse it if it holds a character that no person types."""
    if not characters.is_printable(text):
        raise PydanticCustomError("unprintable", "This holds a control character. Remove it.", {"ours": True})
    return text


def refuse_unprintable(text: str) -> str:
    """Return the text, or refuse it if it holds a character that no person types or sees, or a letter under many marks."""
    refuse_controls(text)
    if not characters.is_visible(text):
        raise PydanticCustomError("unprintable", "This holds an invisible character. Remove it.", {"ours": True})
    if characters.is_flooded(text):
        raise PydanticCustomError("too_many_marks", "This has more than four marks on a letter.", {"ours": True})
    return text


def refuse_unprintable_lines(text: str) -> str:
    """Return the text, or refuse it as `refuse_unprintable` does, but for the ends of its lines and tabs."""
    refuse_unprintable(text.replace("\n", "").replace("\t", ""))
    return text


def refuse_unprintable_secret(secret: SecretStr) -> SecretStr:
    """Return the secret, or refuse it if it holds a character that no person types. Nobody reads it, so any other may be in it."""
    refuse_controls(secret.get_secret_value())
    return secret


def refuse_unencodable(secret: SecretStr) -> SecretStr:
    """Return the secret, or refuse it when it holds a lone surrogate, which has no bytes to hash or compare."""
    try:
        secret.get_secret_value().encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("string_unicode", "This must be valid Unicode.", {"ours": True}) from error
    return secret


def refuse_blank(text: str) -> str:
    """Return the text, or refuse it if it shows nothing."""
    if characters.is_blank(text):
        raise PydanticCustomError("blank", "This must not be blank.", {"ours": True})
    return text


class Payload(BaseModel):
    """Base of every body that comes in: unknown members are refused, values are not coerced across types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FormPayload(Payload):
    """Base of every form of OAuth: unknown members are ignored (RFC 6749, 3.2)."""

    model_config = ConfigDict(extra="ignore")


class Answer(BaseModel):
    """Base of every body that goes out: built from rows, described and not validated again."""

    model_config = ConfigDict(from_attributes=True)


# After the length: what is too long anyway is not looked through.
Printable = AfterValidator(refuse_unprintable)
Plain = AfterValidator(refuse_controls)
PrintableLines = AfterValidator(refuse_unprintable_lines)
PrintableSecret = AfterValidator(refuse_unprintable_secret)
# For a secret that is only compared, and never stored. Declare no max_length: a secret that is too long is a wrong one, and gets the
# error of its operation. The limit of the body is its limit.
OpaqueSecret = AfterValidator(refuse_unencodable)
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=128), Printable, AfterValidator(refuse_blank)]
"""A line for people: a name, a title."""

Flag = Annotated[bool, Strict()]
"""True or false, and nothing that resembles them."""


def _refuse_null(value: object) -> object:
    if value is None:
        raise PydanticCustomError("null", "This may be left out, but not be null.", {"ours": True})
    return value


def _without_null(schema: dict[str, Any]) -> None:
    schema.pop("default", None)
    # Some types are several already: a Decimal comes as a number or a string.
    present = [kind for kind in schema.pop("anyOf", ()) if kind != {"type": "null"}]
    schema.update(present[0] if len(present) == 1 else {"anyOf": present} if present else {})


_T = TypeVar("_T")
# Not SkipJsonSchema[None]: that makes a union, whose errors point at its branches instead of at the member.
Omittable = Annotated[_T | None, BeforeValidator(_refuse_null), Field(json_schema_extra=_without_null)]
"""A member of a PATCH body: left out it stays as it is, null it may not be. Declare it `= None`."""


def _plain(pattern: str, detail: str) -> BeforeValidator:
    """Accept one spelling of a value in the query, where pydantic would accept many."""
    form = re.compile(pattern)

    def check(value: object) -> object:
        if isinstance(value, str) and form.fullmatch(value) is None:
            raise PydanticCustomError("malformed", detail, {"ours": True})
        return value

    return BeforeValidator(check)


# str has neither Unicode digits nor signs, spaces and underscores for a number here: [0-9] is ASCII.
QueryInteger = Annotated[int, _plain(r"-?[0-9]{1,18}", "This must be an integer in decimal digits.")]
QueryFlag = Annotated[bool, _plain("true|false", "This must be true or false.")]
QueryIdentifier = Annotated[
    UUID, _plain(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "This must be an id, in lower case.")
]
_INSTANT_FORM = "This must be an RFC 3339 instant, such as 2026-01-31T12:00:00Z."


def _to_utc(instant: datetime) -> datetime:
    # The first and the last day that Python can count have no UTC date in every offset.
    try:
        return instant.astimezone(UTC)
    except OverflowError as error:
        raise PydanticCustomError("malformed", _INSTANT_FORM, {"ours": True}) from error


QueryInstant = Annotated[
    AwareDatetime,
    _plain(
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})", _INSTANT_FORM
    ),
    AfterValidator(_to_utc),
]
PathIdentifier = QueryIdentifier
"""An id in a path; any other text there is answered 404, like an id that does not exist."""
