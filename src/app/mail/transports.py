"""Transports for mail: SMTP, files in a directory, the console, and a list for tests."""

import asyncio
import logging
import os
import re
import ssl
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import aiosmtplib

from app.core.errors import PermanentError, TemporaryError
from app.mail.message import Message
from app.mail.settings import MailSettings

# SMTP reply codes from 500 are permanent errors (RFC 5321, 4.2.1).
_FIRST_PERMANENT_CODE = 500
_ADDRESS = re.compile(r"[^\s<>]+@[^\s<>]+")

log = logging.getLogger(__name__)


class MailRefusedError(PermanentError):
    """The server permanently refuses this mail for this address."""


class MailDelayedError(TemporaryError):
    """The server is unreachable, or temporarily refuses the mail."""


class Transport(Protocol):
    """Delivers a mail, or raises."""

    async def deliver(self, message: Message) -> None: ...


def make_transport(settings: MailSettings) -> Transport:
    url = urlsplit(settings.url.get_secret_value())
    if url.scheme == "console":
        return ConsoleTransport()
    if settings.directory:
        return FileTransport(settings.directory)
    return SMTPTransport(settings)


class SMTPTransport:
    """Opens one connection per mail, so that a restart of the server cannot leave a stale connection."""

    def __init__(self, settings: MailSettings) -> None:
        url = urlsplit(settings.url.get_secret_value())
        is_tls_from_the_start = url.scheme == "smtps"
        context = ssl.create_default_context(cafile=settings.ca_file)
        if not settings.demands_tls:
            # Plain text is allowed here, so TLS with an unverified certificate is still an improvement.
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        self._client = partial(
            aiosmtplib.SMTP,
            hostname=url.hostname,
            port=url.port,
            username=unquote(url.username) if url.username else None,
            password=unquote(url.password) if url.password else None,
            timeout=settings.timeout.total_seconds(),
            use_tls=is_tls_from_the_start,
            # None means: upgrade to TLS if the server offers it.
            start_tls=False if is_tls_from_the_start else settings.demands_tls or None,
            tls_context=context,
        )

    async def deliver(self, message: Message) -> None:
        """Return when the server has accepted the mail. If the connection breaks before its response, the mail may be sent twice."""
        client = self._client()
        try:
            await client.connect()
            await client.send_message(message.as_email(), sender=message.sender.addr_spec, recipients=[message.to])
            # The server has accepted the mail, so an error in QUIT must not cause a retry.
            with suppress(aiosmtplib.SMTPException, OSError):
                await client.quit()
        except (aiosmtplib.SMTPException, OSError) as error:
            # Not chained: these errors quote addresses, which must not appear in logs.
            raise _failure(error) from None
        finally:
            client.close()


def _failure(error: Exception) -> MailRefusedError | MailDelayedError:
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        error = error.recipients[0]
    reason = _ADDRESS.sub("<address>", " ".join(_text(error).split()))
    if _is_permanent(error):
        return MailRefusedError(f"the mail server refused the mail: {reason}")
    return MailDelayedError(f"the mail server did not accept the mail: {reason}")


def _text(error: Exception) -> str:
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return f"{error.code} {error.message}"
    return str(error) or type(error).__name__


def _is_permanent(error: Exception) -> bool:
    # Only errors about the recipient or the content are permanent. The operator can correct a refused sender or login, and then
    # a retry succeeds.
    if isinstance(error, aiosmtplib.SMTPRecipientRefused | aiosmtplib.SMTPDataError):
        return error.code >= _FIRST_PERMANENT_CODE
    # The recipient is not ASCII and the server lacks SMTPUTF8. The same class reports a missing STARTTLS or AUTH, which the
    # operator can correct.
    return isinstance(error, aiosmtplib.SMTPNotSupported) and "SMTPUTF8" in str(error)


class FileTransport:
    """Writes each mail to an `.eml` file. File names sort in the order of sending; a visible file is complete."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    async def deliver(self, message: Message) -> None:
        path = await asyncio.to_thread(self._write, message)
        log.info("mail written", extra={"path": str(path)})

    def _write(self, message: Message) -> Path:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{message.message_id.strip('<>')}"
        staging, path = self.directory / f".{name}", self.directory / f"{name}.eml"
        # Mails contain links that give access to accounts, so only the owner may read the file.
        with os.fdopen(os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(message.as_email().as_bytes())
        return staging.rename(path)


class ConsoleTransport:
    """Prints the text of each mail, links included. For development."""

    async def deliver(self, message: Message) -> None:
        rule = "─" * 72
        head = f"To: {message.to}\nSubject: {message.subject}"
        sys.stdout.write(f"\n{rule}\n{head}\n\n{message.text.rstrip()}\n{rule}\n\n")
        sys.stdout.flush()


class MemoryTransport:
    """Stores mails in a list, for tests."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    async def deliver(self, message: Message) -> None:
        self.sent.append(message)
