"""Formats values and tables for the generated documentation."""

from collections.abc import Iterable
from datetime import timedelta

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


def table(heading: str, rows: Iterable[tuple[str, ...]]) -> str:
    columns = heading.count("|") + 1
    return "\n".join([f"| {heading} |", "|---" * columns + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def duration(value: timedelta) -> str:
    """Format a duration in the notation of the settings."""
    seconds = value.total_seconds()
    for size, unit in _UNITS:
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds * 1000:.0f}ms"


def setting(default: object) -> str:
    """Format the default of a setting; an empty string if it has none."""
    if default is None or default == ():
        return ""
    return f"`{duration(default) if isinstance(default, timedelta) else str(default).lower()}`"
