"""The ways a mail can leave: over SMTP, into a directory, onto the console, or into a list for tests."""

import asyncio
import logging
import os
import re
import ssl
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import aiosmtplib

from app.core.errors import PermanentError, TemporaryError
from app.mail.message import Message
from app.mail.settings import MailSettings

_PERMANENT = 500
_ADDRESS = re.compile(r"[^\s<>]+@[^\s<>]+")

log = logging.getLogger(__name__)


class MailRefusedError(PermanentError):
    """The server will never take this mail for this address."""


class MailDelayedError(TemporaryError):
    """The server cannot be reached, or will not take the mail now."""


class Transport(Protocol):
    """Takes responsibility for a mail, or raises."""

    async def deliver(self, message: Message) -> None: ...


def make_transport(settings: MailSettings) -> Transport:
    """Make the transport that the URL names."""
    url = urlsplit(settings.url.get_secret_value())
    if url.scheme == "console":
        return ConsoleTransport()
    if url.scheme == "file":
        return FileTransport(Path(unquote(url.path)))
    return SMTPTransport(settings)


class SMTPTransport:
    """A connection per mail: nothing to keep alive, and nothing that a restarted server could leave half open."""

    def __init__(self, settings: MailSettings) -> None:
        url = urlsplit(settings.url.get_secret_value())
        self._hostname = url.hostname
        self._port = url.port
        self._username = unquote(url.username) if url.username else None
        self._password = unquote(url.password) if url.password else None
        self._timeout = settings.timeout.total_seconds()
        self._is_tls_from_the_start = url.scheme == "smtps"
        self._must_upgrade = settings.demands_tls and url.scheme == "smtp"
        self._context = ssl.create_default_context(cafile=settings.ca_file)
        if not settings.demands_tls:
            # Where plain text would do, a certificate nobody vouches for is no reason to send plain text.
            self._context.check_hostname = False
            self._context.verify_mode = ssl.CERT_NONE

    async def deliver(self, message: Message) -> None:
        """Return once the server has accepted; a connection that breaks just before that delivers twice, never not at all."""
        client = aiosmtplib.SMTP(
            hostname=self._hostname,
            port=self._port,
            username=self._username,
            password=self._password,
            timeout=self._timeout,
            use_tls=self._is_tls_from_the_start,
            start_tls=self._start_tls(),
            tls_context=self._context,
        )
        try:
            await client.connect()
            await client.send_message(message.as_email(), sender=message.sender.addr_spec, recipients=[message.to])
            # The mail is accepted: whatever goes wrong with the farewell must not send it again.
            with suppress(aiosmtplib.SMTPException, OSError):
                await client.quit()
        except (aiosmtplib.SMTPException, OSError) as error:
            # Not chained: these quote addresses, which stay out of logs.
            raise _failure(error) from None
        finally:
            client.close()

    def _start_tls(self) -> bool | None:
        if self._is_tls_from_the_start:
            return False
        # None upgrades where the server offers it.
        return True if self._must_upgrade else None


def _failure(error: Exception) -> MailRefusedError | MailDelayedError:
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        error = error.recipients[0]
    reason = _ADDRESS.sub("<address>", " ".join(_text(error).split()))
    if _is_final(error):
        return MailRefusedError(f"the mail server refuses the mail: {reason}")
    return MailDelayedError(f"the mail server has not taken the mail: {reason}")


def _text(error: Exception) -> str:
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return f"{error.code} {error.message}"
    return str(error) or type(error).__name__


def _is_final(error: Exception) -> bool:
    # A refused sender or login is the operator's to mend, and then the mail can still go.
    if isinstance(error, aiosmtplib.SMTPRecipientRefused | aiosmtplib.SMTPDataError):
        return error.code >= _PERMANENT
    # An address that is not ASCII; the same class also says that STARTTLS or AUTH is missing, which can be mended.
    return isinstance(error, aiosmtplib.SMTPNotSupported) and "SMTPUTF8" in str(error)


class FileTransport:
    """One `.eml` a mail, in the order sent; a file that is there is complete."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    async def deliver(self, message: Message) -> None:
        path = await asyncio.to_thread(self._write, message)
        log.info("mail written", extra={"path": str(path)})

    def _write(self, message: Message) -> Path:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{message.message_id.strip('<>')}"
        staging, path = self.directory / f".{name}", self.directory / f"{name}.eml"
        # The links in mails are keys to accounts.
        with os.fdopen(os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(message.as_email().as_bytes())
        return staging.rename(path)


class ConsoleTransport:
    """Prints what a person would read, links included: for development."""

    async def deliver(self, message: Message) -> None:
        rule = "─" * 72
        head = f"To: {message.to}\nSubject: {message.subject}"
        sys.stdout.write(f"\n{rule}\n{head}\n\n{message.text.rstrip()}\n{rule}\n\n")
        sys.stdout.flush()


class MemoryTransport:
    """Keeps what it is given, for tests."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    async def deliver(self, message: Message) -> None:
        self.sent.append(message)
