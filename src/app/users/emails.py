"""The normal form of email addresses and names, for all code that stores or compares them."""

import unicodedata

from email_validator import EmailNotValidError, validate_email

from app.core.schemas import characters

MAX_LENGTH = 254
_MAX_LOCAL_LENGTH = 64


class InvalidEmailError(ValueError):
    """The text is not an address that mail can be sent to."""


def normalize(address: str) -> str:
    """Return the spelling to store and to send mail to: NFC, with the domain in lower-case ASCII (IDNA).

    Nothing is trimmed, and rules of single providers (dots, plus tags) are not applied.
    """
    if len(address) > MAX_LENGTH or not address.isprintable() or not characters.has_only_visible(address):
        raise InvalidEmailError
    try:
        parsed = validate_email(address, check_deliverability=False)
    except EmailNotValidError as error:
        raise InvalidEmailError from error
    spelling = f"{parsed.local_part}@{parsed.ascii_domain.lower()}"
    # RFC 5321, 4.5.3.1 limits the number of octets; mail servers refuse longer addresses. The library does not check the local part.
    if len(parsed.local_part.encode()) > _MAX_LOCAL_LENGTH or len(spelling.encode()) > MAX_LENGTH:
        raise InvalidEmailError
    return spelling


def identity(address: str) -> str:
    """Return the key that is the same for all spellings of one address. Case does not distinguish accounts."""
    local_part, _, domain = normalize(address).rpartition("@")
    # Case folding can undo the normal form, so it is applied again.
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", local_part).casefold())
    return f"{folded}@{domain}"


def name_key(name: str) -> str:
    """Return the form in which names and search texts are compared, without case."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
