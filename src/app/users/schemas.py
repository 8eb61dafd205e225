"""Bodies and query of `/users`."""

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
# JSON has no enumerations, so a role is a text.
RoleName = Annotated[Role, Strict(strict=False)]


class UserRead(Answer):
    """An account."""

    id: UUID
    email: str = Field(description="The address that mail to this account goes to.")
    full_name: str | None
    role: Role
    is_active: bool
    email_verified_at: datetime | None
    created_at: datetime
    updated_at: datetime


class UserCreate(Payload):
    """A new account. Its owner gets a mail with a link to set the password."""

    email: Email
    full_name: ShortText | None = None
    role: RoleName = Role.USER


class UserUpdate(Payload):
    """The fields that an administrator may change. Omitted fields stay the same."""

    full_name: ShortText | None = None
    role: Omittable[RoleName] = None
    is_active: Omittable[Flag] = None


class MeUpdate(Payload):
    """The fields that the owner may change. Omitted fields stay the same."""

    full_name: ShortText | None = None


class UserQuery(PageQuery):
    """Filters and order of the list of users."""

    email: Email | None = Field(default=None, description="Accounts with exactly this address, in any spelling.")
    q: ShortText | None = Field(
        default=None, description="Accounts whose address or name begins with this text, in any case."
    )
    role: Role | None = Field(default=None, description="Accounts with this role.")
    is_active: QueryFlag | None = Field(
        default=None, description="Only active (true) or only disabled (false) accounts."
    )
    created_after: QueryInstant | None = Field(default=None, description="Accounts created later than this instant.")
    created_before: QueryInstant | None = Field(default=None, description="Accounts created earlier than this instant.")
    sort: Literal["created_at", "-created_at", "email", "-email"] = Field(
        default="created_at", description="The order. A minus sign reverses it."
    )
