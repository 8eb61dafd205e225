"""Normalization of email addresses and names. All code that stores or compares them uses it."""

import unicodedata

from email_validator import EmailNotValidError, validate_email

from app.core.schemas import characters

MAX_LENGTH = 254
_MAX_LOCAL_LENGTH = 64
# Domains for private networks and for development (RFC 6761 and 6762). Others, such as `.invalid`, never receive mail.
_SPECIAL_USE = (".local", ".localhost", ".test")


class InvalidEmailError(ValueError):
    """The text is not a valid email address."""


def has_special_use_domain(address: str) -> bool:
    """Return whether the domain is one for private networks or for development, such as `corp.local` or `example.test`.

    `normalize` accepts it, because the settings decide whether an account may have such an address.
    """
    return address.lower().endswith(_SPECIAL_USE)


def normalize(address: str) -> str:
    """Return the form that is stored and that receives mail: NFC, with the domain in lower-case ASCII (IDNA).

    Nothing is trimmed. Rules of individual providers, such as ignored dots or plus tags, do not apply.
    """
    if len(address) > MAX_LENGTH or not address.isprintable() or not characters.has_only_visible(address):
        raise InvalidEmailError
    # The library refuses these domains. The rest of its rules are those for the same domain below `.com`.
    completion = ".com" if has_special_use_domain(address) else ""
    try:
        parsed = validate_email(address + completion, check_deliverability=False)
    except EmailNotValidError as error:
        raise InvalidEmailError from error
    spelling = f"{parsed.local_part}@{parsed.ascii_domain.lower().removesuffix(completion)}"
    # RFC 5321, section 4.5.3.1 limits both lengths, in octets, and mail servers reject longer addresses. The library does not check
    # the length of the local part.
    if len(parsed.local_part.encode()) > _MAX_LOCAL_LENGTH or len(spelling.encode()) > MAX_LENGTH:
        raise InvalidEmailError
    return spelling


def identity(address: str) -> str:
    """Return the unique key of an address. Addresses that differ only in case have the same key."""
    local_part, _, domain = normalize(address).rpartition("@")
    return f"{name_key(local_part)}@{domain}"


def name_key(name: str) -> str:
    """Return the form in which names and search terms are compared, without regard to case."""
    # Case folding can produce text that is not in NFC, hence the second pass.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
