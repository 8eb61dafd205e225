"""Reads the settings and reports all problems in one error."""

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import SettingsError

from app.core.config.settings import PREFIX, SECRETS_DIR, Settings, groups, secrets_dir
from app.core.environment import forget_libpq, kubernetes_variables
from app.core.errors import ConfigurationError

_SAFE_URL = "postgresql://user@host/name?ssl=verify-full"
# The names that hosting platforms set. The long names take precedence.
_PLAIN_NAMES = {"APP_DATABASE__URL": "DATABASE_URL", "APP_SERVER__PORT": "PORT"}


def load(model: type[Settings], overrides: Mapping[str, object]) -> Settings:
    """Read the settings from the environment. `ConfigurationError` lists all problems, without the values.

    Variables of libpq, such as `PGSSLMODE`, are removed from the environment.
    """
    forget_libpq()
    problems: list[str] = []
    settings = None
    try:
        settings = model(_secrets_dir=secrets_dir(), **overrides)  # type: ignore[call-arg,arg-type]  # By name.
        problems += [*_unknown_variables(model, os.environ), *settings.unsafe_in_production()]
    except ValidationError as error:
        problems += _problems_of(model, error, overrides)
    except SettingsError as error:
        problems += [*_unknown_variables(model, os.environ), *(_invalid_groups(model) or [str(error)])]
    except (OSError, UnicodeDecodeError):
        problems.append(f"{SECRETS_DIR}: a file in it cannot be read as UTF-8 text")
    if (directory := os.environ.get(SECRETS_DIR)) and not Path(directory).is_dir():
        problems.append(f"{SECRETS_DIR}: there is no such directory")
    if settings is None or problems:
        raise ConfigurationError(
            "\n".join(["The settings cannot be used:", *(f"  - {problem}" for problem in problems)])
        )
    return settings


def _problems_of(model: type[Settings], error: ValidationError, overrides: Mapping[str, object]) -> Iterator[str]:
    """Yield a problem for each unknown, invalid or unsafe setting."""
    errors = error.errors(include_input=False)
    invalid = {variable: _reason(entry) for entry in errors for variable in _variables_of(model, entry)}
    unknown = list(_unknown_variables(model, os.environ))
    # An unknown variable of a group is also invalid. It is reported once, with the closest name.
    reported = {problem.split(":")[0] for problem in unknown}
    yield from unknown
    yield from (f"{variable}: {reason}" for variable, reason in invalid.items() if variable not in reported)
    valid_settings = _build_without(model, overrides, [entry["loc"] for entry in errors])
    unsafe = valid_settings.unsafe_in_production() if valid_settings else ()
    yield from (problem for problem in unsafe if problem.split(":")[0] not in invalid)


def _build_without(
    model: type[Settings], overrides: Mapping[str, object], invalid: list[tuple[int | str, ...]]
) -> Settings | None:
    """Build the settings without the invalid ones, so that the error can list the unsafe ones too."""

    class ValidSettings(model):  # type: ignore[valid-type,misc]  # A class created at run time.
        @model_validator(mode="before")
        @classmethod
        def _remove_invalid(cls, values: dict[str, Any]) -> dict[str, Any]:
            """Remove each invalid member of a group. If a whole group is invalid, remove all of its members."""
            for group, *rest in invalid:
                members = values.pop(str(group), {}) if rest else {}
                values[str(group)] = {name: value for name, value in members.items() if name != rest[0]}
            # The URL is required. If it was removed, a safe one takes its place.
            return {**values, "database": {"url": _SAFE_URL, **values["database"]}}

    if ("environment",) in invalid:
        # The environment decides which settings are unsafe.
        return None
    try:
        return ValidSettings(_secrets_dir=secrets_dir(), **overrides)
    except ValidationError:
        # A feature has a required setting that is missing.
        return None


def variables(model: type[Settings]) -> Iterator[tuple[str, str, type[BaseModel]]]:
    """Yield every setting as (environment variable, field name, the model that declares it)."""
    members = {name: group for group, name in groups(model)}
    for name in model.model_fields:
        if group := members.get(name):
            yield from ((f"{PREFIX}{name}__{inner}".upper(), inner, group) for inner in group.model_fields)
        else:
            yield f"{PREFIX}{name}".upper(), name, model


def _invalid_groups(model: type[Settings]) -> list[str]:
    """Return a problem for each variable of a whole group that is not JSON. The error of pydantic-settings names no variable."""
    names = (f"{PREFIX}{name}".upper() for _, name in groups(model))
    return [f"{name}: write a JSON object" for name in names if name in os.environ and not _is_json(os.environ[name])]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _variables_of(model: type[Settings], error: ErrorDetails) -> list[str]:
    """Return the variables of the error. For a missing group, these are its required settings."""
    location = error["loc"]
    group = {name: group for group, name in groups(model)}.get(str(location[0]))
    if group is None or len(location) > 1 or error["type"] != "missing":
        return [_variable(location)]
    required = [name for name, field in group.model_fields.items() if field.is_required()]
    return [_variable((location[0], name)) for name in required]


def _variable(location: tuple[int | str, ...]) -> str:
    if location == ("database",):
        # The only check across the settings of this group is about the URL.
        return "DATABASE_URL"
    name = (PREFIX + "__".join(str(part) for part in location[:2])).upper()
    return name if name in os.environ else _PLAIN_NAMES.get(name, name)


def _reason(error: ErrorDetails) -> str:
    if error["type"] == "missing":
        return "is missing"
    if error["type"] == "extra_forbidden":
        return "there is no such setting"
    return error["msg"].removeprefix("Value error, ")


def _unknown_variables(model: type[Settings], environment: Mapping[str, str]) -> Iterator[str]:
    known = {name for name, _, _ in variables(model)} | {SECRETS_DIR} | kubernetes_variables(environment)
    for name in sorted(environment):
        # A whole group may be given as one JSON object (APP_AUTH='{…}').
        if name.startswith(PREFIX) and name not in known and not any(key.startswith(f"{name}__") for key in known):
            near = difflib.get_close_matches(name, known, n=1)
            yield f"{name}: there is no such setting" + (f"; did you mean {near[0]}?" if near else "")
