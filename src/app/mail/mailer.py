"""Renders a mail from its template and delivers it. Jobs use this module."""

import logging
from collections.abc import Sequence
from email.headerregistry import Address
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateNotFound, select_autoescape

from app import features
from app.core.errors import PermanentError
from app.core.observability.metrics import Counter
from app.mail.message import Message, parse_address
from app.mail.settings import MailSettings
from app.mail.transports import Transport, make_transport

_MAILS = Counter("mails", "Mails, by template and outcome.", template=(), outcome=())

log = logging.getLogger(__name__)


class Mailer:
    """Renders templates and passes the mails to a transport. It has no state, so one instance serves the whole process."""

    def __init__(
        self, transport: Transport, *, from_address: str, from_name: str, templates: Sequence[Path] = ()
    ) -> None:
        self.transport = transport
        self._application = from_name
        address = parse_address(from_address)
        self._sender = Address(from_name, address.username, address.domain)
        self._templates = _Templates(templates or tuple(features.templates()))

    async def send(self, template: str, *, to: str, message_id: str, **context: str | None) -> None:
        """Render a mail and deliver it. Return when the transport has accepted it.

        `message_id` is the part before the `@`. Pass the same one for each attempt, so that mail programs can recognise a
        mail that was delivered twice. Every template can use `application`, which is the sender's name.
        """
        facts = {name: _one_line(value) for name, value in {"application": self._application, **context}.items()}
        subject, text, html = self._templates.render(template, facts)
        message = Message(
            sender=self._sender,
            to=to,
            subject=subject,
            text=text,
            html=html,
            message_id=f"<{message_id}@{self._sender.domain}>",
        )
        try:
            await self.transport.deliver(message)
        except Exception as error:
            _MAILS.count(template, "refused" if isinstance(error, PermanentError) else "delayed")
            raise
        _MAILS.count(template, "delivered")
        log.info("mail delivered", extra={"template": template, "message_id": message.message_id})


def make_mailer(settings: MailSettings) -> Mailer:
    return Mailer(make_transport(settings), from_address=settings.from_address, from_name=settings.from_name)


class _Templates:
    """Loads `<name>.txt`, whose first line is the subject, and `<name>.html` if it exists."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self._loader = FileSystemLoader(directories)
        self._environment = Environment(
            loader=self._loader,
            undefined=StrictUndefined,
            autoescape=select_autoescape(["html"], default_for_string=False),
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def render(self, name: str, facts: dict[str, str | None]) -> tuple[str, str, str | None]:
        # Split before rendering, so that no value can move text from the subject to the body.
        source, _, _ = self._loader.get_source(self._environment, f"{name}.txt")
        subject, _, body = source.partition("\n")
        rendered = [self._environment.from_string(part).render(facts) for part in (subject, body)]
        return _one_line(rendered[0]) or "", rendered[1], self._html(name, facts)

    def _html(self, name: str, facts: dict[str, str | None]) -> str | None:
        try:
            return self._environment.get_template(f"{name}.html").render(facts)
        except TemplateNotFound as error:
            if error.name != f"{name}.html":
                raise
            return None


def _one_line(value: str | None) -> str | None:
    # With its line breaks, a user's name could add paragraphs to the mail.
    return None if value is None else " ".join(value.split())
