"""The settings of core. `app.settings` adds the settings of each feature."""

import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Literal, override
from urllib.parse import urlsplit

from pydantic import create_model
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from app.core.config.database import DatabaseSettings
from app.core.config.groups import SettingsGroup
from app.core.config.observability import LogSettings, TelemetrySettings
from app.core.config.security import RateLimitSettings
from app.core.config.server import ServerSettings

PREFIX = "APP_"
SECRETS_DIR = "APP_SECRETS_DIR"
# Variables that hosting platforms set.
_PLATFORM_VARIABLES = {"DATABASE_URL": ("database", "url"), "PORT": ("server", "port")}
# No input may hold the event loop for longer (docs/input.md).
_SLOW_CALLBACK = timedelta(milliseconds=20)


class Settings(BaseSettings):
    """All settings. They are frozen: no value changes while the process runs."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        nested_model_default_partial_update=True,
    )

    environment: Literal["local", "test", "production"] = "production"
    """`production` refuses unsafe settings. `make run` uses `local`, the tests use `test`."""
    server: ServerSettings = ServerSettings()
    database: DatabaseSettings
    rate_limit: RateLimitSettings = RateLimitSettings()
    log: LogSettings = LogSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @override
    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources = [init_settings, env_settings, InitSettingsSource(settings_cls, _from_platform())]
        if secrets_dir():
            sources.append(
                NestedSecretsSettingsSource(file_secret_settings, secrets_prefix=PREFIX, secrets_nested_delimiter="__")
            )
        return tuple(sources)

    @property
    def is_production(self) -> bool:
        """Whether unsafe settings are refused."""
        return self.environment == "production"

    @property
    def slow_callback(self) -> timedelta | None:
        """How long code may hold the event loop before it is reported; None if nothing is reported."""
        return self.log.slow_callback or (_SLOW_CALLBACK if self.environment == "local" else None)

    @property
    def serves_docs(self) -> bool:
        """Whether `/docs` and `/openapi.json` exist."""
        return not self.is_production if self.server.docs is None else self.server.docs

    @property
    def drain_delay(self) -> timedelta:
        """Time after SIGTERM in which the server still accepts requests. The default depends on the environment."""
        default = timedelta(seconds=5 if self.is_production else 0)
        return default if self.server.drain_delay is None else self.server.drain_delay

    @property
    def public_url(self) -> str:
        """Address at which clients reach this service, without a slash at the end."""
        return str(self.server.public_url or f"http://127.0.0.1:{self.server.port}").rstrip("/")

    @property
    def trusted_origins(self) -> frozenset[str]:
        """Origins whose pages belong to this service: its own, and those in `APP_SERVER__CORS_ORIGINS`, but never `*`."""
        own = urlsplit(self.public_url)
        return frozenset({f"{own.scheme}://{own.netloc}", *self.server.cors_origins} - {"*"})

    def of[T: SettingsGroup](self, group: type[T]) -> T:
        """Return the group of this class, or the group that inherits from it. `KeyError` if there is none.

        `settings.of(AuthSettings)` returns the settings of auth. `settings.of(KeySettings)` returns the group with the key settings.
        """
        found: T = getattr(self, _fields(type(self))[group])
        return found

    def unsafe_in_production(self) -> Iterator[str]:
        """Yield each value that production refuses, as `VARIABLE: what to do`; nothing in other environments."""
        if self.is_production:
            for _, name in groups(type(self)):
                yield from getattr(self, name).unsafe_in_production()


def _from_platform() -> dict[str, Any]:
    return {
        group: {name: os.environ[variable]}
        for variable, (group, name) in _PLATFORM_VARIABLES.items()
        if os.environ.get(variable)
    }


@cache
def _fields(model: type[Settings]) -> dict[type[SettingsGroup], str]:
    return {base: name for group, name in groups(model) for base in group.__mro__ if issubclass(base, SettingsGroup)}


def groups(model: type[Settings]) -> Iterator[tuple[type[SettingsGroup], str]]:
    """Yield the groups of a model, each with the field that holds it."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, SettingsGroup):
            yield field.annotation, name


def with_groups(features: Mapping[str, type[SettingsGroup]]) -> type[Settings]:
    """Return a settings model with the groups of the features, each under the name of its feature."""
    if taken := features.keys() & Settings.model_fields.keys():
        raise ValueError(
            f"core already has a group of settings with this name: {', '.join(sorted(taken))}; rename the feature"
        )
    fields: dict[str, Any] = {name: (group, _default(group)) for name, group in features.items()}
    return create_model("Settings", __base__=Settings, __doc__=Settings.__doc__, **fields)


def _default(group: type[SettingsGroup]) -> object:
    # `...` declares a field without a default.
    return ... if any(field.is_required() for field in group.model_fields.values()) else group()


def secrets_dir() -> str | None:
    """Return the directory with one file per setting, or None if it is not set or missing."""
    directory = os.environ.get(SECRETS_DIR)
    return directory if directory and Path(directory).is_dir() else None
