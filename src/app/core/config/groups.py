"""Base class and field types for groups of settings."""

import ipaddress
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_settings import NoDecode

_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|)")
_DURATION_FORM = "write a duration as seconds or with a unit: 90, 500ms, 30s, 10m, 24h, 14d"


class SettingsGroup(BaseModel):
    """Settings that share a prefix. A feature declares one subclass in its `settings.py`. The prefix is the name of its folder.

    A subclass of the group of an earlier feature adds settings to that group, with the prefix of the earlier feature.
    """

    # The string below a field is its description in docs/configuration.md.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def unsafe_in_production(self) -> Iterator[str]:
        """Yield each value that production refuses, as `VARIABLE: what to do`."""
        yield from ()


def refuse(message: str) -> NoReturn:
    """Fail the validation of a setting. The message says what to write."""
    raise ValueError(message)


def parse_duration(value: object) -> object:
    """Convert a number of seconds, or a text such as `30s`, to a `timedelta`. Other types are left for pydantic to check."""
    try:
        if isinstance(value, int | float):
            return timedelta(seconds=value)
        if not isinstance(value, str):
            return value
        match = _DURATION.fullmatch(value.strip())
        return timedelta(seconds=float(match[1]) * _UNITS[match[2]]) if match else refuse(_DURATION_FORM)
    except OverflowError:
        return refuse(_DURATION_FORM)


# `Pause` allows zero, `Duration` does not, and `Timeout` is a `Duration` that PostgreSQL can enforce. They are plain assignments,
# because pydantic puts the annotations of a `type` alias into a schema of their own.
Pause = Annotated[timedelta, BeforeValidator(parse_duration), Field(ge=timedelta(0))]
Duration = Annotated[timedelta, BeforeValidator(parse_duration), Field(gt=timedelta(0))]
# PostgreSQL stores milliseconds in 32 bits, and 0 means "no limit".
Timeout = Annotated[Duration, Field(ge=timedelta(milliseconds=1), le=timedelta(days=24))]


def parse_list(value: object) -> object:
    """Split a text at its commas. A JSON array works too. Other types are left for pydantic to check."""
    if not isinstance(value, str):
        return value
    if not value.lstrip().startswith("["):
        return tuple(part.strip() for part in value.split(","))
    try:
        return json.loads(value)
    except ValueError:
        return refuse("write the values separated by commas")


def lower(value: object) -> object:
    """Convert a text to lower case, so that a setting accepts a word in any case."""
    return value.lower() if isinstance(value, str) else value


# A setting with several values, such as `Listed[str]`.
_T = TypeVar("_T")
Listed = Annotated[tuple[_T, ...], NoDecode, BeforeValidator(parse_list)]


def is_loopback(host: str) -> bool:
    """Return whether the host is this machine, by name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
