"""Settings for the HTTP server."""

import re
from collections.abc import Iterator
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, override

from pydantic import AfterValidator, AnyHttpUrl, Field

from app.core.config.groups import Duration, Listed, Pause, SettingsGroup, refuse

_HEADER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)*/?")
_ORIGIN = re.compile(r"\*|https?://[^\s/?#@,]+")


def _check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse an origin that is neither `*` nor `http(s)://host`, optionally with a port."""
    if not all(map(_ORIGIN.fullmatch, origins)):
        refuse("write origins as https://host, separated by commas")
    return origins


def _check_headers(names: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse what is no name of a header. A wildcard would not cover `Authorization`."""
    if not all(map(_HEADER.fullmatch, names)):
        refuse("write names of headers as X-Tenant, separated by commas")
    return names


def _check_public_url(url: AnyHttpUrl | None) -> AnyHttpUrl | None:
    if url is not None and (url.query or url.fragment or not _PATH.fullmatch(url.path or "")):
        refuse("write https://host or https://host/path, where the path has only letters, digits and - . _ ~")
    return url


class ServerSettings(SettingsGroup):
    """The HTTP server."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on. `PORT` works too. 0 chooses a free port."""
    public_url: Annotated[AnyHttpUrl | None, AfterValidator(_check_public_url)] = None
    """Address at which clients reach this service. It is never taken from a request. Production needs an `https://`
    address. Unset: `http://127.0.0.1:$PORT`. With a path, such as `https://example.com/bed`, all links are below this path,
    whether or not the proxy removes it."""
    docs: bool | None = None
    """Serve `/docs` and `/openapi.json`. Unset: everywhere except in production."""
    max_body_size: int = Field(default=1_048_576, ge=1024)
    """Maximum size of a request body, in bytes. An operation may declare another one."""
    cors_origins: Annotated[Listed[str], AfterValidator(_check_origins)] = ()
    """Origins of the browser applications that may call this API, separated by commas:
    `https://app.example.com,https://admin.example.com`."""
    cors_headers: Annotated[Listed[str], AfterValidator(_check_headers)] = ()
    """Request headers of your own that these applications may send, separated by commas: `X-Tenant,Idempotency-Key`. Those
    of this API and of tracing libraries (`traceparent`, `tracestate`, `baggage`, `sentry-trace`) are always allowed."""
    trusted_proxies: Listed[IPv4Network | IPv6Network] = ()
    """Networks of the reverse proxies, separated by commas: `10.0.0.0/8,192.0.2.1/32`. `X-Forwarded-For` is trusted only
    from these. Without this setting, all clients behind a proxy share the limit on failed logins."""
    workers: int = Field(default=1, ge=1, le=128)
    """Number of worker processes that share the port. `app serve --workers` takes precedence."""
    drain_delay: Pause | None = None
    """Time after SIGTERM in which the server still accepts requests. `/readyz` fails and each response closes its
    connection, so that load balancers stop sending requests. Unset: 5s in production, otherwise 0."""
    shutdown_grace: Duration = timedelta(seconds=15)
    """Time for running requests to finish after the server stops accepting connections. The others then get 503."""
    max_connections: int = Field(default=4096, ge=16, le=1_000_000)
    """Maximum number of connections of a process. A further connection replaces an idle one; if none is idle, it gets 503."""
    header_timeout: Duration = timedelta(seconds=10)
    """Maximum time to receive the request line and the headers. It also limits the wait for the first request of a new
    connection."""
    body_timeout: Duration = timedelta(seconds=30)
    """Maximum time to receive a body, counted from the end of the headers. An operation may declare another one."""
    read_timeout: Duration = timedelta(seconds=10)
    """Maximum time without new data while a body is received."""
    write_timeout: Duration = timedelta(seconds=30)
    """Maximum time that the send buffer stays full because the client does not read the response."""
    keep_alive: Duration = timedelta(seconds=75)
    """Maximum idle time of a connection between two requests. It should be longer than the idle timeout of the proxy."""
    max_sockets: int = Field(default=1024, ge=0, le=1_000_000)
    """Maximum number of WebSockets of a process. A further one gets 503. They also count as connections, of which `app serve`
    leaves half to requests."""
    max_message_size: int = Field(default=65_536, ge=1, le=16_777_216)
    """Maximum size of a message that a WebSocket receives, in bytes. A larger one closes it."""
    max_frames_per_second: int = Field(default=100, ge=10)
    """Number of frames that the server reads from a WebSocket in a second: of messages, of their parts, and pings. Further ones
    wait."""
    ping_interval: Duration = timedelta(seconds=20)
    """Time between two pings to the client of a WebSocket. If nothing has arrived from it since the last one, it is closed."""

    @property
    def path_prefix(self) -> str:
        """The path of the public URL, without a slash at its end."""
        return (self.public_url.path or "").rstrip("/") if self.public_url else ""

    @override
    def unsafe_in_production(self) -> Iterator[str]:
        if self.public_url is None or self.public_url.scheme != "https":
            yield "APP_SERVER__PUBLIC_URL: must be the https:// address that clients use"
        if "*" in self.cors_origins:
            yield "APP_SERVER__CORS_ORIGINS: list the origins; * lets every web site call this API"
