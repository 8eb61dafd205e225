"""Bodies of the requests about an account, and its export."""

from typing import Annotated, Any

from pydantic import Field, SecretStr, create_model

from app import features
from app.audit.schemas import AuditEventExport
from app.auth.schemas import Secret, SessionExport
from app.core.schemas.fields import Answer, Payload, PrintableSecret, ShortText
from app.users.schemas import Email, UserRead

# These limits are wider than the rules in `core/security/passwords.py`, which reject a password with their own error codes.
FreshPassword = Annotated[SecretStr, Field(min_length=1, max_length=1024), PrintableSecret]


class NewAccount(Payload):
    """The address, the password and the name of an account."""

    email: Email
    password: FreshPassword
    full_name: ShortText | None = None


class EmailRequest(Payload):
    """The address to send the mail to."""

    email: Email


class LinkProof(Payload):
    """The secret of a mailed link."""

    token: Secret


class NewPassword(LinkProof):
    """The secret of a mailed link, and the password to set."""

    new_password: FreshPassword


class PasswordChange(Payload):
    """The current password, and the new one."""

    current_password: Secret
    new_password: FreshPassword


class Accepted(Answer):
    """The request has been accepted. The result is mailed."""

    detail: str = "If this can be done, a mail is on its way."


# Maximum number of sessions, and of events. The serialization of an export blocks the other requests of the process.
MAX_EXPORTED = 2000


class AccountExport(Answer):
    """What is stored about an account, without secrets and without data of other accounts."""

    user: UserRead
    sessions: list[SessionExport] = Field(description="The most recently refreshed first.")
    audit_events: list[AuditEventExport] = Field(description="Newest first.")
    is_complete: bool = Field(
        description=f"False when there are more sessions or events: an export holds the newest {MAX_EXPORTED:,} of each."
    )


def export_schema() -> type[AccountExport]:
    """Return the schema of the export, with one more member for each feature that has an `export.py`.

    The member has the name of the feature. `SCHEMA` in `export.py` is its type, and `export(session, user_id)` returns its value.
    """
    members: dict[str, Any] = {name: (module.SCHEMA, ...) for name, module in features.parts("export")}
    return create_model("AccountExport", __base__=AccountExport, __doc__=AccountExport.__doc__, **members)
