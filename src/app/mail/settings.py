"""Settings for outgoing mail."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import override
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, field_validator

from app.core import product
from app.core.config import Settings
from app.core.config.groups import Duration, SettingsGroup, is_loopback, refuse

# ASCII without quotes, comments or a display name: the header and the envelope then have the same spelling.
_MAILBOX = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*"
)


class MailSettings(SettingsGroup):
    """Outgoing mail."""

    url: SecretStr = SecretStr("console:")
    """`smtp://user:password@host:587` (STARTTLS), `smtps://host`, `file:///directory` (one `.eml` file per mail) or
    `console:`. Percent-encode special characters of the password: `%40` for `@`."""
    from_address: str = Field(default="no-reply@localhost", max_length=254)
    """Sender of all mail. Production requires it."""
    from_name: str = Field(default=product.NAME, min_length=1, max_length=100)
    """Name of the sender. The text of mails uses it as the name of the application."""
    timeout: Duration = timedelta(seconds=20)
    """Maximum wait for each response of the mail server."""
    require_tls: bool = True
    """Refuse to send mail without TLS, except to a server on this machine. Turn it off only on a trusted network: TLS
    is then used if the server offers it, and its certificate is not checked."""
    ca_file: Path | None = None
    """File of CA certificates (PEM) to trust instead of those of the system, for a private CA."""
    special_use_domains: bool | None = None
    """Accept addresses in domains for private networks and development: `.local`, `.localhost`, `.test`. Unset:
    everywhere except in production. Turn it on there if your mail server delivers to such a domain."""
    allow_undelivered: bool = False
    """Accept `console:` and `file:` in production. They deliver no mail to its recipient."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: SecretStr) -> SecretStr:
        try:
            url = urlsplit(value.get_secret_value())
            is_usable = {
                "smtp": bool(url.hostname) and url.port != 0,
                "smtps": bool(url.hostname) and url.port != 0,
                "file": not url.netloc and len(url.path) > 1,
                "console": not url.netloc and not url.path,
            }.get(url.scheme, False)
        except ValueError:
            is_usable = False
        if not is_usable:
            refuse("write it as smtp://user:password@host:587, smtps://host, file:///directory or console:")
        return value

    @field_validator("from_address")
    @classmethod
    def _check_address(cls, value: str) -> str:
        if not _MAILBOX.fullmatch(value):
            refuse("write it as name@example.com")
        return value

    @field_validator("from_name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not value.isprintable():
            refuse("contains an unprintable character; remove it")
        return value

    @property
    def delivers(self) -> bool:
        return urlsplit(self.url.get_secret_value()).scheme in {"smtp", "smtps"}

    @property
    def directory(self) -> Path | None:
        """The directory that mails are written to, with `file:`."""
        url = urlsplit(self.url.get_secret_value())
        return Path(unquote(url.path)) if url.scheme == "file" else None

    @property
    def demands_tls(self) -> bool:
        """Whether an unencrypted connection is refused."""
        url = urlsplit(self.url.get_secret_value())
        return url.scheme == "smtps" or (self.require_tls and not is_loopback(url.hostname or ""))

    @override
    def unsafe_in_production(self) -> Iterator[str]:
        if not self.delivers and not self.allow_undelivered:
            yield "APP_MAIL__URL: must be smtp:// or smtps://, or set APP_MAIL__ALLOW_UNDELIVERED=true"
        if self.delivers and self.from_address.endswith("@localhost"):
            yield "APP_MAIL__FROM_ADDRESS: is missing; set an address of your domain"


def accepts_special_use_domains(settings: Settings) -> bool:
    """Whether accounts may have addresses in domains for special use. The default depends on the environment."""
    accepted = settings.of(MailSettings).special_use_domains
    return not settings.is_production if accepted is None else accepted
