"""The HTTP server around the application."""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import override

import uvicorn

from app.core.config import Settings
from app.core.keys import load_key_ring
from app.core.telemetry import configure
from app.main import create_app

_HEADER_LIMIT = 65_536
_KEEP_ALIVE = 75

log = logging.getLogger(__name__)


class PortInUseError(Exception):
    """The address cannot be listened on; the text says why, and names the process that has the port if it can."""


def serve(settings: Settings, *, announce: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGINT or SIGTERM; `announce` is called once connections are accepted."""
    configure(settings.log, readable=settings.environment == "local")
    # The application loads them as well, and would fail with a traceback.
    load_key_ring(settings.auth)
    with listen(settings.server.host, settings.server.port) as listener:
        config = uvicorn.Config(
            create_app(settings),
            log_config=None,
            access_log=False,
            server_header=False,
            # Forwarded headers are believed from nobody: whoever sends them would choose their own address.
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=int(settings.server.shutdown_grace.total_seconds()),
            h11_max_incomplete_event_size=_HEADER_LIMIT,
            lifespan="on",
        )
        _Server(config, listener, announce).run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, listener: socket.socket, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._listener = listener
        self._announce = announce

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # With PORT=0 nothing else tells.
        host, port, *_ = self._listener.getsockname()
        log.info("listening", extra={"host": host, "port": port})
        await asyncio.to_thread(self._announce)

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        # uvicorn would raise it again once everything is closed, and an orderly end would look like a crash.
        self._captured_signals.clear()


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket, or say who has it."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "this is no name of a host"
        message = f"cannot listen on {host}:{port}: {reason}"
        raise PortInUseError(message) from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise PortInUseError(_in_use(host, port, error)) from None
    return listener


def _in_use(host: str, port: int, error: OSError) -> str:
    if error.errno != errno.EADDRINUSE:
        return f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}"
    holder = _holder(port)
    return f"port {port} is in use{f' by {holder}' if holder else ''}; set PORT to another one, for example PORT={port + 1}"


def _holder(port: int) -> str | None:
    """Name the process that listens on a port, where `/proc` tells."""
    inodes = _listening_inodes(port)
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        process = link.parent.parent
        # Processes of others cannot be looked into, and any may end while we look.
        with suppress(OSError):
            if str(link.readlink()) in inodes:
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return None


def _listening_inodes(port: int) -> set[str]:
    inodes: set[str] = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    return inodes
