"""Bodies of the requests about an account, and its export."""

from typing import Annotated

from pydantic import Field, SecretStr

from app.audit.schemas import AuditEventExport
from app.auth.schemas import Secret, SessionExport
from app.core.schemas.fields import Answer, Payload, PrintableSecret, ShortText
from app.users.schemas import Email, UserRead

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
