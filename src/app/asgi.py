"""`app.asgi:app`, the application for any ASGI server. docs/servers.md compares these servers with `app serve`."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from fastapi import FastAPI

from app.core.config import TelemetrySettings
from app.core.errors import ConfigurationError
from app.core.listening import PortInUseError
from app.core.observability.exposition import Exposition, exposition
from app.core.shutdown import shutdown_on_signals
from app.main import create_app
from app.migrations.errors import MigrationError
from app.settings import load_settings
from app.startup import prepare, refuse_to_start

log = logging.getLogger(__name__)


def _create() -> FastAPI:
    try:
        settings = load_settings()
        prepare(settings)
        return create_app(
            settings, exposition=partial(_own_exposition, settings.telemetry), shutdown=shutdown_on_signals
        )
    except (ConfigurationError, MigrationError) as error:
        refuse_to_start(str(error))


@contextmanager
def _own_exposition(settings: TelemetrySettings) -> Iterator[Exposition | None]:
    """Expose the metrics of this process. The worker processes of another ASGI server cannot share the port."""
    with ExitStack() as stack:
        try:
            exposed = stack.enter_context(exposition(settings))
        except PortInUseError as error:
            log.warning("metrics not exposed: %s", error)
            exposed = None
        yield exposed


app: FastAPI

# With `__getattr__`, a type checker would accept any name as an attribute of this module.
if not TYPE_CHECKING:  # pragma: no branch  # Always true at run time.

    def __getattr__(name: str) -> FastAPI:
        """Create `app` when a server reads it. Tools that import every module may have no settings."""
        if name != "app":
            message = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(message)
        application = globals()["app"] = _create()
        return application
