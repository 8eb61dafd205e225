"""Users as clients see them."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from app.core.fields import Answer, Printable
from app.users.emails import MAX_LENGTH, InvalidEmailError, normalize
from app.users.roles import Role


def _normalize_email(address: str) -> str:
    try:
        return normalize(address)
    except InvalidEmailError as error:
        raise PydanticCustomError("email_invalid", "This is not an email address.", {"ours": True}) from error


Email = Annotated[
    str,
    StringConstraints(min_length=3, max_length=MAX_LENGTH),
    Printable,
    AfterValidator(_normalize_email),
    Field(json_schema_extra={"format": "email"}, examples=["ada@example.com"]),
]


class UserRead(Answer):
    """An account."""

    id: UUID
    email: str = Field(description="Where mail to this account goes.")
    full_name: str | None
    role: Role
    is_active: bool
    email_verified_at: datetime | None
    created_at: datetime
    updated_at: datetime
