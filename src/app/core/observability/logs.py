"""Structured logs without secrets, set up by `configure`. Business code uses only `logging.getLogger(__name__)`."""

import atexit
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from time import time_ns
from typing import Any

import structlog
from pydantic_core import to_json
from structlog.typing import EventDict, Processor

from app.core.config import LogSettings

REDACTED = "[redacted]"
# The values of keys with such a name are never written.
_SECRET_NAME = re.compile(
    r"(password|passwd|secret|token|authorization|cookie|credential|signing_key|private)", re.IGNORECASE
)
# Secrets within a text: compact JWS; refresh tokens, secrets of links, tickets; URLs with a password. Each pattern comes with a string
# that every match contains, because a search for this string is much faster than the pattern.
_SECRET_PATTERNS = (
    ("eyJ", re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), REDACTED),
    ("t1.", re.compile(r"\b[rls]t1\.[A-Za-z0-9_-]{20,}"), REDACTED),
    ("://", re.compile(r"(\w+://[^\s:/@]+:)[^\s@]+@"), rf"\1{REDACTED}@"),
)
_CREDENTIALS = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]+")
# Context of every request. These ids contain only letters, digits, - and _, so they need no redaction.
_IDS = frozenset({"request_id", "trace_id"})
_LEVELS = {logging.INFO: "info", logging.WARNING: "warning"}
_CONTEXT: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)

type Renderer = Callable[[object, str, EventDict], str]


def discard_unwritable_output() -> None:
    """Redirect standard output and standard error to the null device if they cannot be flushed.

    Python flushes both at exit. If that fails, because the terminal is closed or the disk is full, Python exits with code 120,
    even after a clean stop of the service.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def configure(settings: LogSettings, *, readable: bool) -> None:
    """Write all log records of the process, also those of libraries, to standard output: redacted, one per line.

    `readable` chooses text instead of JSON if the settings name no format.
    """
    # A second call must not register the function twice.
    atexit.unregister(discard_unwritable_output)
    atexit.register(discard_unwritable_output)
    level = settings.level.upper()
    as_text = settings.format == "console" or (settings.format is None and readable)
    render = structlog.dev.ConsoleRenderer(colors=_shows_colors()) if as_text else _as_json
    structlog.configure(
        processors=[*_CONTEXT, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    access_log.configure(level, render)
    root = logging.getLogger()
    root.handlers = [_handler(render)]
    root.setLevel(level)
    _configure_libraries()


def _shows_colors() -> bool:
    """Return whether standard output is a terminal and the user has not turned colours off (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _handler(render: Renderer) -> logging.Handler:
    formatter = structlog.stdlib.ProcessorFormatter
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        formatter(
            foreign_pre_chain=[*_CONTEXT, structlog.stdlib.ExtraAdder()],
            # Format the traceback before the redaction, because exceptions quote values.
            processors=[formatter.remove_processors_meta, structlog.processors.format_exc_info, redact, render],
        )
    )
    return handler


def _configure_libraries() -> None:
    # These libraries log through the root handler. uvicorn's access log is off, because the application writes one itself.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "sqlalchemy", "alembic"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = name != "uvicorn.access"
    # SQLAlchemy names the logger of a pool after its class, and our class is not in the package `sqlalchemy`.
    for name in ("sqlalchemy", "app.core.db.connections.Pool", "alembic", "uvicorn", "procrastinate", "websockets"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # psycopg warns about each failed connection attempt. The job worker logs once that the database is unreachable.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    # The parser of forms warns about each malformed one. The client gets an error, and the access log has a line.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)


def _as_json(_logger: object, _method: str, event: EventDict) -> str:
    # After the redaction, all values have JSON types.
    try:
        return to_json(event).decode("ascii")
    except ValueError:
        # Only the slower encoder escapes characters outside ASCII. Lone surrogates and Unicode line separators need that.
        return json.dumps(event)


def redact(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Replace secrets in a log record: by the name of the key, and by patterns in texts."""
    for key, value in event.items():
        event[key] = REDACTED if _is_secret(key) else _clean(value)
    return event


@lru_cache(maxsize=1000)
def _is_secret(key: str) -> bool:
    return _SECRET_NAME.search(key) is not None


def _clean(value: Any) -> Any:
    if type(value) is str:
        return clean_text(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): REDACTED if _is_secret(str(key)) else _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    # Any other object is written as text, which may quote secrets.
    return clean_text(str(value))


def clean_text(text: str) -> str:
    """Replace everything in a text that looks like a secret."""
    # Credentials of a header have two words, so a single word needs no search.
    if len(text.split(None, 1)) > 1:
        text = _CREDENTIALS.sub(rf"\1 {REDACTED}", text)
    for mark, pattern, replacement in _SECRET_PATTERNS:
        if mark in text:
            text = pattern.sub(replacement, text)
    return text


class _AccessLog:
    """Writes the log line of each request itself. The general path through structlog and `redact` takes four times as long."""

    def __init__(self) -> None:
        self.configure("INFO", _as_json)

    def configure(self, level: str, render: Renderer) -> None:
        self._min_level = logging.getLevelNamesMapping()[level]
        self._render = render

    def write(self, level: int, facts: Mapping[str, Any]) -> None:
        """Write a line. The caller makes sure that `facts` contain no secret. Only values bound to the log context are redacted."""
        if level < self._min_level:
            return
        event: EventDict = structlog.contextvars.get_contextvars()
        if not event.keys() <= _IDS:
            event = redact(None, "", event)
        event.update(facts)
        event["level"], event["logger"], event["timestamp"] = _LEVELS[level], "app.access", _now()
        _write_line(self._render(None, "", event))


access_log = _AccessLog()


def _write_line(line: str) -> None:
    # A log that cannot be written (full disk, closed terminal) must not fail the request; `logging` does the same.
    with suppress(OSError):
        # One call writes the text and the line end, so that lines of different threads do not mix.
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def _now() -> str:
    second, rest = divmod(time_ns() // 1000, 1_000_000)
    return f"{_second(second)}.{rest:06d}Z"


@lru_cache(1)
def _second(number: int) -> str:
    return datetime.fromtimestamp(number, UTC).strftime("%Y-%m-%dT%H:%M:%S")
