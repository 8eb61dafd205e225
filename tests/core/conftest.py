import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from app.core.config import LogSettings
from app.core.telemetry import configure
from tests.core.recording import Lines, Recording

_LOGGERS = ("", "uvicorn", "uvicorn.error", "uvicorn.access", "sqlalchemy", "alembic", "procrastinate", "psycopg")


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Leave logging as it was found: it belongs to the process."""
    before = [(log, log.handlers[:], log.level, log.propagate) for log in map(logging.getLogger, _LOGGERS)]
    yield
    for log, handlers, level, propagate in before:
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def recording(restored_logging: None, capsys: pytest.CaptureFixture[str]) -> Recording:  # noqa: ARG001  # Wanted for what it does afterwards.
    """Begin to write JSON, and give the lines written since the last look, each as the object it holds."""

    def begin() -> Lines:
        configure(LogSettings(), readable=False)
        return lambda: [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return begin
