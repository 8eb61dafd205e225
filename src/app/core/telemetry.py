"""Structured logs behind one `configure()`. Business code uses `logging.getLogger(__name__)` and nothing else."""

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

from app.core.config import LogSettings

REDACTED = "[redacted]"
# By name: whatever such a key holds is never written.
_SECRET_NAME = re.compile(
    r"(password|passwd|secret|token|authorization|cookie|credential|signing_key|private)", re.IGNORECASE
)
# By form, wherever it stands in a text: bearer credentials, compact JWS, refresh tokens, URLs with a password.
_SECRET_FORMS = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]+"), rf"\1 {REDACTED}"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), REDACTED),
    (re.compile(r"\b[rl]t1\.[A-Za-z0-9_-]{20,}"), REDACTED),
    (re.compile(r"(\w+://[^\s:/@]+:)[^\s@]+@"), rf"\1{REDACTED}@"),
)
# None of the forms is without one of these: a single look spares most texts all four.
_SUSPECT = re.compile(r"bearer|basic|eyJ|[rl]t1\.|://", re.IGNORECASE)


def configure(settings: LogSettings, *, readable: bool) -> None:
    """Send every log record of the process, libraries included, to standard output: one line each, redacted."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    as_text = settings.format == "console" or (settings.format is None and readable)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[settings.level.upper()]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
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
    if as_text:
        return [structlog.processors.format_exc_info, redact, structlog.dev.ConsoleRenderer()]
    return [structlog.processors.format_exc_info, redact, structlog.processors.JSONRenderer()]


def redact(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Take secrets out of a log record, by the name of the key and by the form of the text."""
    for key, value in event.items():
        event[key] = REDACTED if _SECRET_NAME.search(key) else _clean(value)
    return event


def _clean(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): REDACTED if _SECRET_NAME.search(str(key)) else _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    # Anything else is written as its text, and that may quote whatever it was made from.
    text = str(value)
    if _SUSPECT.search(text) is None:
        return text
    for form, replacement in _SECRET_FORMS:
        text = form.sub(replacement, text)
    return text
