"""The settings of core and of all features, as one model.

A setting is an environment variable, or a file of that name in `APP_SECRETS_DIR`. `DATABASE_URL` and `PORT` work too.
"""

from collections.abc import Iterator, Mapping
from functools import cache

from pydantic import BaseModel, create_model

from app import features
from app.core.config import Settings, SettingsGroup, loading
from app.core.config.settings import with_groups


@cache
def settings_model() -> type[Settings]:
    """Return a subclass of `Settings` that has a group for each feature with settings."""
    declared = {name: _group(vars(module), module.__name__) for name, module in features.parts("settings")}
    return with_groups(combined(declared))


def load_settings(**overrides: object) -> Settings:
    """Read the environment, and remove the variables of libpq from it. `ConfigurationError` lists all problems, without values."""
    return loading.load(settings_model(), overrides)


def variables() -> Iterator[tuple[str, str, type[BaseModel]]]:
    """Yield every setting as (environment variable, field name, the model that declares it)."""
    return loading.variables(settings_model())


def combined(declared: Mapping[str, type[SettingsGroup]]) -> dict[str, type[SettingsGroup]]:
    """Return the groups by feature. A group that inherits from the group of an earlier feature adds its settings to that one."""
    groups: dict[str, type[SettingsGroup]] = {}
    for name, group in declared.items():
        # The group itself is the last one that it is compared with.
        extended = next(earlier for earlier, base in declared.items() if issubclass(group, base))
        if extended in groups:
            base = groups[extended]
            groups[extended] = create_model(base.__name__, __base__=(group, base), __doc__=base.__doc__)
        else:
            groups[name] = group
    return groups


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
