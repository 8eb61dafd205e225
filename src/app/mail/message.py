"""A mail in the form that the transports accept, and the validation of its headers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTPUTF8
from email.utils import format_datetime

from app.core.errors import PermanentError

# Mark the mail as automatic, so that no out-of-office notice replies to it (RFC 3834).
AUTOMATIC: Mapping[str, str] = {"Auto-Submitted": "auto-generated", "X-Auto-Response-Suppress": "All"}
# The longest line that SMTP allows, so that a link stays on one line of the raw mail.
_WHOLE_LINES = SMTPUTF8.clone(max_line_length=998)
# Control characters and every Unicode line break: they could end a header or act as a command.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Local parts in any alphabet (RFC 6531), except those that need quoting.
_ATOM = r"""[^\s()<>@,;:\\".\[\]]+"""
_MAILBOX = re.compile(rf"{_ATOM}(\.{_ATOM})*@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")
_MESSAGE_ID = re.compile(r"<[A-Za-z0-9._-]+@[A-Za-z0-9.-]+>")


class InvalidMessageError(PermanentError):
    """The mail can never be sent. The text names the problem and does not quote the value."""


@dataclass(frozen=True)
class Message:
    """A mail to one recipient. Its creation refuses values that could inject a header."""

    sender: Address
    to: str
    subject: str
    text: str
    message_id: str
    html: str | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: AUTOMATIC)

    def __post_init__(self) -> None:
        if any(_CONTROL.search(value) for value in (self.to, self.subject, *self.headers, *self.headers.values())):
            raise InvalidMessageError("a header of the mail contains a control character")
        if not _MESSAGE_ID.fullmatch(self.message_id):
            raise InvalidMessageError("the Message-ID must have the form <name@host>")
        parse_address(self.to)

    def as_email(self) -> EmailMessage:
        """Convert the mail to an `EmailMessage` of the standard library, with the current date."""
        email = EmailMessage(policy=_WHOLE_LINES)
        email["From"] = self.sender
        email["To"] = parse_address(self.to)
        email["Subject"] = self.subject
        email["Date"] = format_datetime(datetime.now(UTC))
        email["Message-ID"] = self.message_id
        for name, value in self.headers.items():
            email[name] = value
        email.set_content(self.text)
        if self.html is not None:
            email.add_alternative(self.html, subtype="html")
        return email


def parse_address(text: str) -> Address:
    """Parse an address of the form `local@domain`, without a display name."""
    if not _MAILBOX.fullmatch(text):
        raise InvalidMessageError("the recipient or sender is not an address of the form name@example.com")
    local_part, _, domain = text.rpartition("@")
    return Address(username=local_part, domain=domain)
