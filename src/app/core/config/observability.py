"""Settings for logs and metrics."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Literal, override

from pydantic import Field

from app.core.config.groups import Duration, SettingsGroup


class TelemetrySettings(SettingsGroup):
    """Metrics."""

    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port for `/metrics`. It must not be the port of the API. 0 chooses a free port. Unset: metrics are not exposed."""
    metrics_host: str = "127.0.0.1"
    """Address on which metrics are exposed. Metrics reveal operations and traffic, so only the scraper should reach it."""


class LogSettings(SettingsGroup):
    """The log on standard output."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is written."""
    format: Literal["json", "console"] | None = None
    """Format of a line: one JSON object, or readable text. Unset: `console` if the environment is `local`, otherwise `json`."""
    slow_request: Duration = timedelta(seconds=1)
    """Duration above which the log line of a request is a warning with `slow`."""
    slow_query: Duration = timedelta(milliseconds=500)
    """Duration above which a SQL statement is logged as a warning, with its text but without its values."""
    sampled_routes: tuple[str, ...] = ("/livez", "/readyz")
    """Routes with very frequent requests, as JSON: `["/livez"]`. Only some of their successful requests are logged."""
    sample_every: int = Field(default=100, ge=1)
    """One in this many successful requests to these routes is logged. 1 logs all."""

    @override
    def unsafe_in_production(self) -> Iterator[str]:
        if self.level == "debug":
            yield "APP_LOG__LEVEL: debug is not allowed in production; use info"
