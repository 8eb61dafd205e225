# ruff: noqa: ARG002, N802  # aiosmtpd defines the names and the parameters of these methods.
"""An SMTP server on loopback, in the event loop of the test. Each test configures its responses."""

import asyncio
import ssl
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.mail.mailer import Mailer, make_mailer
from app.mail.settings import MailSettings

ACCEPTED = "250 Message accepted for delivery"


class Postbox:
    """Handler of the server. It stores the mails and gives the configured replies; without one, it accepts the mail."""

    def __init__(self) -> None:
        self.port = 0
        self.mails: list[EmailMessage] = []
        self.senders: list[str] = []
        self.recipients: list[str] = []
        self.were_encrypted: list[bool] = []
        self.logins: list[str] = []
        self.replies: list[str] = []
        self.replies_to_recipient: list[str] = []
        self.replies_to_sender: list[str] = []
        # Called with the connection after a mail was received and before the reply.
        self.before_reply: Callable[[SMTP], Any] = lambda _connection: None

    async def handle_MAIL(self, server: SMTP, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        if self.replies_to_sender:
            return self.replies_to_sender.pop(0)
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(self, server: SMTP, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        if self.replies_to_recipient:
            return self.replies_to_recipient.pop(0)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:
        parsed = message_from_bytes(envelope.content, policy=policy.SMTPUTF8)
        assert isinstance(parsed, EmailMessage)
        self.mails.append(parsed)
        self.senders.append(envelope.mail_from)
        self.recipients.extend(envelope.rcpt_tos)
        self.were_encrypted.append(session.ssl is not None)
        outcome = self.before_reply(server)
        if outcome is not None:
            await outcome
        return self.replies.pop(0) if self.replies else ACCEPTED

    def authenticate(
        self, _server: SMTP, _session: Any, _envelope: Any, _mechanism: str, data: LoginPassword
    ) -> AuthResult:
        self.logins.append(f"{data.login.decode()} {data.password.decode()}")
        return AuthResult(success=data.password == b"p@ss", handled=False)


@asynccontextmanager
async def serving(
    postbox: Postbox,
    *,
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    start_tls: ssl.SSLContext | None = None,
    **options: Any,
) -> AsyncIterator[Postbox]:
    """Run the server while the context lasts."""

    def connect() -> SMTP:
        with warnings.catch_warnings():
            # aiosmtpd warns about logins without TLS, which some of these tests use.
            warnings.simplefilter("ignore")
            return SMTP(postbox, hostname="mail.test", tls_context=start_tls, **options)

    server = await asyncio.get_running_loop().create_server(connect, "127.0.0.1", port, ssl=tls)
    postbox.port = server.sockets[0].getsockname()[1]
    try:
        yield postbox
    finally:
        server.close()


@pytest.fixture
async def postbox() -> AsyncIterator[Postbox]:
    """A server without TLS, such as a relay on the same machine."""
    async with serving(Postbox(), enable_SMTPUTF8=True) as postbox:
        yield postbox


def mail_settings(port: int, *, scheme: str = "smtp", user: str = "", **settings: Any) -> MailSettings:
    url = f"{scheme}://{user}127.0.0.1:{port}"
    return MailSettings.model_validate({"url": url, "from_address": "app@example.com", "timeout": "5s", **settings})


@pytest.fixture
def mailer(postbox: Postbox) -> Mailer:
    """A mailer that sends to the server without TLS."""
    return make_mailer(mail_settings(postbox.port))


async def send(mailer: Mailer, **changes: Any) -> None:
    """Send the default mail of these tests."""
    values = {
        "to": "ada@example.org",
        "message_id": "0198c0de",
        "name": "Ada",
        "link": "https://app.example.com/#token=lt1.abc",
        "expires_in": "3 days",
    }
    await mailer.send("set_password", **{**values, **changes})


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key, in one file. A client trusts it only if it is given this file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    path = tmp_path_factory.mktemp("certificate") / "server.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture(scope="session")
def server_tls(certificate: Path) -> ssl.SSLContext:
    """The TLS context of the server."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context
