"""Messages for invalid values, for clients of the API and users of the command line.

The messages of pydantic may quote the value, which can be a secret. These contain only limits from the declaration of the field.
"""

from collections.abc import Mapping
from typing import Any

_DETAILS = {
    "missing": "This is required.",
    "extra_forbidden": "This member is unknown.",
    "string_type": "This must be a string.",
    "string_too_short": "This must have at least {min_length} characters.",
    "string_too_long": "This may have at most {max_length} characters.",
    "too_short": "This must have a length of at least {min_length}.",
    "too_long": "This must have a length of at most {max_length}.",
    "string_unicode": "This must be valid Unicode.",
    "string_pattern_mismatch": "This has the wrong format.",
    "int_type": "This must be an integer.",
    "int_parsing": "This must be an integer.",
    "int_from_float": "This must be an integer.",
    "int_parsing_size": "This number is too large.",
    "bool_type": "This must be true or false.",
    "bool_parsing": "This must be true or false.",
    "greater_than_equal": "This must be {ge} or more.",
    "less_than_equal": "This must be {le} or less.",
    "literal_error": "This must be one of: {expected}.",
    "enum": "This must be one of: {expected}.",
    "model_type": "This must be an object.",
    "model_attributes_type": "This must be an object.",
    "dict_type": "This must be an object.",
    "list_type": "This must be an array.",
    "date_from_datetime_parsing": "This must be a date of the calendar, such as 2026-01-31.",
    "datetime_parsing": "This must be an RFC 3339 instant, such as 2026-01-31T12:00:00Z.",
    "datetime_from_date_parsing": "This must be an RFC 3339 instant, such as 2026-01-31T12:00:00Z.",
    "timezone_aware": "This must be an RFC 3339 instant with its offset, such as 2026-01-31T12:00:00Z.",
    "uuid_type": "This must be a UUID.",
    "uuid_parsing": "This must be a UUID.",
}


def detail_of(error: Mapping[str, Any]) -> str:
    """Return the message for one validation error of pydantic."""
    kind = error.get("type")
    if kind in _DETAILS:
        return _DETAILS[kind].format_map(error.get("ctx", {}))
    # Only the field types of this application set `ours`. Any other message comes from pydantic and may quote the value.
    return str(error["msg"]) if (error.get("ctx") or {}).get("ours") else "This value is not valid."
