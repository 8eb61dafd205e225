"""Settings for the audit log."""

from datetime import timedelta

from pydantic import Field

from app.core.config.groups import Duration, SettingsGroup


class AuditSettings(SettingsGroup):
    """Audit log."""

    keep: Duration = Field(default=timedelta(days=400), ge=timedelta(days=1), le=timedelta(days=36_500))
    """Age after which audit events are deleted. The deletion runs once a day."""
