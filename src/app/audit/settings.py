"""Settings of the audit log."""

from datetime import timedelta

from pydantic import Field

from app.core.config.groups import Duration, SettingsGroup


class AuditSettings(SettingsGroup):
    """The log of who did what."""

    keep: Duration = Field(
        default=timedelta(days=400),
        ge=timedelta(days=1),
        le=timedelta(days=36_500),
        description="How long an audit event is kept; older ones are deleted once a day.",
    )
