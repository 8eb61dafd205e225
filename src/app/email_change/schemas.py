"""Body of the request for a change of address."""

from app.auth.schemas import Secret
from app.core.schemas.fields import Payload
from app.users.schemas import Email


class EmailChange(Payload):
    """The new address, and the current password."""

    new_email: Email
    password: Secret
