"""What an email address is to this application: one normalisation, for everything that stores or compares one."""

import unicodedata

from email_validator import EmailNotValidError, validate_email

from app.core.schemas import characters

MAX_LENGTH = 254
_MAX_LOCAL_LENGTH = 64


class InvalidEmailError(ValueError):
    """The text is no address that mail could be sent to."""


def normalize(address: str) -> str:
    """Give the spelling to store and to send mail to: NFC, the domain in lower-case ASCII (IDNA).

    Nothing is trimmed and no provider's habits (dots, plus tags) are assumed.
    """
    if len(address) > MAX_LENGTH or not address.isprintable() or not characters.has_only_visible(address):
        raise InvalidEmailError
    try:
        parsed = validate_email(address, check_deliverability=False)
    except EmailNotValidError as error:
        raise InvalidEmailError from error
    spelling = f"{parsed.local_part}@{parsed.ascii_domain.lower()}"
    # RFC 5321, 4.5.3.1 counts octets, and what is longer mail servers refuse. The library leaves the first to us.
    if len(parsed.local_part.encode()) > _MAX_LOCAL_LENGTH or len(spelling.encode()) > MAX_LENGTH:
        raise InvalidEmailError
    return spelling


def identity(address: str) -> str:
    """Give the key that is the same for all spellings of one address: case does not distinguish accounts."""
    local_part, _, domain = normalize(address).rpartition("@")
    # Case folding can undo the normal form, hence the second pass.
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", local_part).casefold())
    return f"{folded}@{domain}"


def name_key(name: str) -> str:
    """Give the form in which names, and what people search for, are compared: case does not matter."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
