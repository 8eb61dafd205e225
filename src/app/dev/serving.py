"""``python -m app.dev.serving``: serves for `make run`, which replaces this process when a file changes.

A developer waits for the new process. So it is started ahead: it imports the libraries at once, and the application only when a
file has changed.
"""

import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from importlib import import_module

from app.loading import loading

LOAD = b"load\n"
GO = b"go\n"
READY = b"ready\n"

# The libraries whose import takes longest. One that is missing here is imported with the application.
_LIBRARIES = (
    "alembic.migration",
    "asyncpg",
    "email_validator",
    "fastapi.openapi.models",
    "joserfc.jws",
    "opentelemetry.trace",
    "procrastinate",
    "prometheus_client",
    "pwdlib.hashers.argon2",
    "pydantic_settings",
    "rich.console",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.ext.asyncio",
    "structlog",
    "typer",
    "uuid_utils.compat",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.server",
    "websockets.server",
)


def main(control: int) -> None:
    """Import and serve as the process at the other end of the socket says, until a signal, or until that process exits."""
    # Until the process serves, a signal ends it at once. Python's own handler of Ctrl-C would print a traceback; the parent blocks
    # the signal until this one is in place.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    with socket.socket(fileno=control) as parent:
        with loading():
            for library in _LIBRARIES:
                import_module(library)
        if parent.recv(len(LOAD)) == LOAD:
            with loading():
                import_module("app.main")
                import_module("app.server.serve")
        if parent.recv(len(GO)) == GO:
            threading.Thread(target=_exit_with, args=[parent], daemon=True).start()
            _serve(parent)


def _serve(parent: socket.socket) -> None:
    from app.server.serve import serve  # noqa: PLC0415  # Not before LOAD, because the files may change.
    from app.settings import load_settings  # noqa: PLC0415

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        serve(load_settings(), announce=lambda: parent.sendall(READY))


def _exit_with(parent: socket.socket) -> None:
    # The parent stops its child with a signal. If it was killed, its database stops too, and nothing is left to finish.
    with suppress(OSError):
        parent.recv(1)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
