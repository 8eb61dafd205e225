"""Messages, templates and the transports without a network."""

from email.headerregistry import Address
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateNotFound, UndefinedError

from app.core import product
from app.core.errors import PermanentError
from app.mail.mailer import Mailer, make_mailer
from app.mail.message import InvalidMessageError, Message
from app.mail.settings import MailSettings
from app.mail.transports import ConsoleTransport, FileTransport, MemoryTransport, SMTPTransport, make_transport
from tests.mail.conftest import send

SENDER = Address(product.NAME, "app", "example.com")


@pytest.fixture
def memory() -> MemoryTransport:
    return MemoryTransport()


@pytest.fixture
def mailer(memory: MemoryTransport) -> Mailer:
    return Mailer(memory, from_address="app@example.com", from_name=product.NAME)


def make_message(**changes: Any) -> Message:
    values = {"sender": SENDER, "to": "ada@example.org", "subject": "s", "text": "t", "message_id": "<1@example.com>"}
    return Message(**{**values, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"to": "ada@example.org\r\nBcc: eve@example.net"},
        {"to": "ada@example.org\nBcc: eve@example.net"},
        {"to": "ada@example.org, eve@example.net"},
        {"to": "Ada <ada@example.org>"},
        {"to": "ada"},
        {"to": "ada@"},
        {"to": "@example.org"},
        {"to": ""},
        {"to": "ada@example.org\u2028"},
        {"subject": "Hello\r\nBcc: eve@example.net"},
        {"subject": "Hello\x00"},
        {"subject": "Hello\x85Bcc: eve@example.net"},
        {"message_id": "<1@example.com>\r\nBcc: eve@example.net"},
        {"message_id": "1@example.com"},
        {"message_id": "<a/b@example.com>"},
        {"headers": {"X-Note": "a\r\nBcc: eve@example.net"}},
        {"headers": {"X-Note: a\r\nBcc": "eve@example.net"}},
    ],
)
def test_values_that_could_inject_a_header_are_refused_permanently(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessageError) as caught:
        make_message(**changes)

    assert isinstance(caught.value, PermanentError)
    assert "eve" not in str(caught.value)


def test_a_mail_without_html_is_plain_text() -> None:
    assert make_message().as_email().get_content_type() == "text/plain"


async def test_a_name_is_escaped_in_html(mailer: Mailer, memory: MemoryTransport) -> None:
    await send(mailer, name="<script>alert(1)</script>")

    [message] = memory.sent
    assert message.html is not None
    assert "<script>" not in message.html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in message.html
    assert "Hello <script>alert(1)</script>," in message.text


async def test_a_link_is_escaped_in_its_attribute(mailer: Mailer, memory: MemoryTransport) -> None:
    await send(mailer, link='https://app.example.com/" onmouseover="alert(1)')

    assert memory.sent[0].html is not None
    assert '" onmouseover="' not in memory.sent[0].html


async def test_a_name_cannot_add_paragraphs(mailer: Mailer, memory: MemoryTransport) -> None:
    await send(mailer, name="Ada\r\n\r\nYour account is locked:\u2028https://evil.example")

    assert "Hello Ada Your account is locked: https://evil.example,\n" in memory.sent[0].text


async def test_a_name_cannot_add_headers(memory: MemoryTransport, tmp_path: Path) -> None:
    (tmp_path / "hello.txt").write_text("Hello {{ name }}\n\nBody\n")
    mailer = Mailer(memory, from_address="app@example.com", from_name=product.NAME, templates=[tmp_path])

    await mailer.send("hello", to="ada@example.org", message_id="1", name="Ada\r\nBcc: eve@example.net")

    [message] = memory.sent
    email = message.as_email()
    assert email["Subject"] == "Hello Ada Bcc: eve@example.net"
    assert "Bcc" not in email
    assert message.text == "\nBody"


async def test_a_name_is_not_rendered_as_a_template(mailer: Mailer, memory: MemoryTransport) -> None:
    await send(mailer, name="{{ 7 * 7 }}{% include 'layout.txt' %}")

    assert "Hello {{ 7 * 7 }}{% include 'layout.txt' %}," in memory.sent[0].text


async def test_a_mail_without_a_name_has_a_general_greeting(mailer: Mailer, memory: MemoryTransport) -> None:
    await send(mailer, name=None)

    assert "Hello,\n" in memory.sent[0].text
    assert "None" not in memory.sent[0].text + str(memory.sent[0].html)


async def test_a_missing_template_variable_is_an_error(mailer: Mailer, memory: MemoryTransport) -> None:
    with pytest.raises(UndefinedError, match="expires_in"):
        await mailer.send("set_password", to="ada@example.org", message_id="1", name=None, link="https://x")

    assert memory.sent == []


async def test_a_template_may_have_no_html_part(memory: MemoryTransport, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("Note\nBody\n")
    mailer = Mailer(memory, from_address="app@example.com", from_name=product.NAME, templates=[tmp_path])

    await mailer.send("note", to="ada@example.org", message_id="1")

    assert memory.sent[0].html is None


async def test_a_missing_layout_is_an_error(memory: MemoryTransport, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("Note\nBody\n")
    (tmp_path / "note.html").write_text('{% extends "nowhere.html" %}')
    mailer = Mailer(memory, from_address="app@example.com", from_name=product.NAME, templates=[tmp_path])

    with pytest.raises(TemplateNotFound, match=r"nowhere\.html"):
        await mailer.send("note", to="ada@example.org", message_id="1")


@pytest.mark.parametrize(
    ("url", "transport"),
    [
        ("console:", ConsoleTransport),
        ("file:///var/mail%20box", FileTransport),
        ("smtp://mail.example.com", SMTPTransport),
        ("smtps://mail.example.com", SMTPTransport),
    ],
)
def test_the_url_selects_the_transport(url: str, transport: type) -> None:
    assert type(make_transport(MailSettings.model_validate({"url": url}))) is transport


async def test_the_file_transport_writes_each_mail_to_a_private_file_in_order(tmp_path: Path) -> None:
    directory = tmp_path / "mail box"
    mailer = make_mailer(MailSettings.model_validate({"url": f"file://{str(directory).replace(' ', '%20')}"}))

    await send(mailer, message_id="first")
    await send(mailer, message_id="second")

    first, second = sorted(directory.iterdir())
    assert first.name.endswith("-first@localhost.eml")
    assert second.name.endswith("-second@localhost.eml")
    assert first.stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    assert b"To: ada@example.org" in first.read_bytes()


async def test_a_long_link_stays_on_one_line_of_the_file(tmp_path: Path) -> None:
    link = f"https://app.example.com/account/set-password#token=lt1.{'a' * 90}"

    await send(make_mailer(MailSettings.model_validate({"url": f"file://{tmp_path}"})), link=link, name="Jürgen")

    lines = only_file(tmp_path).read_text().splitlines()
    assert link in lines
    assert "Hello Jürgen," in lines


def only_file(directory: Path) -> Path:
    [path] = directory.iterdir()
    return path


async def test_the_console_shows_the_text_of_the_mail(capsys: pytest.CaptureFixture[str]) -> None:
    await send(make_mailer(MailSettings()))

    shown = capsys.readouterr().out
    assert f"To: ada@example.org\nSubject: Set your password for {product.NAME}\n" in shown
    assert "https://app.example.com/#token=lt1.abc" in shown
