"""Users as clients see them."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, Field, Strict, StringConstraints
from pydantic_core import PydanticCustomError

from app.core.http.pages import PageQuery
from app.core.schemas.fields import Answer, Flag, Omittable, Payload, Printable, QueryFlag, QueryInstant, ShortText
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
# JSON has no enumerations: a role arrives as text.
RoleName = Annotated[Role, Strict(strict=False)]


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


class UserCreate(Payload):
    """A new account; its owner is mailed a link to set the password."""

    email: Email
    full_name: ShortText | None = None
    role: RoleName = Role.USER


class UserUpdate(Payload):
    """What an administrator may change; what is left out stays."""

    full_name: ShortText | None = None
    role: Omittable[RoleName] = None
    is_active: Omittable[Flag] = None


class MeUpdate(Payload):
    """What the owner may change; what is left out stays."""

    full_name: ShortText | None = None


class UserQuery(PageQuery):
    """Which users to list, and in which order."""

    email: Email | None = Field(default=None, description="Exactly this address, in any spelling.")
    q: ShortText | None = Field(default=None, description="Address or name begins with this, in any case.")
    role: Role | None = Field(default=None, description="Of this role.")
    is_active: QueryFlag | None = Field(default=None, description="Active or disabled.")
    created_after: QueryInstant | None = Field(default=None, description="Created later than this instant.")
    created_before: QueryInstant | None = Field(default=None, description="Created earlier than this instant.")
    sort: Literal["created_at", "-created_at", "email", "-email"] = Field(
        default="created_at", description="The order; a minus sign reverses it."
    )
