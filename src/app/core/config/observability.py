"""Settings of logs and metrics."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Literal, override

from pydantic import Field

from app.core.config.groups import Duration, SettingsGroup


class TelemetrySettings(SettingsGroup):
    """What the program tells of itself beyond its log."""

    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port for `/metrics`, never that of the API; 0 takes any free one. Unset: metrics are not exposed.",
    )
    metrics_host: str = Field(
        default="127.0.0.1",
        description="Address to expose metrics on. They name operations and volumes: open it to the scraper alone.",
    )


class LogSettings(SettingsGroup):
    """What is written to standard output."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least severity written.")
    format: Literal["json", "console"] | None = Field(
        default=None, description="Unset: readable lines in local, one JSON object a line elsewhere."
    )
    slow_request: Duration = Field(
        default=timedelta(seconds=1),
        description="A request that takes longer has `slow` in its line, which is then a warning.",
    )
    slow_query: Duration = Field(
        default=timedelta(milliseconds=500),
        description="A statement that takes longer is a warning with its text, without the values.",
    )
    sampled_routes: tuple[str, ...] = Field(
        default=("/livez", "/readyz"),
        description='Routes that are asked all the time, as JSON: `["/livez"]`. Of what goes well there, only some lines are '
        "written.",
    )
    sample_every: int = Field(
        default=100, ge=1, description="Of such requests one in this many is written; 1 writes every one."
    )

    @override
    def unsafe_in_production(self) -> Iterator[str]:
        if self.level == "debug":
            yield "APP_LOG__LEVEL: debug is not for production"
