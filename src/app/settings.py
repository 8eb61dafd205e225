"""The settings of core and of all features, as one model.

A setting is an environment variable, or a file of that name in `APP_SECRETS_DIR`. `DATABASE_URL` and `PORT` work too.
"""

from collections.abc import Iterator, Mapping
from functools import cache

from pydantic import BaseModel

from app import features
from app.core.config import Settings, SettingsGroup, loading
from app.core.config.settings import with_groups


@cache
def settings_model() -> type[Settings]:
    """Return a subclass of `Settings` that has a group for each feature with settings."""
    return with_groups({name: _group(vars(module), module.__name__) for name, module in features.parts("settings")})


def load_settings(**overrides: object) -> Settings:
    """Read the environment, and remove the variables of libpq from it. `ConfigurationError` lists all problems, without values."""
    return loading.load(settings_model(), overrides)


def variables() -> Iterator[tuple[str, str, type[BaseModel]]]:
    """Yield every setting as (environment variable, field name, the model that declares it)."""
    return loading.variables(settings_model())


def _group(members: Mapping[str, object], module: str) -> type[SettingsGroup]:
    found = [
        member
        for member in members.values()
        if isinstance(member, type) and issubclass(member, SettingsGroup) and member.__module__ == module
    ]
    if len(found) != 1:
        message = f"{module} must declare exactly one subclass of SettingsGroup, not {len(found)}"
        raise TypeError(message)
    return found[0]
