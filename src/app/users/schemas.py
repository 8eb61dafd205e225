"""Users in the API."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, Field, Strict, StringConstraints
from pydantic_core import PydanticCustomError

from app.core.schemas.emails import MAX_LENGTH, InvalidEmailError, normalize
from app.core.schemas.fields import Answer, Flag, Omittable, Payload, Printable, QueryFlag, QueryInstant, ShortText
from app.core.schemas.pages import PageQuery
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
# Payloads are validated strictly, but JSON has no enumerations: a role is sent as text.
RoleName = Annotated[Role, Strict(strict=False)]


class UserRead(Answer):
    """An account."""

    id: UUID
    email: str = Field(description="The address that receives mail for this account.")
    full_name: str | None
    role: Role
    is_active: bool
    email_verified_at: datetime | None
    created_at: datetime
    updated_at: datetime


class UserCreate(Payload):
    """A new account. Its owner receives a mail with a link to set the password."""

    email: Email
    full_name: ShortText | None = None
    role: RoleName = Role.USER


class MeUpdate(Payload):
    """Changes by the owner. Omitted members stay the same."""

    full_name: ShortText | None = None


class UserUpdate(MeUpdate):
    """Changes by an administrator. Omitted members stay the same."""

    role: Omittable[RoleName] = None
    is_active: Omittable[Flag] = None


class UserQuery(PageQuery):
    """Filters and order of the list."""

    email: Email | None = Field(default=None, description="Only the user with this address, in any spelling.")
    q: ShortText | None = Field(
        default=None,
        description="Only users whose address or name begins with this text, regardless of upper and lower case.",
    )
    role: Role | None = Field(default=None, description="Only users with this role.")
    is_active: QueryFlag | None = Field(default=None, description="Only active users, or only disabled ones.")
    created_after: QueryInstant | None = Field(default=None, description="Only users created later than this instant.")
    created_before: QueryInstant | None = Field(
        default=None, description="Only users created earlier than this instant."
    )
    sort: Literal["created_at", "-created_at", "email", "-email"] = Field(
        default="created_at", description="Sort order; a minus sign reverses it."
    )
