"""``python -m app.dev.serving``: serves for `make run`, which starts this process again when a file changes.

It imports only what the application needs, and without garbage collection, because a developer waits for it.
"""

import os
import signal
import socket
import sys
import threading
from contextlib import suppress

from app.loading import loading

with loading():
    from app.server.serve import serve
    from app.settings import load_settings

READY = b"ready\n"
GO = b"go\n"


def main(control: int) -> None:
    """Wait for permission to serve, and serve until a signal, or until the process at the other end of the socket exits."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with suppress(KeyboardInterrupt), socket.socket(fileno=control) as parent:
        if parent.recv(len(GO)) == GO:
            threading.Thread(target=_exit_with, args=[parent], daemon=True).start()
            serve(load_settings(), announce=lambda: parent.sendall(READY))


def _exit_with(parent: socket.socket) -> None:
    # The parent stops its child with a signal. If it was killed, its database stops too, and nothing is left to finish.
    with suppress(OSError):
        parent.recv(1)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
