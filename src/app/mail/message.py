"""One mail, as the transports take it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTPUTF8
from email.utils import format_datetime

from app.core.errors import PermanentError

# Written by a program: no out-of-office notice is to answer, and mailing lists drop it.
AUTOMATIC: Mapping[str, str] = {"Auto-Submitted": "auto-generated", "X-Auto-Response-Suppress": "All"}
# The maximum of SMTP, so that a link stays on one line of the raw mail.
_WHOLE_LINES = SMTPUTF8.clone(max_line_length=998)
# Line breaks of every alphabet, and what terminals or old servers take for commands.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Local parts of any alphabet (RFC 6531), but none that would need quoting.
_ATOM = r"""[^\s()<>@,;:\\".\[\]]+"""
_MAILBOX = re.compile(rf"{_ATOM}(\.{_ATOM})*@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")
_MESSAGE_ID = re.compile(r"<[A-Za-z0-9._-]+@[A-Za-z0-9.-]+>")


class InvalidMessageError(PermanentError):
    """This can never be sent; the text says what is wrong with it, not what it was."""


@dataclass(frozen=True)
class Message:
    """A mail to one person. What could break out of its header is refused when it is made."""

    sender: Address
    to: str
    subject: str
    text: str
    message_id: str
    html: str | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: AUTOMATIC)

    def __post_init__(self) -> None:
        if any(_CONTROL.search(value) for value in (self.to, self.subject, *self.headers, *self.headers.values())):
            message = "a header of a mail holds a control character"
            raise InvalidMessageError(message)
        if not _MESSAGE_ID.fullmatch(self.message_id):
            message = "a Message-ID is written <name@host>"
            raise InvalidMessageError(message)
        parse_address(self.to)

    def as_email(self) -> EmailMessage:
        """Give the mail as the standard library knows it, dated now."""
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
    """Read `local@domain`; nothing else, no name and no list."""
    if not _MAILBOX.fullmatch(text):
        message = "this is not an address that mail can be sent to"
        raise InvalidMessageError(message)
    local_part, _, domain = text.rpartition("@")
    return Address(username=local_part, domain=domain)
