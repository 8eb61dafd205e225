"""Options of an operation: how it departs from the rules that all others follow. They are entries of `openapi_extra`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from typing import Any, Self

from app.core.db.timeouts import checked_timeout

_REPEATABLE_KEY = "x-repeatable"
_EXTRA_PARAMETERS_KEY = "x-extra-parameters"
_MAX_BODY_SIZE_KEY = "x-max-body-size"
_BODY_TIMEOUT_KEY = "x-body-timeout"
_STATEMENT_TIMEOUT_KEY = "x-statement-timeout"
_KEYS = (_REPEATABLE_KEY, _EXTRA_PARAMETERS_KEY, _MAX_BODY_SIZE_KEY, _BODY_TIMEOUT_KEY, _STATEMENT_TIMEOUT_KEY)
_SIMILARITY = 0.8
_MEDIA_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+")

type Seconds = timedelta | float


def options(
    *,
    repeatable: bool = True,
    extra_parameters: bool = False,
    max_body_size: int | None = None,
    body_timeout: Seconds | None = None,
    statement_timeout: Seconds | None = None,
    consumes: str | tuple[str, ...] = (),
) -> dict[str, Any]:
    """Return the options of an operation, for `openapi_extra=`. Combine them with `public` by `|`.

    - `repeatable=False`: the operation is never retried. Use it for side effects outside the database that must not happen twice.
    - `extra_parameters=True`: the query may have parameters that the operation does not declare.
    - `max_body_size`: maximum size of the body in bytes, instead of `APP_SERVER__MAX_BODY_SIZE`.
    - `body_timeout`: maximum time to receive the body, instead of `APP_SERVER__BODY_TIMEOUT`.
    - `statement_timeout`: maximum time of one statement, instead of `APP_DATABASE__STATEMENT_TIMEOUT`.
    - `consumes`: the media types of a body that the endpoint reads itself, from `request.stream()`.
    """
    _check({_REPEATABLE_KEY: repeatable, _EXTRA_PARAMETERS_KEY: extra_parameters})
    given = {
        _REPEATABLE_KEY: None if repeatable else False,
        _EXTRA_PARAMETERS_KEY: True if extra_parameters else None,
        _MAX_BODY_SIZE_KEY: max_body_size,
        _BODY_TIMEOUT_KEY: _seconds("body_timeout", body_timeout),
        _STATEMENT_TIMEOUT_KEY: _seconds("statement_timeout", statement_timeout),
    }
    extra = {key: value for key, value in given.items() if value is not None}
    _check(extra)
    return extra | (_raw_body((consumes,) if isinstance(consumes, str) else consumes) if consumes else {})


def _seconds(name: str, given: Seconds | None) -> float | None:
    return None if given is None else checked_timeout(f"the option {name}", given).total_seconds()


def _raw_body(types: tuple[Any, ...]) -> dict[str, Any]:
    for one in types:
        if not isinstance(one, str) or not _MEDIA_TYPE.fullmatch(one):
            message = f"the option consumes must name media types in lower case, such as text/csv, not {one!r}"
            raise ValueError(message)
    schema = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"required": True, "content": dict.fromkeys(types, schema)}}


def _check(extra: Mapping[str, Any]) -> None:
    for key in (_REPEATABLE_KEY, _EXTRA_PARAMETERS_KEY):
        if not isinstance(extra.get(key, True), bool):
            message = f"the option {_name(key)} must be True or False"
            raise TypeError(message)
    size = extra.get(_MAX_BODY_SIZE_KEY, 1)
    if not isinstance(size, int) or isinstance(size, bool):
        message = "the option max_body_size must be a number of bytes"
        raise TypeError(message)
    if size < 1:
        message = "the option max_body_size must be at least 1 byte"
        raise ValueError(message)


def _name(key: str) -> str:
    return key.removeprefix("x-").replace("-", "_")


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one operation."""

    is_repeatable: bool = True
    accepts_extra_parameters: bool = False
    max_body_size: int | None = None
    body_timeout: timedelta | None = None
    statement_timeout: timedelta | None = None
    consumes: frozenset[str] = frozenset()

    @classmethod
    def read(cls, extra: Mapping[str, Any]) -> Self:
        """Read the options from `openapi_extra`. Raises `ValueError` for a key that is probably a misspelt option."""
        for key in extra:
            if key not in _KEYS and (meant := get_close_matches(key, _KEYS, 1, _SIMILARITY)):
                message = (
                    f"{key} is no option of an operation; write openapi_extra=routing.options({_name(meant[0])}=…)"
                )
                raise ValueError(message)
        _check(extra)
        return cls(
            is_repeatable=extra.get(_REPEATABLE_KEY, True),
            accepts_extra_parameters=extra.get(_EXTRA_PARAMETERS_KEY, False),
            max_body_size=extra.get(_MAX_BODY_SIZE_KEY),
            body_timeout=_timeout(extra, _BODY_TIMEOUT_KEY),
            statement_timeout=_timeout(extra, _STATEMENT_TIMEOUT_KEY),
            consumes=frozenset(extra.get("requestBody", {}).get("content", ())),
        )


def _timeout(extra: Mapping[str, Any], key: str) -> timedelta | None:
    return checked_timeout(f"the option {_name(key)}", extra[key]) if key in extra else None
