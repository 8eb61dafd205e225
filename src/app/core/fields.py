"""The field types that every schema is built from: whatever comes in is capped, printable Unicode."""

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints
from pydantic_core import PydanticCustomError

# Other, not assigned: controls, surrogates, private use, unassigned. Format characters (Cf) join emoji and shape scripts.
_REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Co", "Cn"})


def refuse_unprintable(text: str) -> str:
    """Return the text, or refuse it when it holds a character no person types."""
    if any(unicodedata.category(character) in _REFUSED_CATEGORIES for character in text):
        raise PydanticCustomError("unprintable", "This holds a control or an unassigned character.", {"ours": True})
    return text


def refuse_blank(text: str) -> str:
    """Return the text, or refuse it when there is nothing to see in it."""
    if not text.strip():
        raise PydanticCustomError("blank", "This must not be blank.", {"ours": True})
    return text


class Payload(BaseModel):
    """Base of every body that comes in: unknown members are refused, values are not coerced across types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Answer(BaseModel):
    """Base of every body that goes out: built from rows, described and not validated again."""

    model_config = ConfigDict(from_attributes=True)


Printable = AfterValidator(refuse_unprintable)
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=128), Printable, AfterValidator(refuse_blank)]
