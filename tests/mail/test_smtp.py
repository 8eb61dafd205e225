"""Delivery to a real SMTP server, and every way in which it can fail."""

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

    [mail] = postbox.taken
    text, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert mail.get_content_type() == "multipart/alternative"
    assert text is not None
    assert html is not None
    assert "Hello Ada,\n" in text.get_content().replace("\r\n", "\n")
    assert "https://app.example.com/#token=lt1.abc" in text.get_content()
    assert 'href="https://app.example.com/#token=lt1.abc"' in html.get_content()


async def test_the_envelope_and_the_headers_name_sender_and_recipient(mailer: Mailer, postbox: Postbox) -> None:
    await send(mailer)

    [mail] = postbox.taken
    assert (postbox.senders, postbox.recipients) == (["app@example.com"], ["ada@example.org"])
    assert (mail["From"], mail["To"]) == (str(Address(product.NAME, "app", "example.com")), "ada@example.org")
    assert mail["Subject"] == f"Set your password for {product.NAME}"


async def test_a_mail_says_that_a_program_wrote_it(mailer: Mailer, postbox: Postbox) -> None:
    await send(mailer)

    [mail] = postbox.taken
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["X-Auto-Response-Suppress"] == "All"
    assert mail["Date"] is not None


async def test_the_same_mail_sent_again_has_the_same_message_id(mailer: Mailer, postbox: Postbox) -> None:
    await send(mailer)
    await send(mailer)

    assert [mail["Message-ID"] for mail in postbox.taken] == ["<0198c0de@example.com>"] * 2


async def test_a_subject_that_is_not_ascii_arrives(postbox: Postbox) -> None:
    mailer = make_mailer(mail_settings(postbox.port, from_name="Überall GmbH"))

    await send(mailer)

    [mail] = postbox.taken
    assert mail["Subject"] == "Set your password for Überall GmbH"
    assert mail["From"] == "Überall GmbH <app@example.com>"


async def test_a_local_part_that_is_not_ascii_arrives_where_the_server_can(mailer: Mailer, postbox: Postbox) -> None:
    await send(mailer, to="jürgen@example.org")

    assert postbox.recipients == ["jürgen@example.org"]
    assert postbox.taken[0]["To"] == "jürgen@example.org"


async def test_a_local_part_that_is_not_ascii_is_refused_for_good_where_the_server_cannot() -> None:
    async with serving(Postbox()) as postbox:
        with pytest.raises(MailRefusedError, match="SMTPUTF8"):
            await send(make_mailer(mail_settings(postbox.port)), to="jürgen@example.org")

    assert postbox.taken == []


async def test_an_address_that_is_refused_for_good_is_dead_at_once(mailer: Mailer, postbox: Postbox) -> None:
    postbox.answers_to_recipient = ["550 5.1.1 <ada@example.org>: no such user"]

    with pytest.raises(MailRefusedError, match=r"550 5.1.1 <<address>>: no such user"):
        await send(mailer)

    assert postbox.taken == []


async def test_an_address_that_is_refused_for_now_is_for_later(mailer: Mailer, postbox: Postbox) -> None:
    postbox.answers_to_recipient = ["450 4.2.0 greylisted"]

    with pytest.raises(MailDelayedError, match=r"450 4.2.0 greylisted"):
        await send(mailer)
    await send(mailer)

    assert len(postbox.taken) == 1


async def test_a_message_that_is_refused_for_good_is_dead_at_once(mailer: Mailer, postbox: Postbox) -> None:
    postbox.answers = ["554 5.7.1 looks like spam"]

    with pytest.raises(MailRefusedError, match=r"554 5.7.1 looks like spam"):
        await send(mailer)


async def test_a_message_that_is_refused_for_now_is_for_later(mailer: Mailer, postbox: Postbox) -> None:
    postbox.answers = ["451 4.3.0 disk full"]

    with pytest.raises(MailDelayedError, match=r"451 4.3.0 disk full"):
        await send(mailer)


@pytest.mark.parametrize(
    ("answer", "outcome"), [(ACCEPTED, "delivered"), ("451 later", "delayed"), ("554 never", "refused")]
)
async def test_what_becomes_of_a_mail_is_counted(mailer: Mailer, postbox: Postbox, answer: str, outcome: str) -> None:
    labels = {"template": "set_password", "outcome": outcome}
    before = counted_so_far("mails_total", template="set_password"), counted_so_far("mails_total", **labels)
    postbox.answers.append(answer)

    with nullcontext() if outcome == "delivered" else pytest.raises(Exception, match=answer[:3]):
        await send(mailer)

    after = counted_so_far("mails_total", template="set_password"), counted_so_far("mails_total", **labels)
    assert after == (before[0] + 1, before[1] + 1)


async def test_a_sender_that_is_refused_waits_for_the_operator(mailer: Mailer, postbox: Postbox) -> None:
    postbox.answers_to_sender = ["550 5.7.1 app@example.com may not send here"]

    with pytest.raises(MailDelayedError, match="<address> may not send here"):
        await send(mailer)


async def test_a_server_that_is_down_is_for_later() -> None:
    async with serving(Postbox()) as postbox:
        pass

    with pytest.raises(MailDelayedError, match="Error connecting"):
        await send(make_mailer(mail_settings(postbox.port)))


async def test_a_server_that_says_nothing_is_for_later() -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        mailer = make_mailer(mail_settings(server.sockets[0].getsockname()[1], timeout="50ms"))

        with pytest.raises(MailDelayedError, match=r"[Tt]imed out"):
            await send(mailer)


async def test_a_connection_lost_after_the_mail_was_sent_is_for_later(mailer: Mailer, postbox: Postbox) -> None:
    postbox.before_answer = vanish
    with pytest.raises(MailDelayedError):
        await send(mailer)
    postbox.before_answer = lambda _connection: None
    await send(mailer)

    assert [mail["Message-ID"] for mail in postbox.taken] == ["<0198c0de@example.com>"] * 2


async def test_a_server_that_vanishes_after_accepting_has_the_mail() -> None:
    class Vanishing(Postbox):
        async def handle_QUIT(self, server: SMTP, _session: object, _envelope: object) -> str:  # noqa: N802
            vanish(server)
            return "221 Bye"

    async with serving(Vanishing()) as vanishing:
        await send(make_mailer(mail_settings(vanishing.port)))

    assert len(vanishing.taken) == 1


def vanish(connection: SMTP) -> None:
    assert isinstance(connection.transport, asyncio.Transport)
    connection.transport.abort()


async def test_starttls_is_used_where_it_is_offered(server_tls: ssl.SSLContext) -> None:
    async with serving(Postbox(), start_tls=server_tls) as postbox:
        await send(make_mailer(mail_settings(postbox.port)))

    assert postbox.were_encrypted == [True]


async def test_a_server_elsewhere_must_offer_starttls(postbox: Postbox) -> None:
    mailer = make_mailer(elsewhere(postbox.port))

    with pytest.raises(MailDelayedError, match=r"(?i)starttls"):
        await send(mailer)

    assert postbox.taken == []


async def test_a_server_elsewhere_must_show_a_certificate_that_somebody_vouches_for(
    server_tls: ssl.SSLContext,
) -> None:
    async with serving(Postbox(), start_tls=server_tls) as postbox:
        with pytest.raises(MailDelayedError, match="CERTIFICATE_VERIFY_FAILED"):
            await send(make_mailer(elsewhere(postbox.port)))

    assert postbox.taken == []


async def test_a_server_elsewhere_with_a_certificate_of_ours_is_believed(
    server_tls: ssl.SSLContext, certificate: Path
) -> None:
    async with serving(Postbox(), start_tls=server_tls) as postbox:
        await send(make_mailer(elsewhere(postbox.port, ca_file=certificate)))

    assert postbox.were_encrypted == [True]


async def test_plain_text_on_a_trusted_network_is_allowed_by_name(postbox: Postbox) -> None:
    await send(make_mailer(elsewhere(postbox.port, require_tls=False)))

    assert postbox.were_encrypted == [False]


def elsewhere(port: int, **settings: object) -> MailSettings:
    """Give settings that hold the server for one on another machine."""
    return Elsewhere.model_validate(mail_settings(port).model_dump() | settings)


class Elsewhere(MailSettings):
    @property
    @override
    def demands_tls(self) -> bool:
        return self.require_tls


async def test_tls_from_the_first_byte_is_spoken(server_tls: ssl.SSLContext, certificate: Path) -> None:
    async with serving(Postbox(), tls=server_tls) as postbox:
        await send(make_mailer(mail_settings(postbox.port, scheme="smtps", ca_file=certificate)))

    assert len(postbox.taken) == 1


async def test_tls_from_the_first_byte_checks_the_certificate(server_tls: ssl.SSLContext) -> None:
    async with serving(Postbox(), tls=server_tls) as postbox:
        with pytest.raises(MailDelayedError, match="CERTIFICATE_VERIFY_FAILED"):
            await send(make_mailer(mail_settings(postbox.port, scheme="smtps", require_tls=False)))

    assert postbox.taken == []


async def test_user_and_password_of_the_url_log_in(server_tls: ssl.SSLContext) -> None:
    postbox = Postbox()
    async with serving(postbox, start_tls=server_tls, authenticator=postbox.authenticate, auth_required=True):
        await send(make_mailer(mail_settings(postbox.port, user="app%40example.com:p%40ss@")))

    assert postbox.logins == ["app@example.com p@ss"]
    assert len(postbox.taken) == 1


async def test_a_refused_login_waits_for_the_operator(server_tls: ssl.SSLContext) -> None:
    postbox = Postbox()
    async with serving(postbox, start_tls=server_tls, authenticator=postbox.authenticate, auth_required=True):
        with pytest.raises(MailDelayedError, match="Authentication"):
            await send(make_mailer(mail_settings(postbox.port, user="app:wrong@")))


async def test_no_log_line_holds_the_address_or_the_link(mailer: Mailer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="app"):
        await send(mailer)

    records = [repr(record.__dict__) for record in caplog.records if record.name.startswith("app")]
    assert records
    assert not [record for record in records if "ada@" in record or "lt1." in record]
