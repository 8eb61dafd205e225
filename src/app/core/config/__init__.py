"""Settings. Each is an environment variable: `APP_`, the group, two underscores and the name, such as `APP_AUTH__ISSUER`."""

from app.core.config.database import DatabaseSettings
from app.core.config.groups import SettingsGroup
from app.core.config.observability import LogSettings, TelemetrySettings
from app.core.config.security import HashingSettings, KeySettings, RateLimitSettings
from app.core.config.server import ServerSettings
from app.core.config.settings import PREFIX, SECRETS_DIR, Settings

__all__ = [
    "PREFIX",
    "SECRETS_DIR",
    "DatabaseSettings",
    "HashingSettings",
    "KeySettings",
    "LogSettings",
    "RateLimitSettings",
    "ServerSettings",
    "Settings",
    "SettingsGroup",
    "TelemetrySettings",
]
