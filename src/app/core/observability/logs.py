"""Structured logs behind one `configure()`. Business code uses `logging.getLogger(__name__)` and nothing else."""

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
# By name: whatever such a key holds is never written.
_SECRET_NAME = re.compile(
    r"(password|passwd|secret|token|authorization|cookie|credential|signing_key|private)", re.IGNORECASE
)
# By form, wherever it stands in a text: compact JWS, refresh tokens and secrets of links, URLs with a password. Each with what no
# such text is without: looking for that takes a fraction of what the pattern does.
_SECRET_FORMS = (
    ("eyJ", re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), REDACTED),
    ("t1.", re.compile(r"\b[rl]t1\.[A-Za-z0-9_-]{20,}"), REDACTED),
    ("://", re.compile(r"(\w+://[^\s:/@]+:)[^\s@]+@"), rf"\1{REDACTED}@"),
)
_CREDENTIALS = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]+")
_PLAIN = (bool, int, float)
# What every request is bound to; neither can hold more than letters, digits, - and _.
_IDS = frozenset({"request_id", "trace_id"})
_LEVELS = {logging.INFO: "info", logging.WARNING: "warning"}
_to_json = json.JSONEncoder().encode

type Renderer = Callable[[object, str, EventDict], str]


class _Writer:
    """Writes finished lines to wherever standard output is at the time."""

    def __init__(self, name: str = "app") -> None:
        self.name = name

    def write(self, line: str) -> None:
        # A log that cannot be written (full disk, closed terminal) must not fail the request; `logging` does the same.
        with suppress(OSError):
            # As one text: lines of several threads may not run into each other.
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    debug = info = warning = error = critical = write


def discard_unwritable_output() -> None:
    """Send what standard output and standard error refuse to the null device.

    Python flushes both when it exits, and turns a failure into exit code 120, even when the service has stopped cleanly. The
    terminal may be closed, or the disk full.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def configure(settings: LogSettings, *, readable: bool) -> None:
    """Send every log record of the process, libraries included, to standard output: one line each, redacted."""
    atexit.unregister(discard_unwritable_output)
    atexit.register(discard_unwritable_output)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    as_text = settings.format == "console" or (settings.format is None and readable)
    structlog.configure(
        processors=[*shared, *_rendering(as_text=as_text)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[settings.level.upper()]),
        logger_factory=_Writer,
        cache_logger_on_first_use=False,
    )
    access_log.configure(settings.level, _renderer(as_text=as_text))
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(as_text=as_text),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.level.upper())
    # The server's own loggers keep no handlers of their own; its access log would double ours.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "sqlalchemy", "alembic"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = name != "uvicorn.access"
    for name in ("sqlalchemy", "alembic", "uvicorn", "procrastinate"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns of every attempt to connect; the job worker says once that the database is away.
    logging.getLogger("psycopg").setLevel(logging.ERROR)


def _rendering(*, as_text: bool) -> list[Processor]:
    # The traceback becomes text before it is redacted: exceptions quote what they were given.
    return [structlog.processors.format_exc_info, redact, _renderer(as_text=as_text)]


def _renderer(*, as_text: bool) -> Renderer:
    return structlog.dev.ConsoleRenderer() if as_text else _as_json


def _as_json(_logger: object, _method: str, event: EventDict) -> str:
    # Redaction has left nothing but what JSON knows.
    try:
        return to_json(event).decode("ascii")
    except ValueError:
        # Beyond ASCII only the slower way has escapes, and this needs them: for lone surrogates, and for what may pass for the end
        # of a line.
        return _to_json(event)


def redact(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Take secrets out of a log record, by the name of the key and by the form of the text."""
    for key, value in event.items():
        if _is_secret(key):
            event[key] = REDACTED
        elif type(value) is str:
            event[key] = clean_text(value)
        else:
            event[key] = _clean(value)
    return event


@lru_cache(maxsize=1000)
def _is_secret(key: str) -> bool:
    return _SECRET_NAME.search(key) is not None


def _clean(value: Any) -> Any:
    if value is None or isinstance(value, _PLAIN):
        return value
    if isinstance(value, Mapping):
        return {str(key): REDACTED if _is_secret(str(key)) else _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    # Anything else is written as its text, and that may quote whatever it was made from.
    return clean_text(str(value))


def clean_text(text: str) -> str:
    """Take out of a text whatever has the form of a secret."""
    # Credentials consist of two words.
    if len(text.split(None, 1)) > 1:
        text = _CREDENTIALS.sub(rf"\1 {REDACTED}", text)
    for mark, form, replacement in _SECRET_FORMS:
        if mark in text:
            text = form.sub(replacement, text)
    return text


class _AccessLog:
    """Writes the lines of requests. What makes any record fit to be written takes four times as long over them."""

    def __init__(self) -> None:
        self._writer = _Writer()
        self.configure("info", _as_json)

    def configure(self, level: str, render: Renderer) -> None:
        self._least = logging.getLevelNamesMapping()[level.upper()]
        self._render = render

    def write(self, level: int, known: Mapping[str, Any]) -> None:
        """Write a line with what the caller knows to hold no secret; what has been bound may hold one."""
        if level < self._least:
            return
        event: EventDict = structlog.contextvars.get_contextvars()
        if not event.keys() <= _IDS:
            event = redact(None, "", event)
        event.update(known)
        event["level"], event["logger"], event["timestamp"] = _LEVELS[level], "app.access", _now()
        self._writer.write(self._render(None, "", event))


access_log = _AccessLog()


def _now() -> str:
    second, rest = divmod(time_ns() // 1000, 1_000_000)
    return f"{_second(second)}.{rest:06d}Z"


@lru_cache(1)
def _second(number: int) -> str:
    return datetime.fromtimestamp(number, UTC).strftime("%Y-%m-%dT%H:%M:%S")
