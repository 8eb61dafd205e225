"""Settings of the HTTP server."""

import re
from collections.abc import Iterator
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, override

from pydantic import AnyHttpUrl, BeforeValidator, Field
from pydantic_settings import NoDecode

from app.core.config.groups import Duration, Pause, SettingsGroup, refuse

_ORIGIN = re.compile(r"\*|https?://[^\s/?#@,]+")


def _parse_origins(value: object) -> object:
    origins = tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value
    if isinstance(origins, tuple | list) and not all(_ORIGIN.fullmatch(str(origin)) for origin in origins):
        refuse("write origins as https://host, separated by commas")
    return origins


class ServerSettings(SettingsGroup):
    """The HTTP server."""

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; `PORT` works too. 0 takes any free one."
    )
    public_url: AnyHttpUrl | None = Field(
        default=None,
        description="Where clients reach this service, never taken from a request. Unset: `http://127.0.0.1:$PORT`; "
        "production wants an `https://` address.",
    )
    docs: bool | None = Field(
        default=None, description="Serve `/docs` and `/openapi.json`. Unset: everywhere but in production."
    )
    max_body_size: int = Field(default=1_048_576, ge=1024, description="Largest request body, in bytes.")
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_parse_origins)] = Field(
        default=(),
        description="Origins of browser applications that may call this API, separated by commas: "
        "`https://app.example.com,https://admin.example.com`.",
    )
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(),
        description='Networks of the proxies in front, as JSON: `["10.0.0.0/8"]`. Only from these is `X-Forwarded-For` believed. '
        "Without it, the limits on wrong logins take everybody behind a proxy for one client.",
    )
    workers: int = Field(
        default=1, ge=1, le=128, description="Processes that share the port; `app serve --workers` wins over it."
    )
    drain_delay: Pause | None = Field(
        default=None,
        description="How long SIGTERM leaves the server open: `/readyz` fails and each answer ends its connection, so that whoever "
        "directs traffic here can notice. Unset: 5s in production, none elsewhere.",
    )
    shutdown_grace: Duration = Field(
        default=timedelta(seconds=15),
        description="How long running requests may take to finish once nothing new is accepted; then they get 503.",
    )
    max_connections: int = Field(
        default=4096,
        ge=16,
        le=1_000_000,
        description="Connections that a process may have. One more closes one that waits for a request, or is refused.",
    )
    header_timeout: Duration = Field(
        default=timedelta(seconds=10),
        description="Longest time for the head of a request, also for the first on a new connection to begin.",
    )
    body_timeout: Duration = Field(
        default=timedelta(seconds=30), description="Longest time for a body to arrive, from the end of the head."
    )
    read_timeout: Duration = Field(default=timedelta(seconds=10), description="Longest silence while a body arrives.")
    write_timeout: Duration = Field(
        default=timedelta(seconds=30), description="How long a client may leave an answer unread that waits to be sent."
    )
    keep_alive: Duration = Field(
        default=timedelta(seconds=75),
        description="How long a connection may wait for its next request. Let it be longer than what the proxy in front has.",
    )

    @override
    def unsafe_in_production(self) -> Iterator[str]:
        if self.public_url is None or self.public_url.scheme != "https":
            yield "APP_SERVER__PUBLIC_URL: must be the https:// address that clients use"
        if "*" in self.cors_origins:
            yield "APP_SERVER__CORS_ORIGINS: name the origins; * lets every web site call this API"
