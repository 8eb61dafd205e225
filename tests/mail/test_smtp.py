"""Delivery to an SMTP server, and each kind of failure."""

import asyncio
import logging
import ssl
from contextlib import nullcontext
from email.headerregistry import Address
from pathlib import Path
from typing import override

import pytest
from aiosmtpd.smtp import SMTP

from app.core import product
from app.mail.mailer import Mailer, make_mailer
from app.mail.settings import MailSettings
from app.mail.transports import MailDelayedError, MailRefusedError
from tests.core.scrape import counted_so_far
from tests.mail.conftest import ACCEPTED, Postbox, mail_settings, send, serving


async def test_a_mail_arrives_as_text_and_html(mailer: Mailer, postbox: Postbox) -> None:
    await send(mailer)

    [mail] = postbox.mails
    text, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert mail.get_content_type() == "multipart/alternative"
    assert text is not None
    assert html is not None
    assert "Hello Ada,\n" in text.get_content().replace("\r\n", "\n")
    assert "https://app.example.com/#token=lt1.abc" in text.get_content()
    assert 'href="https://app.example.com/#token=lt1.abc"' in html.get_content()


async def test_the_envelope_and_the_headers_name_sender_and_recipient(mailer: Mailer, postbox: Postbox) -> None:
    await send(mailer)

    [mail] = postbox.mails
    assert (postbox.senders, postbox.recipients) == (["app@example.com"], ["ada@example.org"])
    assert (mail["From"], mail["To"]) == (str(Address(product.NAME, "app", "example.com")), "ada@example.org")
    assert mail["Subject"] == f"Set your password for {product.NAME}"


async def test_a_mail_is_marked_as_automatic(mailer: Mailer, postbox: Postbox) -> None:
    await send(mailer)

    [mail] = postbox.mails
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["X-Auto-Response-Suppress"] == "All"
    assert mail["Date"] is not None


async def test_the_same_mail_sent_again_has_the_same_message_id(mailer: Mailer, postbox: Postbox) -> None:
    await send(mailer)
    await send(mailer)

    assert [mail["Message-ID"] for mail in postbox.mails] == ["<0198c0de@example.com>"] * 2


async def test_a_non_ascii_subject_is_delivered(postbox: Postbox) -> None:
    mailer = make_mailer(mail_settings(postbox.port, from_name="Überall GmbH"))

    await send(mailer)

    [mail] = postbox.mails
    assert mail["Subject"] == "Set your password for Überall GmbH"
    assert mail["From"] == "Überall GmbH <app@example.com>"


async def test_a_non_ascii_local_part_is_delivered_if_the_server_supports_it(mailer: Mailer, postbox: Postbox) -> None:
    await send(mailer, to="jürgen@example.org")

    assert postbox.recipients == ["jürgen@example.org"]
    assert postbox.mails[0]["To"] == "jürgen@example.org"


async def test_a_non_ascii_local_part_is_refused_permanently_if_the_server_does_not_support_it() -> None:
    async with serving(Postbox()) as postbox:
        with pytest.raises(MailRefusedError, match="SMTPUTF8"):
            await send(make_mailer(mail_settings(postbox.port)), to="jürgen@example.org")

    assert postbox.mails == []


async def test_a_permanently_refused_address_is_not_retried(mailer: Mailer, postbox: Postbox) -> None:
    postbox.replies_to_recipient = ["550 5.1.1 <ada@example.org>: no such user"]

    with pytest.raises(MailRefusedError, match=r"550 5.1.1 <<address>>: no such user"):
        await send(mailer)

    assert postbox.mails == []


async def test_a_temporarily_refused_address_can_be_retried(mailer: Mailer, postbox: Postbox) -> None:
    postbox.replies_to_recipient = ["450 4.2.0 greylisted"]

    with pytest.raises(MailDelayedError, match=r"450 4.2.0 greylisted"):
        await send(mailer)
    await send(mailer)

    assert len(postbox.mails) == 1


async def test_a_permanently_refused_message_is_not_retried(mailer: Mailer, postbox: Postbox) -> None:
    postbox.replies = ["554 5.7.1 looks like spam"]

    with pytest.raises(MailRefusedError, match=r"554 5.7.1 looks like spam"):
        await send(mailer)


async def test_a_temporarily_refused_message_can_be_retried(mailer: Mailer, postbox: Postbox) -> None:
    postbox.replies = ["451 4.3.0 disk full"]

    with pytest.raises(MailDelayedError, match=r"451 4.3.0 disk full"):
        await send(mailer)


@pytest.mark.parametrize(
    ("answer", "outcome"), [(ACCEPTED, "delivered"), ("451 later", "delayed"), ("554 never", "refused")]
)
async def test_mails_are_counted_by_outcome(mailer: Mailer, postbox: Postbox, answer: str, outcome: str) -> None:
    labels = {"template": "set_password", "outcome": outcome}
    before = counted_so_far("mails_total", template="set_password"), counted_so_far("mails_total", **labels)
    postbox.replies.append(answer)

    with nullcontext() if outcome == "delivered" else pytest.raises(Exception, match=answer[:3]):
        await send(mailer)

    after = counted_so_far("mails_total", template="set_password"), counted_so_far("mails_total", **labels)
    assert after == (before[0] + 1, before[1] + 1)


async def test_a_refused_sender_can_be_retried(mailer: Mailer, postbox: Postbox) -> None:
    postbox.replies_to_sender = ["550 5.7.1 app@example.com may not send here"]

    with pytest.raises(MailDelayedError, match="<address> may not send here"):
        await send(mailer)


async def test_an_unreachable_server_can_be_retried() -> None:
    async with serving(Postbox()) as postbox:
        pass

    with pytest.raises(MailDelayedError, match="Error connecting"):
        await send(make_mailer(mail_settings(postbox.port)))


async def test_a_server_that_does_not_respond_can_be_retried() -> None:
    async def ignore_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(ignore_client, "127.0.0.1", 0) as server:
        mailer = make_mailer(mail_settings(server.sockets[0].getsockname()[1], timeout="50ms"))

        with pytest.raises(MailDelayedError, match=r"[Tt]imed out"):
            await send(mailer)


async def test_a_connection_that_breaks_before_the_reply_can_be_retried(mailer: Mailer, postbox: Postbox) -> None:
    postbox.before_reply = drop_connection
    with pytest.raises(MailDelayedError):
        await send(mailer)
    postbox.before_reply = lambda _connection: None
    await send(mailer)

    assert [mail["Message-ID"] for mail in postbox.mails] == ["<0198c0de@example.com>"] * 2


async def test_a_connection_that_breaks_after_acceptance_is_not_an_error() -> None:
    class DropsConnectionOnQuit(Postbox):
        async def handle_QUIT(self, server: SMTP, _session: object, _envelope: object) -> str:  # noqa: N802
            drop_connection(server)
            return "221 Bye"

    async with serving(DropsConnectionOnQuit()) as postbox:
        await send(make_mailer(mail_settings(postbox.port)))

    assert len(postbox.mails) == 1


def drop_connection(connection: SMTP) -> None:
    assert isinstance(connection.transport, asyncio.Transport)
    connection.transport.abort()


async def test_starttls_is_used_if_the_server_offers_it(server_tls: ssl.SSLContext) -> None:
    async with serving(Postbox(), start_tls=server_tls) as postbox:
        await send(make_mailer(mail_settings(postbox.port)))

    assert postbox.were_encrypted == [True]


async def test_a_remote_server_must_offer_starttls(postbox: Postbox) -> None:
    mailer = make_mailer(remote_settings(postbox.port))

    with pytest.raises(MailDelayedError, match=r"(?i)starttls"):
        await send(mailer)

    assert postbox.mails == []


async def test_a_remote_server_must_have_a_trusted_certificate(
    server_tls: ssl.SSLContext,
) -> None:
    async with serving(Postbox(), start_tls=server_tls) as postbox:
        with pytest.raises(MailDelayedError, match="CERTIFICATE_VERIFY_FAILED"):
            await send(make_mailer(remote_settings(postbox.port)))

    assert postbox.mails == []


async def test_a_certificate_of_the_configured_ca_file_is_trusted(
    server_tls: ssl.SSLContext, certificate: Path
) -> None:
    async with serving(Postbox(), start_tls=server_tls) as postbox:
        await send(make_mailer(remote_settings(postbox.port, ca_file=certificate)))

    assert postbox.were_encrypted == [True]


async def test_plain_text_to_a_remote_server_needs_an_explicit_setting(postbox: Postbox) -> None:
    await send(make_mailer(remote_settings(postbox.port, require_tls=False)))

    assert postbox.were_encrypted == [False]


def remote_settings(port: int, **settings: object) -> MailSettings:
    """Return settings that treat the local server as a remote one."""
    return RemoteSettings.model_validate(mail_settings(port).model_dump() | settings)


class RemoteSettings(MailSettings):
    @property
    @override
    def demands_tls(self) -> bool:
        return self.require_tls


async def test_smtps_uses_tls_from_the_first_byte(server_tls: ssl.SSLContext, certificate: Path) -> None:
    async with serving(Postbox(), tls=server_tls) as postbox:
        await send(make_mailer(mail_settings(postbox.port, scheme="smtps", ca_file=certificate)))

    assert len(postbox.mails) == 1


async def test_smtps_verifies_the_certificate(server_tls: ssl.SSLContext) -> None:
    async with serving(Postbox(), tls=server_tls) as postbox:
        with pytest.raises(MailDelayedError, match="CERTIFICATE_VERIFY_FAILED"):
            await send(make_mailer(mail_settings(postbox.port, scheme="smtps", require_tls=False)))

    assert postbox.mails == []


async def test_the_user_and_password_of_the_url_are_used_to_log_in(server_tls: ssl.SSLContext) -> None:
    postbox = Postbox()
    async with serving(postbox, start_tls=server_tls, authenticator=postbox.authenticate, auth_required=True):
        await send(make_mailer(mail_settings(postbox.port, user="app%40example.com:p%40ss@")))

    assert postbox.logins == ["app@example.com p@ss"]
    assert len(postbox.mails) == 1


async def test_a_refused_login_can_be_retried(server_tls: ssl.SSLContext) -> None:
    postbox = Postbox()
    async with serving(postbox, start_tls=server_tls, authenticator=postbox.authenticate, auth_required=True):
        with pytest.raises(MailDelayedError, match="Authentication"):
            await send(make_mailer(mail_settings(postbox.port, user="app:wrong@")))


async def test_log_lines_contain_neither_the_address_nor_the_link(
    mailer: Mailer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="app"):
        await send(mailer)

    records = [repr(record.__dict__) for record in caplog.records if record.name.startswith("app")]
    assert records
    assert not [record for record in records if "ada@" in record or "lt1." in record]
