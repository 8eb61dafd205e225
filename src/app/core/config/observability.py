"""Settings for logs and metrics."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Literal, override

from pydantic import BeforeValidator, Field

from app.core.config.groups import Duration, Listed, SettingsGroup, lower


class TelemetrySettings(SettingsGroup):
    """Metrics."""

    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port for `/metrics`. It must not be the port of the API. 0 chooses a free port. Unset: metrics are not exposed."""
    metrics_host: str = "127.0.0.1"
    """Address on which metrics are exposed. Metrics reveal operations and traffic, so only the scraper should reach it."""


class LogSettings(SettingsGroup):
    """The log on standard output."""

    level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(lower)] = "info"
    """Lowest level that is written."""
    format: Annotated[Literal["json", "console"] | None, BeforeValidator(lower)] = None
    """Format of a line: one JSON object, or readable text. Unset: `console` if the environment is `local`, otherwise `json`."""
    slow_request: Duration = timedelta(seconds=1)
    """Duration above which the log line of a request is a warning with `slow`."""
    slow_query: Duration = timedelta(milliseconds=500)
    """Duration above which a SQL statement is logged as a warning, with its text but without its values."""
    slow_callback: Duration | None = None
    """Time for which code may hold the event loop; longer is logged as a warning with its stack. Unset: 20 ms if the environment
    is `local`, otherwise nothing is logged. It is meant for development: it costs half a percent of a CPU."""
    sampled_routes: Listed[str] = ("/livez", "/readyz")
    """Routes with very frequent requests, separated by commas: `/livez,/readyz`. Only some of their successful requests are logged."""
    sample_every: int = Field(default=100, ge=1)
    """One in this many successful requests to these routes is logged. 1 logs all."""

    @override
    def unsafe_in_production(self) -> Iterator[str]:
        if self.level == "debug":
            yield "APP_LOG__LEVEL: debug is not allowed in production; use info"
